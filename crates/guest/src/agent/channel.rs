//! Attested TLS: the agent's end of it.
//!
//! ```text
//!  boot           a P-384 key that never leaves this process
//!  handshake      certificate older than 30 s ─▶ /dev/nsm: document over the key ─▶ the next certificate of the same key
//!  resumption     a ticket under a key of this boot: no certificate, no document
//!  ALPN enclos-nonce/1   after the handshake the client's nonce, and a document that repeats it
//! ```
//!
//! Certificates are made when they are needed: an enclave that nobody calls asks the NSM for nothing. Many handshakes at once
//! cause one question. When the NSM does not answer, the certificate at hand is used until it is four minutes old, which clients accept by
//! default; after that there is no handshake, since a client would refuse it anyway. The format is in
//! `crates/client/SPEC.md`.

use std::io;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use enclos_attest::channel::{ChannelKey, NONCE_ALPN, NONCE_MAX, NONCE_MIN, PURPOSE};
use enclos_attest::pki::PkiError;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::{Ticketer, default_provider};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{Acceptor, ClientHello, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SigningKey};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::Instant;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::nsm::{AttestError, Fields, Nsm, attest};
use crate::log;

/// Age at which a certificate is replaced. Clients accept documents of five minutes unless told otherwise, and nobody should
/// accept less than this.
pub const RENEW_AFTER: Duration = Duration::from_secs(30);

/// Age until which a certificate is used while there is no newer one to be had.
pub const KEEP_FOR: Duration = Duration::from_secs(240);

/// Nonces that are answered at a time: each takes the NSM, which does one thing after the other.
const NONCES: usize = 4;

/// Why there is no attested TLS.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The key or a certificate could not be made.
    #[error("cannot make a certificate")]
    Certificate(#[from] PkiError),
    /// There is no document.
    #[error("there is no attestation document for the TLS key")]
    Attest(#[from] AttestError),
    /// TLS does not take the key.
    #[error("TLS cannot be set up")]
    Tls(#[from] rustls::Error),
}

/// The enclave's TLS key and its certificate of the moment; one for all ports.
#[derive(Debug)]
pub struct Channel {
    key: ChannelKey,
    signing: Arc<dyn SigningKey>,
    nsm: Arc<dyn Nsm>,
    issued: Mutex<Option<Instant>>,
    current: Arc<Current>,
    plain: Arc<ServerConfig>,
    with_nonce: Arc<ServerConfig>,
    nonces: Semaphore,
}

/// What handshakes present.
#[derive(Debug, Default)]
struct Current(RwLock<Option<Arc<CertifiedKey>>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Channel {
    /// A new key. The first document is asked for with the first handshake.
    ///
    /// # Errors
    /// See [`ChannelError`].
    pub fn new(nsm: Arc<dyn Nsm>) -> Result<Self, ChannelError> {
        let key = ChannelKey::generate()?;
        let pkcs8 = key.pkcs8_der()?;
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8.as_slice())).clone_key();
        let signing = default_provider().key_provider.load_private_key(private)?;
        let current = Arc::<Current>::default();
        let plain = config(&current)?;
        let mut with_nonce = plain.clone();
        with_nonce.alpn_protocols = vec![NONCE_ALPN.to_vec()];
        Ok(Self {
            key,
            signing,
            nsm,
            issued: Mutex::default(),
            current,
            plain: Arc::new(plain),
            with_nonce: Arc::new(with_nonce),
            nonces: Semaphore::new(NONCES),
        })
    }

    /// Ends TLS on `stream`. What the returned stream carries is for the application.
    ///
    /// # Errors
    /// The handshake's; there is no time limit in here.
    pub async fn accept<S>(&self, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        self.renew().await.map_err(io::Error::other)?;
        let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        if !offers_nonce(&start.client_hello()) {
            return start.into_stream(Arc::clone(&self.plain)).await;
        }
        let mut stream = start.into_stream(Arc::clone(&self.with_nonce)).await?;
        self.answer_nonce(&mut stream).await?;
        Ok(stream)
    }

    /// Makes the next certificate, if one is due.
    ///
    /// # Errors
    /// See [`ChannelError`]; only when the certificate at hand is too old to be used meanwhile, or there is none.
    pub async fn renew(&self) -> Result<(), ChannelError> {
        let mut issued = self.issued.lock().await;
        let age = issued.map(|at| at.elapsed());
        if age.is_some_and(|age| age < RENEW_AFTER) {
            return Ok(());
        }
        let began = Instant::now();
        match self.certificate().await {
            Ok(certificate) => {
                let mut current = self
                    .current
                    .0
                    .write()
                    .unwrap_or_else(PoisonError::into_inner);
                *current = Some(certificate);
                *issued = Some(began);
                Ok(())
            }
            Err(error) => {
                let text = log::chain(&error);
                log::line("enclos-agent", format_args!("attested TLS: {text}"));
                let usable = age.is_some_and(|age| age < KEEP_FOR);
                if usable { Ok(()) } else { Err(error) }
            }
        }
    }

    async fn certificate(&self) -> Result<Arc<CertifiedKey>, ChannelError> {
        let document = self.document(None).await?;
        let certificate = CertificateDer::from(self.key.certificate(&document)?);
        let signing = Arc::clone(&self.signing);
        Ok(Arc::new(CertifiedKey::new(vec![certificate], signing)))
    }

    async fn document(&self, nonce: Option<Vec<u8>>) -> Result<Vec<u8>, AttestError> {
        let fields = Fields {
            public_key: Some(self.key.spki_der().to_vec()),
            nonce,
            user_data: Some(PURPOSE.to_vec()),
        };
        attest(&self.nsm, fields).await
    }

    /// One byte of length and the nonce; four bytes of length and the document. Length 0: no nonce, no document.
    async fn answer_nonce(
        &self,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    ) -> io::Result<()> {
        let len = usize::from(stream.read_u8().await?);
        if len == 0 {
            return Ok(());
        }
        if !(NONCE_MIN..=NONCE_MAX).contains(&len) {
            let text = format!("a nonce has {NONCE_MIN} to {NONCE_MAX} bytes, not {len}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let mut nonce = vec![0; len];
        stream.read_exact(&mut nonce).await?;
        let permit = self.nonces.acquire().await.map_err(io::Error::other)?;
        let document = self.document(Some(nonce)).await.map_err(io::Error::other)?;
        drop(permit);
        let len = u32::try_from(document.len()).map_err(io::Error::other)?;
        stream
            .write_all(&[&len.to_be_bytes(), document.as_slice()].concat())
            .await?;
        stream.flush().await
    }
}

fn offers_nonce(hello: &ClientHello<'_>) -> bool {
    let mut offered = hello.alpn().into_iter().flatten();
    offered.any(|protocol| protocol == NONCE_ALPN)
}

/// TLS 1.3, tickets under keys of this boot, no early data.
fn config(current: &Arc<Current>) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::clone(current) as _);
    config.ticketer = Ticketer::new()?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Counts what it is asked, and fails.
    #[derive(Debug, Default)]
    struct Silent(AtomicUsize);

    impl Nsm for Silent {
        fn call(&self, _: &[u8]) -> io::Result<Vec<u8>> {
            self.0.fetch_add(1, Ordering::SeqCst);
            Err(io::ErrorKind::TimedOut.into())
        }
    }

    async fn answer(frame: &[u8]) -> (io::Result<()>, usize) {
        let nsm = Arc::new(Silent::default());
        let channel = Channel::new(Arc::clone(&nsm) as _).unwrap();
        let (mut client, mut server) = tokio::io::duplex(1024);
        client.write_all(frame).await.unwrap();
        client.shutdown().await.unwrap();
        let outcome = channel.answer_nonce(&mut server).await;
        (outcome, nsm.0.load(Ordering::SeqCst))
    }

    #[tokio::test]
    async fn nonces_have_bounds() {
        let frame = |len: u8| [vec![len], vec![7; len.into()]].concat();
        for len in [1, 15, 65, 255] {
            let (outcome, asked) = answer(&frame(len)).await;
            let kind = outcome.unwrap_err().kind();
            assert_eq!((kind, asked), (io::ErrorKind::InvalidData, 0), "{len}");
        }
        for len in [16, 64] {
            let (outcome, asked) = answer(&frame(len)).await;
            assert!(outcome.is_err(), "the NSM failed");
            assert_eq!(asked, 1, "{len}");
        }
        assert!(answer(&frame(0)).await.0.is_ok());
        let cut = answer(&frame(32)[..20]).await.0.unwrap_err();
        assert_eq!(cut.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn without_a_document_there_is_no_handshake() {
        let channel = Channel::new(Arc::new(Silent::default())).unwrap();
        let (_client, server) = tokio::io::duplex(1024);
        let error = channel.accept(server).await.unwrap_err();
        assert!(
            error.to_string().contains("no attestation document"),
            "{error}"
        );
    }
}
