//! The client's side.

use std::fmt;

use hpke::{Deserializable, OpModeS, Serializable, setup_sender};
use zeroize::Zeroizing;

use super::key_schedule::{
    Cipher, Kdf, Kem, PublicKey, ReplySecret, SPKI_PREFIX, random, request_info,
};
use super::wire::{Reply, Request};
use super::{DocumentHash, OpenError, RequestId, SealError};

/// Seals requests to the key of one attestation document.
pub struct Sealer {
    key: PublicKey,
    document: DocumentHash,
}

impl Sealer {
    /// Seals to `public_key_der`, the `public_key` field of `document`, which the caller **has verified**: this
    /// function cannot tell. `Enclave::sealer` does both in one step.
    ///
    /// # Errors
    /// [`SealError::PublicKey`] when the key is not an X25519 `SubjectPublicKeyInfo`.
    pub fn new(public_key_der: &[u8], document: &[u8]) -> Result<Self, SealError> {
        let refused = || SealError::PublicKey {
            len: public_key_der.len(),
        };
        let raw = public_key_der
            .strip_prefix(&SPKI_PREFIX)
            .ok_or_else(refused)?;
        let key = PublicKey::from_bytes(raw).map_err(|_| refused())?;
        Ok(Self {
            key,
            document: DocumentHash::of(document),
        })
    }

    /// Seals one request. The reply can be read by the returned [`PendingReply`] and by nobody else.
    ///
    /// # Errors
    /// [`SealError::Entropy`]; [`SealError::Hpke`] for a key of small order.
    pub fn seal(&self, plaintext: &[u8]) -> Result<(Vec<u8>, PendingReply), SealError> {
        let id = RequestId(random()?);
        let mut bytes = Request::header(self.document, id);
        let info = request_info(self.document);
        let (encapsulated, mut context) =
            setup_sender::<Cipher, Kdf, Kem>(&OpModeS::Base, &self.key, &info)
                .map_err(SealError::Hpke)?;
        let ciphertext = context.seal(plaintext, &bytes).map_err(SealError::Hpke)?;
        let encapsulated: [u8; 32] = encapsulated.to_bytes().into();
        let secret = ReplySecret::export(encapsulated, |label, out| context.export(label, out))
            .map_err(SealError::Hpke)?;
        bytes.extend_from_slice(&encapsulated);
        bytes.extend_from_slice(&ciphertext);
        Ok((bytes, PendingReply { id, secret }))
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer")
            .field("document", &self.document)
            .finish_non_exhaustive()
    }
}

/// The right to read the reply to one request.
pub struct PendingReply {
    pub(super) id: RequestId,
    pub(super) secret: ReplySecret,
}

impl PendingReply {
    /// Id of the request, for logs.
    #[must_use]
    pub fn request_id(&self) -> RequestId {
        self.id
    }

    /// Opens the reply.
    ///
    /// # Errors
    /// [`OpenError`] names what is wrong with the bytes.
    pub fn open(&self, reply: &[u8]) -> Result<Zeroizing<Vec<u8>>, OpenError> {
        let reply = Reply::parse(reply)?;
        if reply.id != self.id {
            return Err(OpenError::OtherRequest {
                found: reply.id,
                expected: self.id,
            });
        }
        let opened = self
            .secret
            .open(&reply.nonce, reply.header, reply.ciphertext);
        opened
            .map(Zeroizing::new)
            .ok_or(OpenError::Undecryptable { expected: "reply" })
    }
}

impl fmt::Debug for PendingReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingReply")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}
