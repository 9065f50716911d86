//! Attested TLS: TLS 1.3 to a server whose certificate carries an attestation document for its own key.
//!
//! ```text
//!  full handshake      Certificate ─▶ Judge: one self-signed certificate ─▶ Verifier: document ─▶ same key? ─▶ Verdict
//!                      CertificateVerify ─▶ the server holds that key
//!  resumed handshake   ticket, kept beside its Verdict ─▶ still young enough, still accepted? ─▶ the same Verdict
//! ```
//!
//! Nothing is sent before there is a [`Verdict`]: the handshake fails first. There is no way around it: no Web PKI, no TLS 1.2,
//! no early data. Names are not looked at, because an enclave is known by what it is and not by where it answers.
//!
//! Sessions belong to one [`AttestedTls`] and so to one [`Verifier`]. A ticket is offered again only while the verdict
//! that it was got under holds: the document's age is within the verifier's limit, its certificates are valid, and
//! expectations and policy accept it at this moment. A resumed session then costs one round trip and no signature. A
//! verdict that no longer holds takes its tickets with it.
//!
//! How fresh a document is, its age says: the enclave makes a new certificate every half minute in which it is called. A client that
//! will not go by the enclave's clock asks with a nonce ([`AttestedTls::with_nonces`]), which costs a round trip per full handshake.
//!
//! The byte layout is in this crate's `SPEC.md`.

mod judge;
mod newest;
mod sessions;
mod stream;
mod transport;

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::SystemTime;

use enclos_attest::UnixMillis;
use enclos_attest::channel::{ChannelError, NONCE_ALPN};
use enclos_attest::document::{DOCUMENT_MAX, VerifiedDocument};
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, HandshakeKind};

use crate::verify::{Refusal, Verifier};
use judge::Judge;
use sessions::{Connection, Sessions};

pub use stream::AttestedStream;
pub(crate) use transport::AttestedConnector;

/// Bytes of a nonce; as much as a hash has.
const NONCE_LEN: u8 = 32;

/// Why a server's certificate was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChannelRefusal {
    /// The certificate carries no document for its key.
    #[error(transparent)]
    Certificate(#[from] ChannelError),
    /// The document was refused.
    #[error(transparent)]
    Document(#[from] Refusal),
    /// More than one certificate.
    #[error("the server sent {found} certificates, expected one that is signed by its own key")]
    Chain {
        /// How many.
        found: usize,
    },
}

/// Why there is no attested connection. Nothing of the application's was sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttestedTlsError {
    /// The server is not the enclave that was expected.
    #[error("the server is not the enclave that was expected")]
    Refused(#[source] Arc<ChannelRefusal>),
    /// The TLS handshake failed.
    #[error("the TLS handshake failed")]
    Tls(#[source] rustls::Error),
    /// The connection broke.
    #[error("the connection ended before the TLS handshake was over")]
    Io(#[source] io::Error),
    /// Not a host and port.
    #[error("{server:?} is not a host that TLS can be spoken with")]
    Server {
        /// What it was.
        server: String,
    },
    /// The address is not an https one.
    #[error("{url} is not an https URL: attested TLS was asked for")]
    Scheme {
        /// What it was.
        url: String,
    },
    /// The server does not know the protocol by which nonces are sent.
    #[error(
        "the server does not answer nonces: ask it for attested TLS without one, or renew the enclave's image"
    )]
    NoNonces,
    /// What came instead of a document for a nonce.
    #[error(
        "the server answered a nonce with {found} bytes, expected a document of at most {DOCUMENT_MAX}"
    )]
    NonceAnswer {
        /// How many bytes it announced.
        found: usize,
    },
    /// No random bytes for a nonce.
    #[error("the system gave no random bytes for a nonce")]
    Entropy(#[source] getrandom::Error),
    /// A verifier that judges documents at their own time.
    #[error(
        "a verifier for records accepts documents of any age: attested TLS needs one for the present"
    )]
    Archival,
}

/// What was found out about a server, and until when that holds.
#[derive(Debug, Clone)]
pub struct Verdict {
    document: VerifiedDocument,
    /// The client's own, if there was one.
    nonce: Option<Vec<u8>>,
    good_until: UnixMillis,
}

impl Verdict {
    /// What the enclave attested.
    #[must_use]
    pub fn document(&self) -> &VerifiedDocument {
        &self.document
    }

    /// The last moment at which it can hold: after it the document is older than the verifier accepts, or a certificate is over.
    #[must_use]
    pub fn good_until(&self) -> UnixMillis {
        self.good_until
    }
}

/// How often what was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Full handshakes that were completed.
    pub full: u64,
    /// Resumed handshakes that were completed.
    pub resumed: u64,
    /// Documents whose signatures were checked.
    pub documents: u64,
}

/// Makes attested connections and keeps their sessions. Clones share everything: keep one for each verifier.
#[derive(Debug, Clone)]
pub struct AttestedTls {
    config: ClientConfig,
    judge: Arc<Judge>,
    sessions: Arc<Sessions>,
}

/// A clock.
pub type Clock = Arc<dyn Fn() -> UnixMillis + Send + Sync>;

impl AttestedTls {
    /// Connections to servers that `verifier` accepts.
    ///
    /// # Errors
    /// [`AttestedTlsError::Archival`], [`AttestedTlsError::Tls`] when the TLS library cannot be set up.
    pub fn new(verifier: Verifier) -> Result<Self, AttestedTlsError> {
        Self::with_clock(verifier, Arc::new(|| SystemTime::now().into()))
    }

    /// As [`Self::new`], with a clock of the caller's.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_clock(verifier: Verifier, clock: Clock) -> Result<Self, AttestedTlsError> {
        if verifier.is_archival() {
            return Err(AttestedTlsError::Archival);
        }
        let provider = Arc::new(default_provider());
        let algorithms = provider.signature_verification_algorithms;
        let judge = Arc::new(Judge::new(verifier, clock, algorithms));
        Self::judged_by(judge, provider)
    }

    /// The same verifier, which from now on demands of each full handshake a document that repeats a nonce of this client's. Sessions
    /// are not taken over.
    ///
    /// # Errors
    /// [`AttestedTlsError::Tls`] when the TLS library cannot be set up.
    pub fn with_nonces(self) -> Result<Self, AttestedTlsError> {
        let judge = Arc::new(self.judge.with_nonces());
        let mut tls = Self::judged_by(judge, Arc::new(default_provider()))?;
        tls.config.alpn_protocols = vec![NONCE_ALPN.to_vec()];
        Ok(tls)
    }

    fn judged_by(
        judge: Arc<Judge>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, AttestedTlsError> {
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(AttestedTlsError::Tls)?;
        let config = builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&judge) as _)
            .with_no_client_auth();
        Ok(Self {
            config,
            judge,
            sessions: Arc::default(),
        })
    }

    /// Speaks TLS over `stream` with `server`, which is `host:port`: sessions are kept under that name.
    ///
    /// # Errors
    /// [`AttestedTlsError`]; of the application's bytes none was sent.
    pub fn connect<S: Read + Write>(
        &self,
        server: &str,
        mut stream: S,
    ) -> Result<AttestedStream<S>, AttestedTlsError> {
        let connection = Arc::new(Connection::new(self, server));
        let mut tls = ClientConnection::new(self.config_for(&connection), name(server)?)
            .map_err(AttestedTlsError::Tls)?;
        while tls.is_handshaking() {
            tls.complete_io(&mut stream).map_err(failed)?;
        }
        let resumed = tls.handshake_kind() == Some(HandshakeKind::Resumed);
        // However long the server takes, that makes no verdict last longer.
        let holds = |verdict: &Arc<Verdict>| self.judge.holds(verdict);
        let known = connection.offered().filter(|_| resumed).filter(holds);
        let verdict = self.verdict_after(known, &mut tls, &mut stream)?;
        self.judge.count(resumed);
        connection.settle(&verdict);
        let judge = Arc::clone(&self.judge);
        Ok(AttestedStream::new(tls, stream, verdict, resumed, judge))
    }

    /// The verdict once TLS has been spoken: that of the session, if one was resumed and it still holds, else about what the server sent.
    fn verdict_after<S: Read + Write>(
        &self,
        known: Option<Arc<Verdict>>,
        tls: &mut ClientConnection,
        stream: &mut S,
    ) -> Result<Arc<Verdict>, AttestedTlsError> {
        if !self.judge.wants_nonces() {
            // The judge has just accepted this certificate and remembers it.
            let sent = tls.peer_certificates().unwrap_or_default();
            let judged = known.map_or_else(|| self.judge.verdict(sent), Ok);
            return judged.map_err(|refusal| AttestedTlsError::Refused(Arc::new(refusal)));
        }
        if tls.alpn_protocol() != Some(NONCE_ALPN) {
            return Err(AttestedTlsError::NoNonces);
        }
        let Some(verdict) = known else {
            return self.challenge(tls, stream);
        };
        let mut stream = rustls::Stream::new(tls, stream);
        stream.write_all(&[0]).map_err(AttestedTlsError::Io)?;
        Ok(verdict)
    }

    /// Sends a nonce and judges the document that comes back.
    fn challenge<S: Read + Write>(
        &self,
        tls: &mut ClientConnection,
        stream: &mut S,
    ) -> Result<Arc<Verdict>, AttestedTlsError> {
        let mut nonce = [0; NONCE_LEN as usize];
        getrandom::fill(&mut nonce).map_err(AttestedTlsError::Entropy)?;
        let answer = ask(&mut rustls::Stream::new(tls, stream), &nonce)?;
        let sent = tls.peer_certificates().unwrap_or_default();
        let verdict = self.judge.answered(sent, &answer, &nonce);
        verdict.map_err(|refusal| AttestedTlsError::Refused(Arc::new(refusal)))
    }

    /// The configuration for one connection: what it learns about sessions goes where its verdict is known.
    fn config_for(&self, connection: &Arc<Connection>) -> Arc<ClientConfig> {
        let mut config = self.config.clone();
        config.resumption = Resumption::store(Arc::clone(connection) as _);
        Arc::new(config)
    }

    /// The last verdict about `server`, which is `host:port`, if one still holds.
    #[must_use]
    pub fn verdict(&self, server: &str) -> Option<Arc<Verdict>> {
        self.sessions
            .verdict(server)
            .filter(|verdict| self.judge.holds(verdict))
    }

    /// The same for the server of an https URL.
    #[must_use]
    pub fn verdict_of(&self, url: &str) -> Option<Arc<Verdict>> {
        let server = transport::server_of(&url.parse().ok()?).ok()?;
        self.verdict(&server)
    }

    /// How often what was done since this was made.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.judge.counts()
    }
}

/// One byte of length and the nonce; four bytes of length and the document.
fn ask(stream: &mut (impl Read + Write), nonce: &[u8]) -> Result<Vec<u8>, AttestedTlsError> {
    let mut exchange = || {
        stream.write_all(&[&[NONCE_LEN], nonce].concat())?;
        stream.flush()?;
        let mut len = [0; 4];
        stream.read_exact(&mut len)?;
        Ok(u32::from_be_bytes(len))
    };
    let found = exchange().map_err(AttestedTlsError::Io)?;
    let found = usize::try_from(found).unwrap_or(usize::MAX);
    if found > DOCUMENT_MAX {
        return Err(AttestedTlsError::NonceAnswer { found });
    }
    let mut document = vec![0; found];
    stream
        .read_exact(&mut document)
        .map_err(AttestedTlsError::Io)?;
    Ok(document)
}

fn name(server: &str) -> Result<ServerName<'static>, AttestedTlsError> {
    let unusable = || AttestedTlsError::Server {
        server: server.to_owned(),
    };
    let (host, port) = server.rsplit_once(':').ok_or_else(unusable)?;
    port.parse::<u16>().map_err(|_| unusable())?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    ServerName::try_from(host.to_owned()).map_err(|_| unusable())
}

/// The reason behind an error of the handshake, where it is a refusal of ours.
fn failed(error: io::Error) -> AttestedTlsError {
    use rustls::CertificateError::Other;
    use rustls::Error::InvalidCertificate;
    let inner = error.get_ref();
    let Some(tls) = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
        return AttestedTlsError::Io(error);
    };
    let refused = match tls {
        InvalidCertificate(Other(other)) => other.0.downcast_ref::<judge::Refused>(),
        _ => None,
    };
    match refused {
        Some(judge::Refused(refusal)) => AttestedTlsError::Refused(Arc::clone(refusal)),
        None => AttestedTlsError::Tls(tls.clone()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    /// A server that says this, whatever it hears.
    struct Peer {
        says: Cursor<Vec<u8>>,
        hears: Vec<u8>,
    }

    impl Peer {
        fn announcing(len: u32, document: &[u8]) -> Self {
            let says = [&len.to_be_bytes(), document].concat();
            Self {
                says: Cursor::new(says),
                hears: Vec::new(),
            }
        }
    }

    impl Read for Peer {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.says.read(buffer)
        }
    }

    impl Write for Peer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.hears.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_nonce_is_answered_with_a_document_within_its_bound() {
        let nonce = [7; 32];
        for len in [0, 5, 16_640] {
            let document = vec![3; len];
            let mut peer = Peer::announcing(u32::try_from(len).unwrap(), &document);
            assert_eq!(ask(&mut peer, &nonce).unwrap(), document);
            assert_eq!(peer.hears, [&[32][..], &nonce].concat());
        }
        for announced in [16_641, u32::MAX] {
            let error = ask(&mut Peer::announcing(announced, &[]), &nonce).unwrap_err();
            let expected = usize::try_from(announced).unwrap();
            assert!(
                matches!(error, AttestedTlsError::NonceAnswer { found } if found == expected),
                "{error}"
            );
        }
        let short = ask(&mut Peer::announcing(6, b"short"), &nonce).unwrap_err();
        assert!(matches!(short, AttestedTlsError::Io(_)), "{short}");
    }
}
