//! A certificate's fields as slices of its DER (RFC 5280 section 4.1), without allocation.

use der::asn1::{AnyRef, BitStringRef, IntRef, ObjectIdentifier, OctetStringRef, SequenceRef};
use der::{Decode, ErrorKind, Reader, Result, SliceReader, Tag, TagMode, TagNumber, Tagged};
use x509_cert::certificate::{Rfc5280, Version};
use x509_cert::der;
use x509_cert::spki::AlgorithmIdentifier;
use x509_cert::time::Validity;

pub(super) type Algorithm<'a> = AlgorithmIdentifier<AnyRef<'a>>;

/// Longest serial number in bytes: 20, and one for the sign.
const SERIAL_MAX: usize = 21;

/// What a certificate says, each part as received.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    pub(super) tbs: &'a [u8],
    pub(super) algorithm: Algorithm<'a>,
    /// The signature's bytes.
    pub(super) signature: &'a [u8],
    /// 1 to 3.
    pub(super) version: u8,
    pub(super) tbs_algorithm: Algorithm<'a>,
    /// Name, DER.
    pub(super) issuer: &'a [u8],
    /// Seconds since 1970.
    pub(super) not_before: u64,
    /// Seconds since 1970.
    pub(super) not_after: u64,
    /// Name, DER.
    pub(super) subject: &'a [u8],
    /// SubjectPublicKeyInfo, DER.
    pub(super) spki: &'a [u8],
    /// The extensions one after the other, DER.
    extensions: &'a [u8],
}

/// An extension and its value's DER.
#[derive(Debug)]
pub(super) struct Extension<'a> {
    pub(super) oid: ObjectIdentifier,
    pub(super) critical: bool,
    pub(super) value: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(super) fn read(certificate: &'a [u8]) -> Result<Self> {
        let mut r = inside(certificate, Tag::Sequence)?;
        let tbs = r.tlv_bytes()?;
        let algorithm = Algorithm::decode(&mut r)?;
        let signature = bits(&mut r)?;
        r.finish()?;
        let mut r = inside(tbs, Tag::Sequence)?;
        let version = r.context_specific::<Version>(TagNumber(0), TagMode::Explicit)?;
        check_serial(&mut r)?;
        let tbs_algorithm = Algorithm::decode(&mut r)?;
        let issuer = name(&mut r)?;
        let validity = Validity::<Rfc5280>::decode(&mut r)?;
        let subject = name(&mut r)?;
        let spki = r.tlv_bytes()?;
        // Unique identifiers: nobody has used them since 1996; well-formed ones are skipped.
        r.context_specific::<BitStringRef<'_>>(TagNumber(1), TagMode::Implicit)?;
        r.context_specific::<BitStringRef<'_>>(TagNumber(2), TagMode::Implicit)?;
        let extensions = r.context_specific::<&SequenceRef>(TagNumber(3), TagMode::Explicit)?;
        r.finish()?;
        Ok(Self {
            tbs,
            algorithm,
            signature,
            version: match version {
                None | Some(Version::V1) => 1,
                Some(Version::V2) => 2,
                Some(Version::V3) => 3,
            },
            tbs_algorithm,
            issuer,
            not_before: validity.not_before.to_unix_duration().as_secs(),
            not_after: validity.not_after.to_unix_duration().as_secs(),
            subject,
            spki,
            extensions: extensions.map_or(&[], SequenceRef::as_bytes),
        })
    }

    /// Ends after the first that cannot be read.
    pub(super) fn extensions(&self) -> impl Iterator<Item = Result<Extension<'a>>> {
        let mut rest = self.extensions;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let read = extension(&mut rest);
            if read.is_err() {
                rest = &[];
            }
            Some(read)
        })
    }
}

/// The value of subjectKeyIdentifier.
pub(super) fn subject_key(value: &[u8]) -> Result<&[u8]> {
    <&OctetStringRef>::from_der(value).map(OctetStringRef::as_bytes)
}

/// keyIdentifier of an authorityKeyIdentifier; issuer name and serial number are not needed.
pub(super) fn authority_key(value: &[u8]) -> Result<Option<&[u8]>> {
    let mut r = inside(value, Tag::Sequence)?;
    let identifier = r.context_specific::<&OctetStringRef>(TagNumber(0), TagMode::Implicit)?;
    r.context_specific::<&SequenceRef>(TagNumber(1), TagMode::Implicit)?;
    r.context_specific::<IntRef<'_>>(TagNumber(2), TagMode::Implicit)?;
    r.finish()?;
    Ok(identifier.map(OctetStringRef::as_bytes))
}

fn extension<'a>(rest: &mut &'a [u8]) -> Result<Extension<'a>> {
    let mut list = SliceReader::new(rest)?;
    let whole = list.tlv_bytes()?;
    *rest = &rest[whole.len()..];
    let mut r = inside(whole, Tag::Sequence)?;
    let oid = ObjectIdentifier::decode(&mut r)?;
    let critical = Option::<bool>::decode(&mut r)?;
    let value = <&OctetStringRef>::decode(&mut r)?.as_bytes();
    r.finish()?;
    Ok(Extension {
        oid,
        critical: critical == Some(true),
        value,
    })
}

/// A reader of the content of the only element in `tlv`.
fn inside(tlv: &[u8], tag: Tag) -> Result<SliceReader<'_>> {
    let any = AnyRef::from_der(tlv)?;
    any.tag().assert_eq(tag)?;
    SliceReader::new(any.value())
}

/// A Name (RFC 5280 section 4.1.2.4), as received.
fn name<'a>(r: &mut SliceReader<'a>) -> Result<&'a [u8]> {
    let whole = r.tlv_bytes()?;
    let mut parts = inside(whole, Tag::Sequence)?;
    while !parts.is_finished() {
        let mut set = inside(parts.tlv_bytes()?, Tag::Set)?;
        while !set.is_finished() {
            let mut attribute = inside(set.tlv_bytes()?, Tag::Sequence)?;
            <ObjectIdentifier>::decode(&mut attribute)?;
            AnyRef::decode(&mut attribute)?;
            attribute.finish()?;
        }
    }
    Ok(whole)
}

fn bits<'a>(r: &mut SliceReader<'a>) -> Result<&'a [u8]> {
    let bits = BitStringRef::decode(r)?;
    let bytes = bits.as_bytes();
    bytes.ok_or_else(|| {
        ErrorKind::Noncanonical {
            tag: Tag::BitString,
        }
        .into()
    })
}

fn check_serial(r: &mut SliceReader<'_>) -> Result<()> {
    if IntRef::decode(r)?.as_bytes().len() > SERIAL_MAX {
        return Err(ErrorKind::Overlength.into());
    }
    Ok(())
}
