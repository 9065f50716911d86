//! Decides about certificates, in the middle of a handshake.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use enclos_attest::UnixMillis;
use enclos_attest::channel::ChannelCertificate;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, PeerIncompatible, SignatureScheme,
};
use sha2::{Digest, Sha256};

use super::newest::Newest;
use super::{ChannelRefusal, Clock, Counts, Verdict};
use crate::verify::Verifier;

/// Certificates whose verdict is remembered. A certificate lives for less than a minute, so this is many servers.
const KNOWN: usize = 64;

/// The verifier, a clock, and the verdicts that were reached.
pub(super) struct Judge {
    verifier: Verifier,
    clock: Clock,
    algorithms: WebPkiSupportedAlgorithms,
    /// A certificate alone decides nothing: the document that counts comes after the handshake and repeats a nonce.
    nonces: bool,
    known: Mutex<Newest<(Fingerprint, Arc<Verdict>), KNOWN>>,
    full: AtomicU64,
    resumed: AtomicU64,
    documents: AtomicU64,
}

/// SHA-256 of a certificate.
type Fingerprint = [u8; 32];

/// A refusal on its way through the TLS library.
#[derive(Debug, Clone, thiserror::Error)]
#[error(transparent)]
pub(super) struct Refused(pub(super) Arc<ChannelRefusal>);

impl Judge {
    pub(super) fn new(
        verifier: Verifier,
        clock: Clock,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Self {
        Self {
            verifier,
            clock,
            algorithms,
            nonces: false,
            known: Mutex::default(),
            full: AtomicU64::new(0),
            resumed: AtomicU64::new(0),
            documents: AtomicU64::new(0),
        }
    }

    /// The same, with nonces demanded and nothing remembered.
    pub(super) fn with_nonces(&self) -> Self {
        let (verifier, clock) = (self.verifier.clone(), Arc::clone(&self.clock));
        let mut judge = Self::new(verifier, clock, self.algorithms);
        judge.nonces = true;
        judge
    }

    pub(super) fn wants_nonces(&self) -> bool {
        self.nonces
    }

    /// The verdict about what a server sent: remembered for these exact bytes while it holds, else reached.
    pub(super) fn verdict(
        &self,
        sent: &[CertificateDer<'_>],
    ) -> Result<Arc<Verdict>, ChannelRefusal> {
        let certificate = alone(sent)?;
        let fingerprint = Sha256::digest(certificate).into();
        if let Some(verdict) = self.remembered(&fingerprint) {
            return Ok(verdict);
        }
        let verdict = Arc::new(self.judge(certificate)?);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.keep((fingerprint, Arc::clone(&verdict)));
        Ok(verdict)
    }

    fn remembered(&self, fingerprint: &Fingerprint) -> Option<Arc<Verdict>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let found = known.find(|(known, _)| known == fingerprint);
        let verdict = found.map(|(_, verdict)| Arc::clone(verdict))?;
        self.holds(&verdict).then_some(verdict)
    }

    fn judge(&self, certificate: &[u8]) -> Result<Verdict, ChannelRefusal> {
        let certificate = ChannelCertificate::parse(certificate)?;
        self.decide(&certificate, certificate.document(), None)
    }

    /// The verdict about a document that a server made for a nonce, over the key of its certificate.
    pub(super) fn answered(
        &self,
        sent: &[CertificateDer<'_>],
        document: &[u8],
        nonce: &[u8],
    ) -> Result<Arc<Verdict>, ChannelRefusal> {
        let certificate = ChannelCertificate::parse(alone(sent)?)?;
        self.decide(&certificate, document, Some(nonce))
            .map(Arc::new)
    }

    fn decide(
        &self,
        certificate: &ChannelCertificate,
        document: &[u8],
        nonce: Option<&[u8]>,
    ) -> Result<Verdict, ChannelRefusal> {
        let now = (self.clock)();
        self.documents.fetch_add(1, Relaxed);
        let document = self.verifier.verify_at(document, nonce, now)?;
        certificate.check(&document, now)?;
        Ok(Verdict {
            good_until: self.verifier.good_until(&document),
            nonce: nonce.map(<[u8]>::to_vec),
            document,
        })
    }

    /// Whether a verdict about a document is still what would be decided now, apart from signatures, which do not change.
    pub(super) fn holds(&self, verdict: &Verdict) -> bool {
        let now: UnixMillis = (self.clock)();
        let (document, nonce) = (&verdict.document, verdict.nonce.as_deref());
        self.verifier.still_accepts(document, nonce, now)
    }

    pub(super) fn count(&self, resumed: bool) {
        let counter = if resumed { &self.resumed } else { &self.full };
        counter.fetch_add(1, Relaxed);
    }

    pub(super) fn counts(&self) -> Counts {
        Counts {
            full: self.full.load(Relaxed),
            resumed: self.resumed.load(Relaxed),
            documents: self.documents.load(Relaxed),
        }
    }
}

/// The only certificate that was sent.
fn alone<'a>(sent: &'a [CertificateDer<'_>]) -> Result<&'a [u8], ChannelRefusal> {
    match sent {
        [certificate] => Ok(certificate),
        others => Err(ChannelRefusal::Chain {
            found: others.len(),
        }),
    }
}

impl fmt::Debug for Judge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Judge")
            .field("verifier", &self.verifier)
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}

impl ServerCertVerifier for Judge {
    /// Neither the name nor the TLS library's clock has a say.
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let judged = match (intermediates.len(), self.nonces) {
            (0, false) => self.verdict(std::slice::from_ref(end_entity)).map(drop),
            // It is looked at again, with the document that answers the nonce.
            (0, true) => ChannelCertificate::parse(end_entity)
                .map(drop)
                .map_err(Into::into),
            (others, _) => Err(ChannelRefusal::Chain { found: others + 1 }),
        };
        let refused = |refusal| Refused(Arc::new(refusal));
        match judged.map_err(refused) {
            Ok(()) => Ok(ServerCertVerified::assertion()),
            Err(refused) => Err(CertificateError::Other(OtherError(Arc::new(refused))).into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP384_SHA384]
    }
}
