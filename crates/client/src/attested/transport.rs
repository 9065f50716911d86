//! HTTP over attested connections: the link between `ureq` and [`AttestedTls`].

use std::fmt;
use std::io::{self, ErrorKind};

use ureq::Error;
use ureq::http::Uri;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport, TransportAdapter,
};

use super::{AttestedStream, AttestedTls, AttestedTlsError};

/// Port of https URLs that name none.
const HTTPS: u16 = 443;

/// `host:port` of an https URL.
pub(crate) fn server_of(url: &Uri) -> Result<String, AttestedTlsError> {
    let authority = url
        .authority()
        .filter(|_| url.scheme_str() == Some("https"));
    let authority = authority.ok_or_else(|| AttestedTlsError::Scheme {
        url: url.to_string(),
    })?;
    let port = authority.port_u16().unwrap_or(HTTPS);
    Ok(format!("{}:{port}", authority.host()))
}

/// Makes every connection an attested one.
#[derive(Debug)]
pub(crate) struct AttestedConnector(pub(crate) AttestedTls);

impl<In: Transport> Connector<In> for AttestedConnector {
    type Out = AttestedTransport;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> Result<Option<Self::Out>, Error> {
        let other = |error: AttestedTlsError| Error::Other(Box::new(error));
        let Some(transport) = chained else {
            return Ok(None);
        };
        let server = server_of(details.uri).map_err(other)?;
        let transport: Box<dyn Transport> = Box::new(transport);
        let mut below = TransportAdapter::new(transport, details.current_time.clone());
        below.set_timeout(details.timeout);
        let stream = self.0.connect(&server, below).map_err(other)?;
        let (input, output) = (
            details.config.input_buffer_size(),
            details.config.output_buffer_size(),
        );
        Ok(Some(AttestedTransport {
            buffers: LazyBuffers::new(input, output),
            stream,
        }))
    }
}

/// Whoever carries the connection can end it, but not in the server's name: TLS says when the server has ended it.
#[derive(Debug, thiserror::Error)]
#[error("the connection was cut: the server did not say that it had sent everything")]
struct Cut(#[source] io::Error);

/// `ureq` takes the end of a connection for the end of an answer whose length nobody told, whatever ended it.
fn cut(error: io::Error) -> io::Error {
    match error.kind() {
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted => {
            io::Error::other(Cut(error))
        }
        _ => error,
    }
}

/// A connection for one exchange after the other.
pub(crate) struct AttestedTransport {
    buffers: LazyBuffers,
    stream: AttestedStream<TransportAdapter>,
}

impl Transport for AttestedTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.stream.get_mut().set_timeout(timeout);
        let output = &self.buffers.output()[..amount];
        std::io::Write::write_all(&mut self.stream, output)?;
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.stream.get_mut().set_timeout(timeout);
        let input = self.buffers.input_append_buf();
        let amount = std::io::Read::read(&mut self.stream, input).map_err(cut)?;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    /// Asked before a kept connection is used again: not when its verdict is over.
    fn is_open(&mut self) -> bool {
        self.stream.holds() && self.stream.get_mut().get_mut().is_open()
    }

    fn is_tls(&self) -> bool {
        true
    }
}

impl fmt::Debug for AttestedTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AttestedTransport").finish_non_exhaustive()
    }
}
