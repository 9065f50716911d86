//! Frames with an optional descriptor on a unix socket, each side under a deadline.
//!
//! The descriptor travels with the frame's first byte (`SCM_RIGHTS`). At most one is kept per frame; any
//! other that a peer sends is closed at once. A peer that sends slowly costs its own connection only: the
//! deadline covers the whole frame, not each read.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use enclos_api::frame::{self, FrameError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Room for the descriptors of one message. More than one, so that a peer that sends several is served
/// its first and loses the rest, instead of a truncated message.
const MAX_DESCRIPTORS: usize = 4;

/// Sends `value`, with `descriptor` if there is one, within `limit`.
///
/// # Errors
/// As [`frame::write`]; a timeout is an [`io::ErrorKind::TimedOut`].
pub fn send<T: Serialize>(
    stream: &UnixStream,
    value: &T,
    descriptor: Option<BorrowedFd<'_>>,
    limit: Duration,
) -> Result<(), FrameError> {
    let bytes = frame::encode(value)?;
    let deadline = Instant::now() + limit;
    let sent = match descriptor {
        Some(descriptor) => send_first(stream, &bytes, descriptor)?,
        None => 0,
    };
    let mut writer = Timed { stream, deadline };
    Ok(writer.write_all(&bytes[sent..])?)
}

/// Sends the first byte together with the descriptor.
fn send_first(
    stream: &UnixStream,
    bytes: &[u8],
    descriptor: BorrowedFd<'_>,
) -> Result<usize, FrameError> {
    let descriptors = [descriptor];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    let slices = [IoSlice::new(&bytes[..1])];
    rustix::net::sendmsg(stream, &slices, &mut control, SendFlags::NOSIGNAL)
        .map_err(|error| FrameError::Io(error.into()))
}

/// Receives one frame and the descriptor that came with it, if one did, within `limit`.
///
/// # Errors
/// As [`frame::read`]; a timeout is an [`io::ErrorKind::TimedOut`].
pub fn receive<T: DeserializeOwned>(
    stream: &UnixStream,
    limit: Duration,
) -> Result<(T, Option<OwnedFd>), FrameError> {
    let mut reader = Timed {
        stream,
        deadline: Instant::now() + limit,
    };
    let mut prefix = [0; 4];
    let (count, descriptor) = reader.receive_first(&mut prefix)?;
    if count == 0 {
        return Err(FrameError::Closed);
    }
    reader.read_exact(&mut prefix[count..])?;
    let mut body = vec![0; frame::body_len(prefix)?];
    reader.read_exact(&mut body)?;
    Ok((frame::decode(&body)?, descriptor))
}

/// Waits until there is something to read, or the end of the stream; false when `limit` passed first.
///
/// # Errors
/// From `poll`.
pub fn wait_readable(stream: &UnixStream, limit: Option<Duration>) -> io::Result<bool> {
    let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
    loop {
        let mut ready = [PollFd::new(stream, PollFlags::IN)];
        match poll(&mut ready, limit.as_ref()) {
            Err(Errno::INTR) => {}
            other => return Ok(other? > 0),
        }
    }
}

/// Whether the peer has hung up. What it may have sent stays unread.
#[must_use]
pub fn hung_up(stream: &UnixStream) -> bool {
    let mut byte = [0];
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    match rustix::net::recv(stream, &mut byte, flags) {
        Ok((_, count)) => count == 0,
        Err(error) => error != Errno::AGAIN && error != Errno::INTR,
    }
}

/// A stream whose reads and writes all end by one deadline.
struct Timed<'a> {
    stream: &'a UnixStream,
    deadline: Instant,
}

impl Timed<'_> {
    fn remaining(&self) -> io::Result<Duration> {
        match self.deadline.checked_duration_since(Instant::now()) {
            Some(left) if !left.is_zero() => Ok(left),
            _ => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    fn receive_first(&mut self, bytes: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
        self.stream.set_read_timeout(Some(self.remaining()?))?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(bytes)];
        let received = loop {
            match rustix::net::recvmsg(
                self.stream,
                &mut slices,
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            ) {
                Err(Errno::INTR) => self.stream.set_read_timeout(Some(self.remaining()?))?,
                Err(Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
                other => break other?,
            }
        };
        let mut descriptors = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        });
        let first = descriptors.next().and_then(|mut several| several.next());
        drop(descriptors);
        Ok((received.bytes, first))
    }
}

/// The kernel reports an expired socket timeout as EAGAIN.
fn timed_out(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
        _ => error,
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.remaining()?))?;
        let mut stream = self.stream;
        stream.read(bytes).map_err(timed_out)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.remaining()?))?;
        let mut stream = self.stream;
        stream.write(bytes).map_err(timed_out)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    #[test]
    fn a_frame_arrives_with_its_descriptor() {
        let (left, right) = UnixStream::pair().unwrap();
        let file = File::open("/proc/self/comm").unwrap();
        send(&left, &"with", Some(file.as_fd()), LIMIT).unwrap();
        send(&left, &"without", None, LIMIT).unwrap();
        let (text, descriptor) = receive::<String>(&right, LIMIT).unwrap();
        assert_eq!(text, "with");
        let mut content = String::new();
        File::from(descriptor.unwrap())
            .read_to_string(&mut content)
            .unwrap();
        assert!(!content.is_empty());
        let (text, descriptor) = receive::<String>(&right, LIMIT).unwrap();
        assert!(descriptor.is_none());
        assert_eq!(text, "without");
    }

    #[test]
    fn a_slow_peer_is_cut_off_by_the_deadline_of_the_whole_frame() {
        let (mut left, right) = UnixStream::pair().unwrap();
        let feeder = std::thread::spawn(move || {
            let bytes = frame::encode(&"x".repeat(100)).unwrap();
            for byte in bytes {
                if left.write_all(&[byte]).is_err() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let start = Instant::now();
        let error = receive::<String>(&right, Duration::from_millis(200)).unwrap_err();
        assert!(matches!(error, FrameError::Io(e) if e.kind() == io::ErrorKind::TimedOut));
        assert!(start.elapsed() < Duration::from_secs(1));
        drop(right);
        feeder.join().unwrap();
    }

    #[test]
    fn a_silent_peer_times_out_and_a_closed_one_does_not() {
        let (left, right) = UnixStream::pair().unwrap();
        let error = receive::<u8>(&right, Duration::from_millis(20)).unwrap_err();
        assert!(matches!(error, FrameError::Io(e) if e.kind() == io::ErrorKind::TimedOut));
        drop(left);
        assert!(matches!(
            receive::<u8>(&right, LIMIT),
            Err(FrameError::Closed)
        ));
    }
}
