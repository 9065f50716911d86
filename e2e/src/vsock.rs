//! The host's end of an enclave's vsock, and streams whose every byte is known.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};

/// Longest time that a stream may stand still.
const STALL: Duration = Duration::from_secs(30);

/// Connects to a vsock port of the guest.
///
/// # Errors
/// Nobody listens there, or the vmm does not answer.
pub fn connect(vsock: &Path, port: u32) -> Result<UnixStream> {
    let mut stream = UnixStream::connect(vsock)?;
    stream.set_read_timeout(Some(STALL))?;
    stream.set_write_timeout(Some(STALL))?;
    writeln!(stream, "CONNECT {port}")?;
    let mut line = String::new();
    // One byte at a time: what follows the line belongs to the stream.
    BufReader::with_capacity(1, &mut stream).read_line(&mut line)?;
    ensure!(
        line.starts_with("OK "),
        "CONNECT {port} was answered by {line:?}"
    );
    Ok(stream)
}

/// Sends `len` bytes of the pattern `number` to the guest's echo port, ends this side, and expects them back whole,
/// followed by the end of the other side.
///
/// # Errors
/// A byte is lost, changed or added, or the stream stands still.
pub fn echo(vsock: &Path, port: u32, number: u64, len: usize) -> Result<()> {
    let stream = connect(vsock, port)?;
    let mut sender = stream.try_clone()?;
    let sent = thread::spawn(move || -> io::Result<()> {
        copy_pattern(number, len, |part| sender.write_all(part))?;
        sender.shutdown(Shutdown::Write)
    });
    let received = expect_pattern(&stream, number, len).with_context(|| format!("stream {number}"));
    if received.is_err() {
        // Ends the sender too, whose error would only repeat that something is wrong.
        let _ = stream.shutdown(Shutdown::Both);
    }
    let sent = sent.join().map_err(|_| anyhow!("the sender panicked"))?;
    received?;
    Ok(sent?)
}

/// Answers one stream with its own bytes.
///
/// # Errors
/// The stream fails.
pub fn answer_with_itself(mut stream: UnixStream) -> Result<u64> {
    stream.set_read_timeout(Some(STALL))?;
    stream.set_write_timeout(Some(STALL))?;
    let copied = io::copy(&mut stream.try_clone()?, &mut stream)?;
    stream.shutdown(Shutdown::Write)?;
    Ok(copied)
}

fn expect_pattern(mut stream: &UnixStream, number: u64, len: usize) -> Result<()> {
    let mut found = vec![0; PART];
    let mut done = 0;
    copy_pattern(number, len, |expected| {
        let found = &mut found[..expected.len()];
        stream.read_exact(found)?;
        done += expected.len();
        if found == expected {
            Ok(())
        } else {
            Err(io::Error::other("bytes differ"))
        }
    })
    .with_context(|| format!("after {done} of {len} bytes"))?;
    match stream.read(&mut found[..1])? {
        0 => Ok(()),
        _ => bail!("more than {len} bytes came back"),
    }
}

const PART: usize = 32 << 10;

/// Xorshift, seeded by the stream's number.
fn copy_pattern(
    number: u64,
    len: usize,
    mut to: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut state = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut left = len;
    while left > 0 {
        let mut part = vec![0; left.min(PART)];
        for chunk in part.chunks_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
        }
        to(&part)?;
        left -= part.len();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_differ_and_are_checked_to_the_last_byte() {
        let mut bytes = [Vec::new(), Vec::new()];
        for (number, bytes) in (0..).zip(&mut bytes) {
            copy_pattern(number, 70_001, |part| bytes.write_all(part)).unwrap();
            assert_eq!(bytes.len(), 70_001);
        }
        assert_ne!(bytes[0], bytes[1]);
        let checked = |bytes: &[u8]| {
            let (mut here, there) = UnixStream::pair().unwrap();
            here.write_all(bytes).unwrap();
            drop(here);
            expect_pattern(&there, 0, 70_001)
        };
        assert!(checked(&bytes[0]).is_ok());
        assert!(checked(&bytes[0][..70_000]).is_err());
        assert!(checked(&[&bytes[0][..], b"x"].concat()).is_err());
        assert!(checked(&bytes[1]).is_err());
    }
}
