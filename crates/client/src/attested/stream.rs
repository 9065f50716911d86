//! An attested connection.

use std::io::{self, Read, Write};
use std::sync::Arc;

use rustls::{ClientConnection, StreamOwned};

use super::Verdict;
use super::judge::Judge;

/// A connection to an enclave that was accepted. There is no other way to one than [`super::AttestedTls::connect`].
#[derive(Debug)]
pub struct AttestedStream<S: Read + Write> {
    stream: StreamOwned<ClientConnection, S>,
    verdict: Arc<Verdict>,
    resumed: bool,
    judge: Arc<Judge>,
}

impl<S: Read + Write> AttestedStream<S> {
    pub(super) fn new(
        tls: ClientConnection,
        stream: S,
        verdict: Arc<Verdict>,
        resumed: bool,
        judge: Arc<Judge>,
    ) -> Self {
        Self {
            stream: StreamOwned::new(tls, stream),
            verdict,
            resumed,
            judge,
        }
    }

    /// What was found out about the server.
    #[must_use]
    pub fn verdict(&self) -> &Arc<Verdict> {
        &self.verdict
    }

    /// Whether an earlier session was resumed, so that no document was looked at (unless its verdict ended during the handshake).
    #[must_use]
    pub fn is_resumed(&self) -> bool {
        self.resumed
    }

    /// Whether the verdict still holds. A connection that outlives its verdict should not be used for anything new.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.judge.holds(&self.verdict)
    }

    /// Says that nothing more will be sent, so that the server can tell an end from a cut.
    ///
    /// # Errors
    /// The underlying stream's.
    pub fn close(&mut self) -> io::Result<()> {
        self.stream.conn.send_close_notify();
        self.stream.flush()
    }

    /// The stream below TLS.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.stream.sock
    }
}

impl<S: Read + Write> Read for AttestedStream<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer)
    }
}

impl<S: Read + Write> Write for AttestedStream<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
