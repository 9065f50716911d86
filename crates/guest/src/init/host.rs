//! The host's two ports that init talks to: heartbeat and life cycle.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use enclos_api::guest::{HEARTBEAT, HEARTBEAT_PORT, LIFECYCLE_PORT, PARENT_CID, Report, Welcome};
use enclos_api::{PROTOCOL_VERSION, frame};
use rustix::time::{ClockId, Timespec};

use super::InitError;
use crate::{log, sys};

/// A host that is busy with other guests may take its time; one that takes longer is broken.
const TIMEOUT: Duration = Duration::from_secs(30);

/// How long the last report may take to reach the host.
const LAST_WORD: Duration = Duration::from_secs(2);

fn connect(port: u32) -> io::Result<UnixStream> {
    let stream = sys::vsock::connect(PARENT_CID, port, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

/// Tells the host that kernel and init are up, as AWS's init does.
pub(super) fn heartbeat() -> Result<(), InitError> {
    let echo = connect(HEARTBEAT_PORT)
        .and_then(beat)
        .map_err(|source| InitError::Heartbeat { source })?;
    if echo == HEARTBEAT {
        Ok(())
    } else {
        Err(InitError::HeartbeatEcho { found: echo })
    }
}

fn beat(mut stream: UnixStream) -> io::Result<u8> {
    let mut echo = [0];
    stream.write_all(&[HEARTBEAT])?;
    stream.read_exact(&mut echo)?;
    Ok(echo[0])
}

/// The life-cycle connection, if the host has that service. A genuine Nitro host has not: then the clock is
/// the kernel's and nothing is reported.
#[derive(Debug, Default)]
pub(super) struct Lifecycle {
    stream: Option<UnixStream>,
}

impl Lifecycle {
    /// Connects, and sets the clock by the host's welcome.
    pub(super) fn open() -> Result<Self, InitError> {
        let mut stream = match connect(LIFECYCLE_PORT) {
            Ok(stream) => stream,
            Err(error) => {
                log::line(
                    "enclos-init",
                    format_args!("no life-cycle service on the host: {error}"),
                );
                return Ok(Self::default());
            }
        };
        let welcome: Welcome =
            frame::read(&mut stream).map_err(|source| InitError::Welcome { source })?;
        if welcome.protocol != PROTOCOL_VERSION {
            return Err(InitError::Protocol {
                found: welcome.protocol,
            });
        }
        set_clock(welcome.unix_time_ns)?;
        Ok(Self {
            stream: Some(stream),
        })
    }

    /// A second handle to the connection, on which the host's words arrive.
    pub(super) fn words(&self) -> Option<UnixStream> {
        self.stream.as_ref()?.try_clone().ok()
    }

    /// Reports; a host that no longer listens is told nothing more.
    pub(super) fn report(&mut self, report: &Report) {
        let Some(stream) = &mut self.stream else {
            return;
        };
        if let Err(error) = frame::write(stream, report) {
            log::line(
                "enclos-init",
                format_args!("cannot report to the host: {error}"),
            );
            self.stream = None;
        }
    }

    /// Waits until the host has read everything, or for [`LAST_WORD`].
    pub(super) fn finish(&mut self) {
        let Some(mut stream) = self.stream.take() else {
            return;
        };
        let flush = || -> io::Result<()> {
            stream.shutdown(Shutdown::Write)?;
            stream.set_read_timeout(Some(LAST_WORD))
        };
        if flush().is_ok() {
            drop(io::copy(
                &mut Read::by_ref(&mut stream).take(4096),
                &mut io::sink(),
            ));
        }
    }
}

fn set_clock(unix_time_ns: u64) -> Result<(), InitError> {
    let seconds = i64::try_from(unix_time_ns / 1_000_000_000).unwrap_or(i64::MAX);
    let nanos = i64::try_from(unix_time_ns % 1_000_000_000).unwrap_or(0);
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanos,
    };
    rustix::time::clock_settime(ClockId::Realtime, time).map_err(|source| InitError::Clock {
        unix_time_ns,
        source,
    })
}
