//! The application's output on its way to the host, for images whose measured configuration says so (`log_to_host`).
//!
//! Bytes go as they are: the host makes lines of them, and lines harmless. A host that has no such service, or stops reading,
//! gets nothing more, and the application goes on as if its output went to `/dev/null`. The console of a debug enclave gets
//! everything all the same.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use enclos_api::guest::{APP_LOG_PORT, PARENT_CID};

use crate::{log, sys};

/// How long a connection, or a write, may take: a host that takes longer is not interested.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes that are handed on at once.
const CHUNK: usize = 16 << 10;

/// The host's service, if there is one.
pub fn connect() -> Option<UnixStream> {
    let connect = || -> io::Result<UnixStream> {
        let host = sys::vsock::connect(PARENT_CID, APP_LOG_PORT, TIMEOUT)?;
        host.set_write_timeout(Some(TIMEOUT))?;
        host.set_read_timeout(Some(TIMEOUT))?;
        Ok(host)
    };
    connect().map_err(|error| lost(&error)).ok()
}

fn lost(error: &io::Error) {
    log::line(
        "enclos-agent",
        format_args!("the host does not take the application's output: {error}"),
    );
}

/// Hands `output` on until it ends, and waits until the host has all of it.
pub fn forward(mut output: impl Read, mut host: Option<UnixStream>, mut console: impl Write) {
    let mut buffer = [0; CHUNK];
    loop {
        let bytes = match output.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => &buffer[..read],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        drop(console.write_all(bytes));
        if let Some(stream) = &mut host
            && let Err(error) = stream.write_all(bytes)
        {
            lost(&error);
            host = None;
        }
    }
    if let Some(mut host) = host
        && host.shutdown(Shutdown::Write).is_ok()
    {
        drop(host.read(&mut [0]));
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn output_reaches_host_and_console_and_the_end_is_waited_for() {
        let (agent, mut host) = UnixStream::pair().unwrap();
        let taken = thread::spawn(move || {
            let mut bytes = Vec::new();
            host.read_to_end(&mut bytes).unwrap();
            bytes
        });
        let output: Vec<u8> = (0..=255).cycle().take(3 * CHUNK + 5).collect();
        let mut console = Vec::new();
        forward(output.as_slice(), Some(agent), &mut console);
        assert!(console == output, "the console has everything");
        assert!(taken.join().unwrap() == output, "the host has everything");
    }

    #[test]
    fn without_a_host_output_is_taken_all_the_same() {
        let output = vec![b'x'; 3 * CHUNK];
        let mut rest = output.as_slice();
        forward(&mut rest, None, io::sink());
        assert!(rest.is_empty());
        let (agent, host) = UnixStream::pair().unwrap();
        drop(host);
        let mut rest = output.as_slice();
        forward(&mut rest, Some(agent), io::sink());
        assert!(rest.is_empty());
    }

    #[test]
    fn a_host_that_does_not_read_is_given_up() {
        let (agent, _host) = UnixStream::pair().unwrap();
        agent
            .set_write_timeout(Some(Duration::from_millis(20)))
            .unwrap();
        let output = vec![b'x'; 4 << 20];
        let mut rest = output.as_slice();
        forward(&mut rest, Some(agent), io::sink());
        assert!(rest.is_empty());
    }
}
