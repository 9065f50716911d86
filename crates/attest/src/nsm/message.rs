//! NSM messages and their CBOR: what AWS's `aws-nitro-enclaves-nsm-api` sends and expects.
//!
//! An operation without fields is a bare text string; one with fields is a map of one entry, name to fields.
//! Byte data are byte strings. Decoders depend neither on the order of fields nor on definite lengths, and
//! skip fields they do not know. They refuse a repeated key and bytes after the message.

use std::borrow::Cow;

use minicbor::data::Type;
use minicbor::decode::Decoder;

use crate::cbor::{self, CborError, Writer};
use crate::pcr::PcrValue;

/// Longest request in bytes (`NSM_REQUEST_MAX_SIZE` of the kernel's driver).
pub const REQUEST_MAX: usize = 0x1000;

/// Longest response in bytes (`NSM_RESPONSE_MAX_SIZE` of the kernel's driver).
pub const RESPONSE_MAX: usize = 0x3000;

/// Longest `user_data`, `nonce` or `public_key` of an Attestation request, in bytes. AWS's texts say 512 in
/// one place and 1024 in another; genuine documents hold 1024.
pub const ATTESTATION_FIELD_MAX: usize = 1024;

/// What an enclave asks of its module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Version, identity and locked registers of the module.
    DescribeNsm,
    /// Random bytes.
    GetRandom,
    /// Value and lock of a register.
    DescribePcr {
        /// Which register.
        index: u16,
    },
    /// Appends data to a register.
    ExtendPcr {
        /// Which register.
        index: u16,
        /// Raw data: the module hashes it once, together with the old value.
        data: Vec<u8>,
    },
    /// Makes a register read-only until the enclave ends.
    LockPcr {
        /// Which register.
        index: u16,
    },
    /// Makes the first `range` registers read-only.
    LockPcrs {
        /// How many, not a mask: 16 locks 0 to 15.
        range: u16,
    },
    /// An attestation document.
    Attestation {
        /// Copied into the document.
        user_data: Option<Vec<u8>>,
        /// Copied into the document.
        nonce: Option<Vec<u8>>,
        /// Copied into the document.
        public_key: Option<Vec<u8>>,
    },
}

/// What a module answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response {
    /// To [`Request::DescribeNsm`].
    DescribeNsm(Description),
    /// To [`Request::GetRandom`].
    GetRandom {
        /// 256 bytes.
        random: Vec<u8>,
    },
    /// To [`Request::DescribePcr`].
    DescribePcr {
        /// Whether the register is read-only.
        lock: bool,
        /// Its value.
        data: PcrValue,
    },
    /// To [`Request::ExtendPcr`].
    ExtendPcr {
        /// The new value.
        data: PcrValue,
    },
    /// To [`Request::LockPcr`].
    LockPcr,
    /// To [`Request::LockPcrs`].
    LockPcrs,
    /// To [`Request::Attestation`].
    Attestation {
        /// An untagged COSE_Sign1, see [`crate::document`].
        document: Vec<u8>,
    },
    /// The request was refused.
    Error(ErrorCode),
}

/// What a module says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// First part of the version.
    pub version_major: u16,
    /// Second part of the version.
    pub version_minor: u16,
    /// Third part of the version.
    pub version_patch: u16,
    /// `<instance-id>-enc<16 hex digits>`.
    pub module_id: String,
    /// Number of registers.
    pub max_pcrs: u16,
    /// Read-only registers, ascending.
    pub locked_pcrs: Vec<u16>,
    /// Hash of the registers, `SHA384`.
    pub digest: String,
}

/// AWS's error codes; their texts are the wire form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ErrorCode {
    /// A bad argument.
    #[error("InvalidArgument")]
    InvalidArgument,
    /// No such register.
    #[error("InvalidIndex")]
    InvalidIndex,
    /// The reply does not belong to the request.
    #[error("InvalidResponse")]
    InvalidResponse,
    /// The register is locked.
    #[error("ReadOnlyIndex")]
    ReadOnlyIndex,
    /// Unknown or undecodable request.
    #[error("InvalidOperation")]
    InvalidOperation,
    /// The reply would not fit.
    #[error("BufferTooSmall")]
    BufferTooSmall,
    /// The request is longer than [`REQUEST_MAX`].
    #[error("InputTooLarge")]
    InputTooLarge,
    /// Everything else.
    #[error("InternalError")]
    InternalError,
}

impl ErrorCode {
    /// Every code, in the order of AWS's C enum (1 to 8; 0 is success).
    pub const ALL: [Self; 8] = [
        Self::InvalidArgument,
        Self::InvalidIndex,
        Self::InvalidResponse,
        Self::ReadOnlyIndex,
        Self::InvalidOperation,
        Self::BufferTooSmall,
        Self::InputTooLarge,
        Self::InternalError,
    ];

    fn from_text(text: &str) -> Result<Self, CborError> {
        let known = Self::ALL.into_iter().find(|code| code.to_string() == text);
        known.ok_or_else(|| CborError::message("unknown NSM error code"))
    }
}

impl Request {
    /// The request's bytes, field order as AWS's library writes them.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let w = Writer::new();
        match self {
            Self::DescribeNsm => w.text("DescribeNSM"),
            Self::GetRandom => w.text("GetRandom"),
            Self::DescribePcr { index } => named(w, "DescribePCR", 1).number("index", *index),
            Self::ExtendPcr { index, data } => named(w, "ExtendPCR", 2)
                .number("index", *index)
                .text("data")
                .bytes(data),
            Self::LockPcr { index } => named(w, "LockPCR", 1).number("index", *index),
            Self::LockPcrs { range } => named(w, "LockPCRs", 1).number("range", *range),
            Self::Attestation {
                user_data,
                nonce,
                public_key,
            } => named(w, "Attestation", 3)
                .text("user_data")
                .bytes_or_null(user_data.as_deref())
                .text("nonce")
                .bytes_or_null(nonce.as_deref())
                .text("public_key")
                .bytes_or_null(public_key.as_deref()),
        }
        .finish()
    }

    /// Reads a request. Text where bytes are due counts as its UTF-8 bytes, as in QEMU's module.
    ///
    /// # Errors
    /// [`CborError`] when the bytes are not exactly one request.
    pub fn decode(bytes: &[u8]) -> Result<Self, CborError> {
        let (name, fields) = message(bytes)?;
        match (&*name, fields) {
            ("DescribeNSM", None) => Ok(Self::DescribeNsm),
            ("GetRandom", None) => Ok(Self::GetRandom),
            ("DescribePCR", Some(f)) => Ok(Self::DescribePcr {
                index: required(f.index)?,
            }),
            ("ExtendPCR", Some(f)) => Ok(Self::ExtendPcr {
                index: required(f.index)?,
                data: required(f.data)?,
            }),
            ("LockPCR", Some(f)) => Ok(Self::LockPcr {
                index: required(f.index)?,
            }),
            ("LockPCRs", Some(f)) => Ok(Self::LockPcrs {
                range: required(f.range)?,
            }),
            ("Attestation", Some(f)) => Ok(Self::Attestation {
                user_data: f.user_data,
                nonce: f.nonce,
                public_key: f.public_key,
            }),
            _ => Err(CborError::message("no such NSM request")),
        }
    }
}

impl Response {
    /// The response's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let w = Writer::new();
        match self {
            Self::DescribeNsm(description) => description.write(named(w, "DescribeNSM", 7)),
            Self::GetRandom { random } => named(w, "GetRandom", 1).text("random").bytes(random),
            Self::DescribePcr { lock, data } => {
                let w = named(w, "DescribePCR", 2).text("lock").bool(*lock);
                w.text("data").bytes(data.as_ref())
            }
            Self::ExtendPcr { data } => named(w, "ExtendPCR", 1).text("data").bytes(data.as_ref()),
            Self::LockPcr => w.text("LockPCR"),
            Self::LockPcrs => w.text("LockPCRs"),
            Self::Attestation { document } => {
                named(w, "Attestation", 1).text("document").bytes(document)
            }
            Self::Error(code) => w.map(1).text("Error").text(&code.to_string()),
        }
        .finish()
    }

    /// Reads a response.
    ///
    /// # Errors
    /// [`CborError`] when the bytes are not exactly one response.
    pub fn decode(bytes: &[u8]) -> Result<Self, CborError> {
        let (name, fields) = message(bytes)?;
        match (&*name, fields) {
            ("LockPCR", None) => Ok(Self::LockPcr),
            ("LockPCRs", None) => Ok(Self::LockPcrs),
            ("DescribeNSM", Some(f)) => Description::from_fields(f).map(Self::DescribeNsm),
            ("GetRandom", Some(f)) => Ok(Self::GetRandom {
                random: required(f.random)?,
            }),
            ("DescribePCR", Some(f)) => Ok(Self::DescribePcr {
                lock: required(f.lock)?,
                data: pcr(f.data)?,
            }),
            ("ExtendPCR", Some(f)) => Ok(Self::ExtendPcr { data: pcr(f.data)? }),
            ("Attestation", Some(f)) => Ok(Self::Attestation {
                document: required(f.document)?,
            }),
            ("Error", Some(f)) => ErrorCode::from_text(&required(f.error)?).map(Self::Error),
            _ => Err(CborError::message("no such NSM response")),
        }
    }
}

impl Description {
    fn write(&self, w: Writer) -> Writer {
        let w = w
            .number("version_major", self.version_major)
            .number("version_minor", self.version_minor)
            .number("version_patch", self.version_patch)
            .text("module_id")
            .text(&self.module_id)
            .number("max_pcrs", self.max_pcrs)
            .text("locked_pcrs")
            .array(self.locked_pcrs.len());
        let w = self
            .locked_pcrs
            .iter()
            .fold(w, |w, index| w.unsigned(u64::from(*index)));
        w.text("digest").text(&self.digest)
    }

    fn from_fields(f: Fields) -> Result<Self, CborError> {
        let [version_major, version_minor, version_patch] = f.version;
        Ok(Self {
            version_major: required(version_major)?,
            version_minor: required(version_minor)?,
            version_patch: required(version_patch)?,
            module_id: required(f.module_id)?,
            max_pcrs: required(f.max_pcrs)?,
            locked_pcrs: required(f.locked_pcrs)?,
            digest: required(f.digest)?,
        })
    }
}

/// Every field that any message has; which of them are needed depends on the message's name.
#[derive(Debug, Default)]
struct Fields {
    index: Option<u16>,
    range: Option<u16>,
    data: Option<Vec<u8>>,
    user_data: Option<Vec<u8>>,
    nonce: Option<Vec<u8>>,
    public_key: Option<Vec<u8>>,
    random: Option<Vec<u8>>,
    document: Option<Vec<u8>>,
    lock: Option<bool>,
    version: [Option<u16>; 3],
    module_id: Option<String>,
    max_pcrs: Option<u16>,
    locked_pcrs: Option<Vec<u16>>,
    digest: Option<String>,
    error: Option<String>,
}

impl Fields {
    fn read(&mut self, d: &mut Decoder<'_>, key: &str) -> Result<(), CborError> {
        match key {
            "index" => self.index = Some(d.u16()?),
            "range" => self.range = Some(d.u16()?),
            "data" => self.data = Some(blob(d)?),
            "user_data" => self.user_data = cbor::nullable(d, blob)?,
            "nonce" => self.nonce = cbor::nullable(d, blob)?,
            "public_key" => self.public_key = cbor::nullable(d, blob)?,
            "random" => self.random = Some(cbor::bytes(d)?.into_owned()),
            "document" => self.document = Some(cbor::bytes(d)?.into_owned()),
            "lock" => self.lock = Some(d.bool()?),
            "version_major" => self.version[0] = Some(d.u16()?),
            "version_minor" => self.version[1] = Some(d.u16()?),
            "version_patch" => self.version[2] = Some(d.u16()?),
            "module_id" => self.module_id = Some(cbor::text(d)?.into_owned()),
            "max_pcrs" => self.max_pcrs = Some(d.u16()?),
            "locked_pcrs" => self.locked_pcrs = Some(cbor::array(d, |d| Ok(d.u16()?))?),
            "digest" => self.digest = Some(cbor::text(d)?.into_owned()),
            _ => d.skip()?,
        }
        Ok(())
    }
}

/// Reads a whole message: its name, and its fields if it has any.
fn message(bytes: &[u8]) -> Result<(Cow<'_, str>, Option<Fields>), CborError> {
    let mut d = Decoder::new(bytes);
    if matches!(d.datatype()?, Type::String | Type::StringIndef) {
        let name = cbor::text(&mut d)?;
        return cbor::end(&d).map(|()| (name, None));
    }
    let mut found = None;
    cbor::map(&mut d, cbor::text, |d, name| {
        if found.is_some() {
            return Err(CborError::message(
                "an NSM message holds a single operation",
            ));
        }
        let fields = fields(d, &name)?;
        found = Some((name, Some(fields)));
        Ok(())
    })?;
    cbor::end(&d)?;
    found.ok_or_else(|| CborError::message("an NSM message holds one operation"))
}

fn fields(d: &mut Decoder<'_>, operation: &str) -> Result<Fields, CborError> {
    let mut fields = Fields::default();
    if operation == "Error" {
        fields.error = Some(cbor::text(d)?.into_owned());
        return Ok(fields);
    }
    cbor::map(d, cbor::text, |d, key| fields.read(d, &key))?;
    Ok(fields)
}

fn blob(d: &mut Decoder<'_>) -> Result<Vec<u8>, CborError> {
    match d.datatype()? {
        Type::String | Type::StringIndef => Ok(cbor::text(d)?.into_owned().into_bytes()),
        _ => Ok(cbor::bytes(d)?.into_owned()),
    }
}

fn required<T>(field: Option<T>) -> Result<T, CborError> {
    field.ok_or_else(|| CborError::message("the NSM message lacks a field"))
}

fn pcr(data: Option<Vec<u8>>) -> Result<PcrValue, CborError> {
    let data = required(data)?;
    let value = PcrValue::try_from(data.as_slice());
    value.map_err(|_| CborError::message("a PCR value is not 48 bytes long"))
}

fn named(w: Writer, operation: &str, fields: usize) -> Writer {
    w.map(1).text(operation).map(fields)
}

impl Writer {
    fn number(self, key: &str, value: u16) -> Self {
        self.text(key).unsigned(u64::from(value))
    }
}
