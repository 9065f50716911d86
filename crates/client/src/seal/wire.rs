//! Byte layout of sealed messages, and nothing else: no cryptography here. See `SPEC.md`.

use super::{DocumentHash, OpenError, RequestId};

const MAGIC: [u8; 4] = *b"ENCS";
const VERSION: u8 = 1;

/// Magic, version and kind.
const PREAMBLE: usize = 6;

/// Length of the AES-256-GCM tag at the end of every ciphertext.
pub(super) const TAG: usize = 16;

/// Part of a request that is authenticated as associated data: preamble, document hash, request id.
const REQUEST_HEADER: usize = PREAMBLE + 32 + 16;

/// Bytes of a request before the ciphertext: header and encapsulated key.
pub(super) const REQUEST_PREFIX: usize = REQUEST_HEADER + 32;

/// Bytes of a reply before the ciphertext: preamble, request id, nonce. All are associated data.
pub(super) const REPLY_PREFIX: usize = PREAMBLE + 16 + 32;

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Request = 1,
    Reply = 2,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Reply => "reply",
        }
    }
}

/// A request, taken apart.
#[derive(Debug)]
pub(super) struct Request<'a> {
    pub(super) document: DocumentHash,
    pub(super) id: RequestId,
    pub(super) encapsulated: [u8; 32],
    /// Associated data.
    pub(super) header: &'a [u8],
    pub(super) ciphertext: &'a [u8],
}

impl<'a> Request<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, OpenError> {
        let mut fields = Fields::open(bytes, Kind::Request, REQUEST_PREFIX + TAG)?;
        Ok(Self {
            document: DocumentHash(fields.take()?),
            id: RequestId(fields.take()?),
            header: fields.passed(),
            encapsulated: fields.take()?,
            ciphertext: fields.rest(),
        })
    }

    pub(super) fn header(document: DocumentHash, id: RequestId) -> Vec<u8> {
        let mut bytes = preamble(Kind::Request, REQUEST_PREFIX);
        bytes.extend_from_slice(&document.0);
        bytes.extend_from_slice(&id.0);
        bytes
    }
}

/// A reply, taken apart.
#[derive(Debug)]
pub(super) struct Reply<'a> {
    pub(super) id: RequestId,
    pub(super) nonce: [u8; 32],
    /// Associated data.
    pub(super) header: &'a [u8],
    pub(super) ciphertext: &'a [u8],
}

impl<'a> Reply<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, OpenError> {
        let mut fields = Fields::open(bytes, Kind::Reply, REPLY_PREFIX + TAG)?;
        Ok(Self {
            id: RequestId(fields.take()?),
            nonce: fields.take()?,
            header: fields.passed(),
            ciphertext: fields.rest(),
        })
    }

    pub(super) fn header(id: RequestId, nonce: &[u8; 32]) -> Vec<u8> {
        let mut bytes = preamble(Kind::Reply, REPLY_PREFIX);
        bytes.extend_from_slice(&id.0);
        bytes.extend_from_slice(nonce);
        bytes
    }
}

fn preamble(kind: Kind, capacity: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(capacity);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&[VERSION, kind as u8]);
    bytes
}

/// A cursor over the fixed part of a message.
struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
    kind: Kind,
    minimum: usize,
}

impl<'a> Fields<'a> {
    /// Checks length, magic, version and kind. What a message is comes before whether it is long enough, so that plain
    /// text sent by mistake is called what it is.
    fn open(bytes: &'a [u8], kind: Kind, minimum: usize) -> Result<Self, OpenError> {
        let mut fields = Self {
            bytes,
            at: 0,
            kind,
            minimum,
        };
        let found: [u8; 4] = fields.take()?;
        if found != MAGIC {
            return Err(OpenError::Magic { found });
        }
        let [version, found] = fields.take()?;
        if version != VERSION {
            return Err(OpenError::Version { found: version });
        }
        if found != kind as u8 {
            return Err(OpenError::Kind {
                expected: kind.name(),
                found,
            });
        }
        if bytes.len() < minimum {
            return Err(fields.truncated());
        }
        Ok(fields)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], OpenError> {
        let field = self.rest().first_chunk().ok_or_else(|| self.truncated())?;
        self.at += N;
        Ok(*field)
    }

    fn passed(&self) -> &'a [u8] {
        &self.bytes[..self.at]
    }

    fn rest(&self) -> &'a [u8] {
        &self.bytes[self.at..]
    }

    fn truncated(&self) -> OpenError {
        let (len, minimum) = (self.bytes.len(), self.minimum);
        OpenError::Truncated {
            len,
            minimum,
            expected: self.kind.name(),
        }
    }
}
