//! The bytes of a document: COSE_Sign1 envelope and CBOR payload, written and read.
//!
//! ```text
//!  [ h'a1013822',                       protected: {1: -35}, ES384
//!    {},                                unprotected
//!    << { "module_id": tstr, "digest": "SHA384", "timestamp": uint (ms), "pcrs": {0: h'…48'},
//!         "certificate": h'…', "cabundle": [h'…', …],
//!         "public_key": h'…' / null, "user_data": h'…' / null, "nonce": h'…' / null } >>,
//!    h'…96' ]                           signature, r ‖ s
//! ```

use std::borrow::Cow;
use std::collections::BTreeMap;

use minicbor::data::Type;
use minicbor::decode::Decoder;

use super::{Claims, DocumentError};
use crate::cbor::{self, CborError, Writer};
use crate::pcr::{PCR_COUNT, PcrIndex, PcrValue};
use crate::time::UnixMillis;

/// Longest document in bytes: AWS allows 16384 for the payload, the envelope needs about a hundred more.
pub const DOCUMENT_MAX: usize = 16_384 + 256;

/// Longest certificate in bytes (AWS's CDDL: `bstr .size (1..1024)`).
pub const CERTIFICATE_MAX: usize = 1024;

/// Most certificates in a bundle. AWS's has 4; a longer path would only cost signature checks.
pub const CABUNDLE_MAX: usize = 8;

/// Longest `public_key`, `user_data` and `nonce` in bytes. AWS's texts say 512 in one place and 1024 in
/// another; genuine documents hold 1024.
pub const FIELD_MAX: usize = 1024;

/// The protected header {1: -35}: ES384, and nothing else.
const PROTECTED: [u8; 4] = [0xa1, 0x01, 0x38, 0x22];

/// Bytes of an ES384 signature: r and s, 48 each.
const SIGNATURE_LEN: usize = 96;

/// COSE_Sign1's CBOR tag, which AWS's documentation shows and its documents lack.
const COSE_SIGN1_TAG: u64 = 18;

/// The envelope's parts, as received.
#[derive(Debug, Clone)]
pub(super) struct Envelope<'b> {
    pub(super) payload: Cow<'b, [u8]>,
    pub(super) signature: Cow<'b, [u8]>,
}

/// The payload's parts, each within its limits.
#[derive(Debug, Clone)]
pub(super) struct Payload {
    pub(super) claims: Claims,
    pub(super) certificate: Vec<u8>,
    pub(super) cabundle: Vec<Vec<u8>>,
}

/// The payload in the order of AWS's documents, optional values as null.
pub(crate) fn encode_payload(claims: &Claims, certificate: &[u8], cabundle: &[Vec<u8>]) -> Vec<u8> {
    let certificates: usize = cabundle.iter().map(Vec::len).sum();
    let w = Writer::with_capacity(2048 + FIELD_MAX + certificates).map(9);
    let w = w
        .text("module_id")
        .text(&claims.module_id)
        .text("digest")
        .text("SHA384");
    let w = w.text("timestamp").unsigned(claims.timestamp.0);
    let w = w.text("pcrs").map(claims.pcrs.len());
    let pcrs = claims.pcrs.iter();
    let w = pcrs.fold(w, |w, (i, v)| {
        w.unsigned(u64::from(i.get())).bytes(v.as_ref())
    });
    let w = w.text("certificate").bytes(certificate);
    let w = w.text("cabundle").array(cabundle.len());
    let w = cabundle
        .iter()
        .fold(w, |w, certificate| w.bytes(certificate));
    let w = w
        .text("public_key")
        .bytes_or_null(claims.public_key.as_deref());
    let w = w
        .text("user_data")
        .bytes_or_null(claims.user_data.as_deref());
    w.text("nonce")
        .bytes_or_null(claims.nonce.as_deref())
        .finish()
}

/// What is signed (RFC 9052 section 4.4).
pub(crate) fn sig_structure(payload: &[u8]) -> Vec<u8> {
    Writer::with_capacity(payload.len() + 32)
        .array(4)
        .text("Signature1")
        .bytes(&PROTECTED)
        .bytes(&[])
        .bytes(payload)
        .finish()
}

/// The document, untagged as AWS's are.
pub(crate) fn encode_envelope(payload: &[u8], signature: &[u8]) -> Vec<u8> {
    Writer::with_capacity(payload.len() + signature.len() + 32)
        .array(4)
        .bytes(&PROTECTED)
        .map(0)
        .bytes(payload)
        .bytes(signature)
        .finish()
}

impl<'b> Envelope<'b> {
    pub(super) fn decode(bytes: &'b [u8]) -> Result<Self, DocumentError> {
        if bytes.len() > DOCUMENT_MAX {
            return Err(DocumentError::TooLong { found: bytes.len() });
        }
        let (protected, unprotected, envelope) =
            envelope(bytes).map_err(|source| DocumentError::Cbor {
                part: "COSE_Sign1 envelope",
                source,
            })?;
        if *protected != PROTECTED {
            return Err(DocumentError::Algorithm {
                found: hex::encode(protected),
            });
        }
        if unprotected != 0 {
            return Err(DocumentError::UnprotectedHeader { found: unprotected });
        }
        if envelope.signature.len() != SIGNATURE_LEN {
            return Err(DocumentError::SignatureLength {
                found: envelope.signature.len(),
            });
        }
        Ok(envelope)
    }
}

/// Protected header, number of entries of the unprotected one, and the rest.
fn envelope(bytes: &[u8]) -> Result<(Cow<'_, [u8]>, usize, Envelope<'_>), CborError> {
    let mut d = Decoder::new(bytes);
    if d.datatype()? == Type::Tag && d.tag()?.as_u64() != COSE_SIGN1_TAG {
        return Err(CborError::message("the CBOR tag is not COSE_Sign1's, 18"));
    }
    let len = d.array()?;
    if len.is_some_and(|len| len != 4) {
        return Err(CborError::message("the array does not have four elements"));
    }
    let protected = cbor::bytes(&mut d)?;
    let mut unprotected = 0;
    // Labels are integers or text; either way their number is all that matters, as none is allowed.
    cbor::map(&mut d, label, |d, _| {
        unprotected += 1;
        Ok(d.skip()?)
    })?;
    let envelope = Envelope {
        payload: cbor::bytes(&mut d)?,
        signature: cbor::bytes(&mut d)?,
    };
    if len.is_none() {
        cbor::close(&mut d)?;
    }
    cbor::end(&d)?;
    Ok((protected, unprotected, envelope))
}

fn label<'b>(d: &mut Decoder<'b>) -> Result<&'b [u8], CborError> {
    let start = d.position();
    d.skip()?;
    Ok(&d.input()[start..d.position()])
}

/// Registers as they are written, before any was judged.
type RawPcrs<'b> = Vec<(u64, Cow<'b, [u8]>)>;

/// The payload's values by key, before any of them was judged.
#[derive(Debug, Default)]
struct Raw<'b> {
    module_id: Option<Cow<'b, str>>,
    digest: Option<Cow<'b, str>>,
    timestamp: Option<u64>,
    pcrs: Option<RawPcrs<'b>>,
    nitrotpm_pcrs: bool,
    certificate: Option<Cow<'b, [u8]>>,
    cabundle: Option<Vec<Cow<'b, [u8]>>>,
    public_key: Option<Cow<'b, [u8]>>,
    user_data: Option<Cow<'b, [u8]>>,
    nonce: Option<Cow<'b, [u8]>>,
}

impl Payload {
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, DocumentError> {
        let raw = Raw::decode(bytes).map_err(|source| DocumentError::Cbor {
            part: "payload",
            source,
        })?;
        if raw.nitrotpm_pcrs {
            return Err(DocumentError::NitroTpm);
        }
        let digest = required("digest", raw.digest)?;
        if digest != "SHA384" {
            let found = digest.into_owned();
            return Err(DocumentError::Digest { found });
        }
        let claims = Claims {
            module_id: required("module_id", raw.module_id)?.into_owned(),
            timestamp: UnixMillis(required("timestamp", raw.timestamp)?),
            pcrs: pcrs(&required("pcrs", raw.pcrs)?)?,
            public_key: sized("public_key", 1, FIELD_MAX, raw.public_key)?,
            user_data: sized("user_data", 0, FIELD_MAX, raw.user_data)?,
            nonce: sized("nonce", 0, FIELD_MAX, raw.nonce)?,
        };
        check_length("module_id", claims.module_id.len(), 1, FIELD_MAX)?;
        if claims.timestamp.0 == 0 {
            return Err(DocumentError::ZeroTimestamp);
        }
        let certificate = sized("certificate", 1, CERTIFICATE_MAX, raw.certificate)?;
        let cabundle = required("cabundle", raw.cabundle)?;
        check_bundle(&cabundle)?;
        Ok(Self {
            claims,
            certificate: required("certificate", certificate)?,
            cabundle: cabundle.into_iter().map(Cow::into_owned).collect(),
        })
    }
}

impl<'b> Raw<'b> {
    fn decode(bytes: &'b [u8]) -> Result<Self, CborError> {
        let mut d = Decoder::new(bytes);
        let mut raw = Self::default();
        cbor::map(&mut d, cbor::text, |d, key| raw.read(d, &key))?;
        cbor::end(&d)?;
        Ok(raw)
    }

    fn read(&mut self, d: &mut Decoder<'b>, key: &str) -> Result<(), CborError> {
        match key {
            "module_id" => self.module_id = Some(cbor::text(d)?),
            "digest" => self.digest = Some(cbor::text(d)?),
            "timestamp" => self.timestamp = Some(d.u64()?),
            "pcrs" => self.pcrs = Some(raw_pcrs(d)?),
            "certificate" => self.certificate = Some(cbor::bytes(d)?),
            "cabundle" => self.cabundle = Some(cbor::array(d, cbor::bytes)?),
            "public_key" => self.public_key = cbor::nullable(d, cbor::bytes)?,
            "user_data" => self.user_data = cbor::nullable(d, cbor::bytes)?,
            "nonce" => self.nonce = cbor::nullable(d, cbor::bytes)?,
            _ => {
                self.nitrotpm_pcrs |= key == "nitrotpm_pcrs";
                d.skip()?;
            }
        }
        Ok(())
    }
}

fn raw_pcrs<'b>(d: &mut Decoder<'b>) -> Result<RawPcrs<'b>, CborError> {
    let mut pcrs = Vec::with_capacity(PCR_COUNT);
    cbor::map(
        d,
        |d| Ok(d.u64()?),
        |d, index| {
            pcrs.push((index, cbor::bytes(d)?));
            Ok(())
        },
    )?;
    Ok(pcrs)
}

fn pcrs(raw: &[(u64, Cow<'_, [u8]>)]) -> Result<BTreeMap<PcrIndex, PcrValue>, DocumentError> {
    if raw.is_empty() || raw.len() > PCR_COUNT {
        return Err(DocumentError::PcrCount { found: raw.len() });
    }
    let pcrs = raw.iter().map(|(index, value)| {
        let no_register = |_| DocumentError::PcrIndex { found: *index };
        let index = PcrIndex::try_from(*index).map_err(no_register)?;
        let length = |_| DocumentError::PcrLength {
            index,
            found: value.len(),
        };
        Ok((index, PcrValue::try_from(&**value).map_err(length)?))
    });
    pcrs.collect()
}

fn check_bundle(cabundle: &[Cow<'_, [u8]>]) -> Result<(), DocumentError> {
    if cabundle.is_empty() || cabundle.len() > CABUNDLE_MAX {
        return Err(DocumentError::BundleCount {
            found: cabundle.len(),
        });
    }
    let mut lengths = cabundle.iter().map(|certificate| certificate.len());
    lengths.try_for_each(|found| check_length("cabundle", found, 1, CERTIFICATE_MAX))
}

fn sized(
    key: &'static str,
    min: usize,
    max: usize,
    value: Option<Cow<'_, [u8]>>,
) -> Result<Option<Vec<u8>>, DocumentError> {
    if let Some(value) = &value {
        check_length(key, value.len(), min, max)?;
    }
    Ok(value.map(Cow::into_owned))
}

fn check_length(
    key: &'static str,
    found: usize,
    min: usize,
    max: usize,
) -> Result<(), DocumentError> {
    if (min..=max).contains(&found) {
        return Ok(());
    }
    Err(DocumentError::Length {
        key,
        found,
        min,
        max,
    })
}

fn required<T>(key: &'static str, value: Option<T>) -> Result<T, DocumentError> {
    value.ok_or(DocumentError::Missing { key })
}
