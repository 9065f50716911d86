//! The enclave's side.
//!
//! An [`Opener`] answers for the documents that it was told of, each for [`Limits::document_lifetime`], and remembers
//! the ids of the requests opened for each, so that none is opened twice. Both memories are bounded: when one is full
//! the oldest document is retired together with its ids. A client of a retired document gets
//! [`OpenError::UnknownDocument`] and fetches a fresh one; a replay is never accepted because memory ran out. A retired
//! document cannot be offered again, since the ids that would tell its replays are gone.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hpke::{Deserializable, Kem as _, OpModeR, Serializable, setup_receiver};
use zeroize::Zeroizing;

use super::key_schedule::{
    Cipher, EncappedKey, Kdf, Kem, PrivateKey, ReplySecret, SPKI_PREFIX, random, request_info,
};
use super::wire::{Reply, Request};
use super::{DocumentHash, OpenError, RequestId, SealError};

/// How much an [`Opener`] remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long requests to a document are accepted after it was offered.
    pub document_lifetime: Duration,
    /// Documents answered for at one time; at least 1.
    pub documents: usize,
    /// Request ids remembered over all documents; about 40 bytes each. At least 1.
    pub requests: usize,
}

impl Default for Limits {
    /// Ten minutes, 4,096 documents, 262,144 requests (about 10 MiB).
    fn default() -> Self {
        let document_lifetime = Duration::from_secs(600);
        Self {
            document_lifetime,
            documents: 4096,
            requests: 1 << 18,
        }
    }
}

/// Opens sealed requests inside the enclave. Share it between threads behind a reference.
pub struct Opener {
    key: PrivateKey,
    public_key_der: [u8; 44],
    limits: Limits,
    memory: Mutex<Memory>,
}

impl Opener {
    /// A fresh key pair with the default [`Limits`]. The private key never leaves this value.
    ///
    /// # Errors
    /// [`SealError::Entropy`].
    pub fn generate() -> Result<Self, SealError> {
        Self::with_limits(Limits::default())
    }

    /// A fresh key pair.
    ///
    /// # Errors
    /// [`SealError::Entropy`].
    pub fn with_limits(limits: Limits) -> Result<Self, SealError> {
        Ok(Self::from_seed(&Zeroizing::new(random()?), limits))
    }

    pub(super) fn from_seed(seed: &[u8; 32], limits: Limits) -> Self {
        let (key, public) = Kem::derive_keypair(seed);
        let mut public_key_der = [0; 44];
        public_key_der[..12].copy_from_slice(&SPKI_PREFIX);
        public_key_der[12..].copy_from_slice(&public.to_bytes());
        Self {
            key,
            public_key_der,
            limits,
            memory: Mutex::default(),
        }
    }

    /// The public key as DER `SubjectPublicKeyInfo`: the `public_key` of the attestation request.
    #[must_use]
    pub fn public_key_der(&self) -> &[u8; 44] {
        &self.public_key_der
    }

    /// Answers for requests sealed to `document` from now on, for [`Limits::document_lifetime`]. Call it with the bytes
    /// of every fresh document that is handed to a client and that carries [`Self::public_key_der`]; a document that is
    /// known or retired stays what it is.
    pub fn offer(&self, document: &[u8]) {
        self.offer_at(document, Instant::now());
    }

    /// Opens a sealed request.
    ///
    /// # Errors
    /// [`OpenError`] names the reason; tell it to the client, it holds no secret.
    pub fn open(&self, sealed: &[u8]) -> Result<Opened, OpenError> {
        self.open_at(sealed, Instant::now())
    }

    pub(super) fn offer_at(&self, document: &[u8], now: Instant) {
        self.memory()
            .offer(DocumentHash::of(document), now, &self.limits);
    }

    pub(super) fn open_at(&self, sealed: &[u8], now: Instant) -> Result<Opened, OpenError> {
        let request = Request::parse(sealed)?;
        self.memory()
            .expect_document(request.document, now, &self.limits)?;
        let opened = self.decrypt(&request).ok_or(OpenError::Undecryptable {
            expected: "request",
        })?;
        // After decryption only: a forged message must not be able to burn the id of a genuine one.
        self.memory()
            .accept_once(request.document, request.id, &self.limits)?;
        Ok(opened)
    }

    fn decrypt(&self, request: &Request<'_>) -> Option<Opened> {
        let encapsulated = EncappedKey::from_bytes(&request.encapsulated).ok()?;
        let info = request_info(request.document);
        let mut context =
            setup_receiver::<Cipher, Kdf, Kem>(&OpModeR::Base, &self.key, &encapsulated, &info)
                .ok()?;
        let plaintext = Zeroizing::new(context.open(request.ciphertext, request.header).ok()?);
        let secret = ReplySecret::export(request.encapsulated, |label, out| {
            context.export(label, out)
        })
        .ok()?;
        Some(Opened {
            id: request.id,
            plaintext,
            secret,
        })
    }

    /// A panic elsewhere cannot leave the memory half-written in a way that matters: every update is one
    /// insertion.
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opener")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// An opened request: what the client said, and the one way to answer it.
pub struct Opened {
    id: RequestId,
    plaintext: Zeroizing<Vec<u8>>,
    secret: ReplySecret,
}

impl Opened {
    /// What the client sealed.
    #[must_use]
    pub fn plaintext(&self) -> &[u8] {
        &self.plaintext
    }

    /// Id of the request, for logs.
    #[must_use]
    pub fn request_id(&self) -> RequestId {
        self.id
    }

    /// Seals the answer; only the client that sealed the request can read it.
    ///
    /// # Errors
    /// [`SealError::Entropy`].
    pub fn reply(self, plaintext: &[u8]) -> Result<Vec<u8>, SealError> {
        self.reply_with(&random()?, plaintext)
    }

    pub(super) fn reply_with(
        self,
        nonce: &[u8; 32],
        plaintext: &[u8],
    ) -> Result<Vec<u8>, SealError> {
        let mut bytes = Reply::header(self.id, nonce);
        let sealed = self.secret.seal(nonce, &bytes, plaintext);
        bytes.extend(sealed.ok_or(SealError::Hpke(hpke::HpkeError::SealError))?);
        Ok(bytes)
    }

    /// What the client of this request would hold.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn into_pending(self) -> super::PendingReply {
        super::PendingReply {
            id: self.id,
            secret: self.secret,
        }
    }
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// Documents offered, oldest first, each with the requests opened for it.
#[derive(Default)]
struct Memory {
    documents: VecDeque<Offered>,
    requests: usize,
    retired: VecDeque<DocumentHash>,
}

/// Retired documents remembered for each document answered for: 32 bytes each, 512 KiB by default.
const RETIRED_PER_DOCUMENT: usize = 4;

struct Offered {
    document: DocumentHash,
    since: Instant,
    opened: HashSet<RequestId>,
}

impl Memory {
    fn offer(&mut self, document: DocumentHash, now: Instant, limits: &Limits) {
        self.expire(now, limits);
        // The same bytes offered twice keep their ids: forgetting them would open the door to replays.
        let known = self
            .documents
            .iter()
            .any(|offered| offered.document == document);
        if known || self.retired.contains(&document) {
            return;
        }
        while self.documents.len() >= limits.documents.max(1) {
            self.retire_oldest(limits);
        }
        self.documents.push_back(Offered {
            document,
            since: now,
            opened: HashSet::new(),
        });
    }

    fn expect_document(
        &mut self,
        document: DocumentHash,
        now: Instant,
        limits: &Limits,
    ) -> Result<(), OpenError> {
        self.expire(now, limits);
        let known = self
            .documents
            .iter()
            .any(|offered| offered.document == document);
        known
            .then_some(())
            .ok_or(OpenError::UnknownDocument { document })
    }

    /// Atomic under the lock: of two equal requests in two threads one is refused.
    fn accept_once(
        &mut self,
        document: DocumentHash,
        id: RequestId,
        limits: &Limits,
    ) -> Result<(), OpenError> {
        while self.requests >= limits.requests.max(1) {
            self.retire_oldest(limits);
        }
        let offered = self
            .documents
            .iter_mut()
            .find(|offered| offered.document == document);
        let offered = offered.ok_or(OpenError::UnknownDocument { document })?;
        if !offered.opened.insert(id) {
            return Err(OpenError::Replayed { id });
        }
        self.requests += 1;
        Ok(())
    }

    fn expire(&mut self, now: Instant, limits: &Limits) {
        while let Some(oldest) = self.documents.front()
            && now.saturating_duration_since(oldest.since) >= limits.document_lifetime
        {
            self.retire_oldest(limits);
        }
    }

    fn retire_oldest(&mut self, limits: &Limits) {
        let Some(oldest) = self.documents.pop_front() else {
            self.requests = 0;
            return;
        };
        self.requests -= oldest.opened.len();
        if self.retired.len() >= limits.documents.saturating_mul(RETIRED_PER_DOCUMENT) {
            self.retired.pop_front();
        }
        self.retired.push_back(oldest.document);
    }
}
