//! Describing an image of unknown origin: everything that can be told about it, and everything that is
//! wrong with it. Nothing here decides whether an image is run.

use std::collections::BTreeMap;
use std::io::{Read, Seek};

use serde_json::Value;
use x509_cert::name::Name;
use x509_cert::time::Time;

use crate::configuration;
use crate::error::EifError;
use crate::format::{MAX_METADATA_LEN, Section, SectionKind};
use crate::measure::{Measurements, pass};
use crate::reader::{Eif, Mode};
use crate::signature::ImageSignature;

/// What [`inspect`] found.
#[derive(Debug)]
#[non_exhaustive]
pub struct Report {
    /// Version of the format.
    pub version: u16,
    /// The header's flags.
    pub flags: u16,
    /// The sections in file order.
    pub sections: Vec<Section>,
    /// Measurements of the sections as the table names them; PCR8 is there when a certificate is.
    pub measurements: Measurements,
    /// Whether the stored CRC is the file's.
    pub crc_ok: bool,
    /// Whether there is a signature section.
    pub is_signed: bool,
    /// Whether the signature verifies over the measured PCR0; `None` without a signature section.
    pub signature_ok: Option<bool>,
    /// The signing certificate, when it could be read.
    pub certificate: Option<CertificateInfo>,
    /// The command line, when it is one.
    pub cmdline: Option<String>,
    /// The metadata section, unmeasured, as it is.
    pub metadata: Option<Value>,
    /// The measured configuration, when `enclos build` made the image.
    pub configuration: Option<Value>,
    /// What is wrong with the image; empty for one that [`Eif::parse`] and [`measure`](crate::measure())
    /// accept.
    pub findings: Vec<EifError>,
}

/// What nitro-cli prints of a signing certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CertificateInfo {
    /// Issuer, by the names of its attributes.
    pub issuer: BTreeMap<String, String>,
    /// Signature algorithm of the certificate.
    pub algorithm: String,
    /// Start of the validity.
    pub not_before: String,
    /// End of the validity.
    pub not_after: String,
    /// The issuer's signature, `XX:XX:…`.
    pub signature: String,
}

/// Describes an image of version 2 to 4, however odd, as long as its sections can be told apart.
///
/// # Errors
/// [`EifError`] for what is no image, is cut off, or has overlapping sections or ones of unknown type.
pub fn inspect<R: Read + Seek>(reader: &mut R) -> Result<Report, EifError> {
    let mut mode = Mode::Tolerant(Vec::new());
    let eif = Eif::parse_with(reader, &mut mode)?;
    let mut findings = mode.into_findings();
    let pass = pass(reader, &eif)?;
    let crc_ok = pass.crc == eif.header.crc;
    if !crc_ok {
        findings.push(EifError::Crc {
            stored: eif.header.crc,
            computed: pass.crc,
        });
    }
    let mut report = Report {
        version: eif.version(),
        flags: eif.flags(),
        sections: eif.sections().to_vec(),
        measurements: pass.measurements,
        crc_ok,
        is_signed: eif.is_signed(),
        signature_ok: None,
        certificate: None,
        cmdline: eif.cmdline(reader).ok(),
        metadata: None,
        configuration: configuration::find(&eif, reader).ok().flatten(),
        findings,
    };
    if let Some(bytes) = pass.signature {
        report.describe_signature(&bytes);
    }
    report.describe_metadata(&eif, reader);
    Ok(report)
}

impl Report {
    fn describe_signature(&mut self, section: &[u8]) {
        let signature = match ImageSignature::parse(section) {
            Ok(signature) => signature,
            Err(error) => {
                self.signature_ok = Some(false);
                return self.findings.push(EifError::Signature(error));
            }
        };
        let verified = signature.verify(&self.measurements.pcr0);
        self.signature_ok = Some(verified.is_ok());
        self.findings
            .extend(verified.err().map(EifError::Signature));
        self.measurements.pcr8 = Some(signature.pcr8());
        self.certificate = Some(CertificateInfo::of(&signature));
    }

    fn describe_metadata<R: Read + Seek>(&mut self, eif: &Eif, reader: &mut R) {
        let Some(section) = eif.find(SectionKind::Metadata) else {
            return;
        };
        // Too long a section was noted by the parser already.
        let Ok(bytes) = eif.read_section(reader, section, MAX_METADATA_LEN) else {
            return;
        };
        self.findings.extend(eif.metadata(reader).err());
        self.metadata = serde_json::from_slice(&bytes).ok();
    }
}

impl CertificateInfo {
    fn of(signature: &ImageSignature) -> Self {
        let certificate = signature.certificate();
        let body = certificate.tbs_certificate();
        let bytes = certificate.signature().raw_bytes();
        Self {
            issuer: names(body.issuer()),
            algorithm: algorithm_name(&certificate.signature_algorithm().oid.to_string()),
            not_before: openssl_time(&body.validity().not_before),
            not_after: openssl_time(&body.validity().not_after),
            signature: bytes
                .iter()
                .map(|b| format!("{b:02X}"))
                .collect::<Vec<_>>()
                .join(":"),
        }
    }
}

/// Attributes of a name by OpenSSL's long names, which nitro-cli prints.
fn names(name: &Name) -> BTreeMap<String, String> {
    name.iter()
        .map(|attribute| {
            let key = long_name(&attribute.oid.to_string());
            let value = String::from_utf8_lossy(attribute.value.value()).into_owned();
            (key, value)
        })
        .collect()
}

fn long_name(oid: &str) -> String {
    let name = match oid {
        "2.5.4.3" => "commonName",
        "2.5.4.6" => "countryName",
        "2.5.4.7" => "localityName",
        "2.5.4.8" => "stateOrProvinceName",
        "2.5.4.10" => "organizationName",
        "2.5.4.11" => "organizationalUnitName",
        "1.2.840.113549.1.9.1" => "emailAddress",
        other => other,
    };
    name.to_owned()
}

/// Algorithms by OpenSSL's names.
fn algorithm_name(oid: &str) -> String {
    let name = match oid {
        "1.2.840.10045.4.3.2" => "ecdsa-with-SHA256",
        "1.2.840.10045.4.3.3" => "ecdsa-with-SHA384",
        "1.2.840.10045.4.3.4" => "ecdsa-with-SHA512",
        "1.2.840.113549.1.1.11" => "sha256WithRSAEncryption",
        "1.2.840.113549.1.1.12" => "sha384WithRSAEncryption",
        "1.2.840.113549.1.1.13" => "sha512WithRSAEncryption",
        other => other,
    };
    name.to_owned()
}

/// OpenSSL's way to print a time: `Jan  1 00:00:00 2024 GMT`.
fn openssl_time(time: &Time) -> String {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let t = time.to_date_time();
    let month = MONTHS
        .get(usize::from(t.month()).saturating_sub(1))
        .unwrap_or(&"?");
    let (hour, minutes, seconds) = (t.hour(), t.minutes(), t.seconds());
    format!(
        "{month} {:>2} {hour:02}:{minutes:02}:{seconds:02} {} GMT",
        t.day(),
        t.year()
    )
}
