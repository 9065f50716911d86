//! The Nitro Secure Module: one per enclave, served by the enclave's monitor.
//!
//! [`Nsm`] is the machine: request bytes in, response bytes out, no I/O. What it cannot know (the time, random
//! bytes, the key that signs documents) it asks of its [`NsmHost`]. The device that carries the bytes is
//! somebody else's; so is the decision when a signing certificate is renewed.
//!
//! ```text
//!  request ──▶ longer than 4096? ─▶ InputTooLarge
//!              not one request?  ─▶ InvalidOperation
//!              │
//!              ├─ DescribeNSM, DescribePCR, GetRandom   change nothing
//!              ├─ ExtendPCR   locked? ─▶ ReadOnlyIndex   new = H(old ‖ data)
//!              ├─ LockPCR     locked? ─▶ ReadOnlyIndex   never undone
//!              ├─ LockPCRs    already locked members are fine
//!              └─ Attestation document of all locked registers, signed by the host's leaf key
//!  response ─▶ longer than 0x3000? ─▶ BufferTooSmall
//! ```
//!
//! Registers 0 to 15 are locked before the enclave runs, so they are in every document; 16 to 31 are the
//! enclave's to extend, and appear once it has locked them.

mod message;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::error::Error;

pub use message::{
    ATTESTATION_FIELD_MAX, Description, ErrorCode, REQUEST_MAX, RESPONSE_MAX, Request, Response,
};

pub use crate::cbor::CborError;
use crate::document::Claims;
use crate::pcr::{PCR_COUNT, PcrIndex, PcrValue};
use crate::pki::{self, LeafIdentity};
use crate::time::UnixMillis;

/// Random bytes in a GetRandom response. The kernel's hwrng driver needs at least 24 and AWS sends 256.
pub const RANDOM_LEN: usize = 256;

/// Version that the module reports, as AWS's does.
const VERSION: [u16; 3] = [1, 0, 0];

/// Registers that are read-only from the start: 0 to 15.
const LOCKED_AT_BOOT: usize = 16;

/// Why a host could not serve its module. The enclave only sees `InternalError`; a host that wants the reason
/// on record logs it before returning it.
pub type HostError = Box<dyn Error + Send + Sync>;

/// What the module asks of its surroundings.
pub trait NsmHost {
    /// The time for documents.
    fn now(&self) -> UnixMillis;

    /// The key and certificates that sign documents at [`NsmHost::now`]; renew them here when due.
    ///
    /// # Errors
    /// Any reason why there is none.
    fn signer(&mut self) -> Result<&LeafIdentity, HostError>;

    /// Fills `out` with random bytes; by default from this process's cryptographic generator.
    ///
    /// # Errors
    /// When the generator fails.
    fn random(&mut self, out: &mut [u8]) -> Result<(), HostError> {
        Ok(pki::random(out)?)
    }
}

/// One register.
#[derive(Debug, Clone, Copy)]
struct Register {
    value: PcrValue,
    locked: bool,
}

/// The state of one enclave's module.
#[derive(Debug, Clone)]
pub struct Nsm {
    module_id: String,
    registers: [Register; PCR_COUNT],
}

impl Nsm {
    /// A module whose registers hold `boot_pcrs`, and zeros elsewhere. Registers 0 to 15 are locked, and so is
    /// any other that `boot_pcrs` names.
    #[must_use]
    pub fn new(module_id: String, boot_pcrs: &BTreeMap<PcrIndex, PcrValue>) -> Self {
        let mut registers = [Register {
            value: PcrValue::ZERO,
            locked: false,
        }; PCR_COUNT];
        for index in PcrIndex::all() {
            let value = boot_pcrs.get(&index);
            registers[index.as_usize()] = Register {
                value: value.copied().unwrap_or(PcrValue::ZERO),
                locked: value.is_some() || index.as_usize() < LOCKED_AT_BOOT,
            };
        }
        Self {
            module_id,
            registers,
        }
    }

    /// The module's id.
    #[must_use]
    pub fn module_id(&self) -> &str {
        &self.module_id
    }

    /// Answers one request. Never panics, whatever the bytes; the answer is never longer than
    /// [`RESPONSE_MAX`].
    pub fn handle(&mut self, request: &[u8], host: &mut dyn NsmHost) -> Vec<u8> {
        let response = self.respond(request, host).unwrap_or_else(Response::Error);
        let bytes = response.encode();
        if bytes.len() > RESPONSE_MAX {
            return Response::Error(ErrorCode::BufferTooSmall).encode();
        }
        bytes
    }

    fn respond(&mut self, bytes: &[u8], host: &mut dyn NsmHost) -> Result<Response, ErrorCode> {
        if bytes.len() > REQUEST_MAX {
            return Err(ErrorCode::InputTooLarge);
        }
        match Request::decode(bytes).map_err(|_| ErrorCode::InvalidOperation)? {
            Request::DescribeNsm => Ok(Response::DescribeNsm(self.describe())),
            Request::GetRandom => random(host),
            Request::DescribePcr { index } => {
                let Register { value, locked } = *self.register(index)?;
                Ok(Response::DescribePcr {
                    lock: locked,
                    data: value,
                })
            }
            Request::ExtendPcr { index, data } => {
                let register = self.writable(index)?;
                register.value = register.value.extend(&data);
                Ok(Response::ExtendPcr {
                    data: register.value,
                })
            }
            Request::LockPcr { index } => {
                self.writable(index)?.locked = true;
                Ok(Response::LockPcr)
            }
            Request::LockPcrs { range } => self.lock_first(range),
            Request::Attestation {
                user_data,
                nonce,
                public_key,
            } => self.attest([user_data, nonce, public_key], host),
        }
    }

    fn describe(&self) -> Description {
        let [version_major, version_minor, version_patch] = VERSION;
        Description {
            version_major,
            version_minor,
            version_patch,
            module_id: self.module_id.clone(),
            max_pcrs: 32,
            locked_pcrs: self
                .locked()
                .map(|(index, _)| u16::from(index.get()))
                .collect(),
            digest: "SHA384".to_owned(),
        }
    }

    fn lock_first(&mut self, range: u16) -> Result<Response, ErrorCode> {
        let range = usize::from(range);
        let members = self
            .registers
            .get_mut(..range)
            .ok_or(ErrorCode::InvalidIndex)?;
        members
            .iter_mut()
            .for_each(|register| register.locked = true);
        Ok(Response::LockPcrs)
    }

    fn attest(
        &self,
        fields: [Option<Vec<u8>>; 3],
        host: &mut dyn NsmHost,
    ) -> Result<Response, ErrorCode> {
        let too_long = |field: &Vec<u8>| field.len() > ATTESTATION_FIELD_MAX;
        let [user_data, nonce, public_key] = fields;
        // A verifier refuses an empty public key, so a document with one would be of no use.
        let empty_key = public_key.as_ref().is_some_and(Vec::is_empty);
        if empty_key
            || [&user_data, &nonce, &public_key]
                .into_iter()
                .flatten()
                .any(too_long)
        {
            return Err(ErrorCode::InvalidArgument);
        }
        let claims = Claims {
            module_id: self.module_id.clone(),
            timestamp: host.now(),
            pcrs: self.locked().collect(),
            public_key,
            user_data,
            nonce,
        };
        let signer = host.signer().map_err(|_| ErrorCode::InternalError)?;
        let document = signer
            .sign_document(&claims)
            .map_err(|_| ErrorCode::InternalError)?;
        Ok(Response::Attestation { document })
    }

    fn locked(&self) -> impl Iterator<Item = (PcrIndex, PcrValue)> {
        let all = PcrIndex::all().zip(&self.registers);
        all.filter(|(_, register)| register.locked)
            .map(|(index, register)| (index, register.value))
    }

    fn register(&mut self, index: u16) -> Result<&mut Register, ErrorCode> {
        self.registers
            .get_mut(usize::from(index))
            .ok_or(ErrorCode::InvalidIndex)
    }

    fn writable(&mut self, index: u16) -> Result<&mut Register, ErrorCode> {
        let register = self.register(index)?;
        if register.locked {
            return Err(ErrorCode::ReadOnlyIndex);
        }
        Ok(register)
    }
}

fn random(host: &mut dyn NsmHost) -> Result<Response, ErrorCode> {
    let mut random = vec![0; RANDOM_LEN];
    host.random(&mut random)
        .map_err(|_| ErrorCode::InternalError)?;
    Ok(Response::GetRandom { random })
}
