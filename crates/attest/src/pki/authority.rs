//! The authority: four keys with their certificates, renewal, storage.

use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use der::oid::ObjectIdentifier;
use der::pem::{self, LineEnding};
use x509_cert::ext::Extension;
use x509_cert::name::RdnSequence;
use x509_cert::serial_number::SerialNumber;
use zeroize::Zeroizing;

use super::issue::{self, CertifiedKey, Template};
use super::leaf::{IssuedLeaf, LEAF_LIFETIME};
use super::{CertificateError, PkiError};
use crate::time::UnixMillis;
use crate::x509::{self, Certificate, spki_point};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// How long before its issue a leaf or instance certificate begins: the clock skew that AWS's leaves allow.
const SKEW: Duration = Duration::from_secs(3);

/// From the issue of a root to its end: thirty years, eight of them leap years, as AWS's.
const ROOT_LIFETIME: Duration = Duration::from_secs(10_958 * 24 * 3600);

/// Longest instance id: `i-` and 17 digits.
const INSTANCE_ID_MAX: usize = 19;

/// Longest module id: an instance id, `-enc` and 16 digits.
const MODULE_ID_MAX: usize = INSTANCE_ID_MAX + 20;

/// Longest region, so that the leaf's commonName, `<module-id>.<region>.enclos`, keeps to 64 bytes. AWS's
/// longest has 14.
const REGION_MAX: usize = 64 - MODULE_ID_MAX - ".".len() - ".enclos".len();

/// CA certificates between a root and a leaf: region, zone, instance.
const CAS_BELOW_ROOT: u8 = 3;

const KEY_LABEL: &str = "PRIVATE KEY";
const CERTIFICATE_LABEL: &str = "CERTIFICATE";

/// The certificate authority of one installation, see the [module](super).
#[derive(Debug)]
pub struct Authority {
    root: CertifiedKey,
    region: CertifiedKey,
    zone: CertifiedKey,
    instance: CertifiedKey,
    location: Location,
    endorsement: Option<Endorsement>,
}

/// Another root's certificate for this root's name and key: documents begin with that other root instead, so
/// whoever trusts it accepts them.
#[derive(Debug, Clone)]
pub struct Endorsement {
    /// The other root.
    root: Certificate,
    /// What it signed.
    cross: Certificate,
}

/// Where the instance is: what the names below the root say.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Location {
    region: String,
    zone: String,
    instance_id: String,
}

/// A CA certificate below the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Region,
    Zone,
    Instance,
}

impl Authority {
    /// Makes a new authority: new keys, new root.
    ///
    /// # Errors
    /// [`PkiError::Name`] when region, zone or instance id cannot be part of a name.
    pub fn create(
        now: UnixMillis,
        region: &str,
        zone: &str,
        instance_id: &str,
    ) -> Result<Self, PkiError> {
        let location = Location::new(region, zone, instance_id)?;
        let root = new_root(now)?;
        let region = Level::Region.issue(&root, &location, now)?;
        let zone = Level::Zone.issue(&region, &location, now)?;
        let instance = Level::Instance.issue(&zone, &location, now)?;
        Ok(Self {
            root,
            region,
            zone,
            instance,
            location,
            endorsement: None,
        })
    }

    /// A new authority at the same place, with a new root that this one has endorsed: its documents still begin
    /// with this one's root, until [`Authority::drop_endorsement`]. Verifiers learn the new root
    /// ([`Authority::own_root_certificate_pem`]) in between.
    ///
    /// # Errors
    /// As [`Authority::create`] and [`Authority::endorse`].
    pub fn rotate(&self, now: UnixMillis) -> Result<Self, PkiError> {
        let Location {
            region,
            zone,
            instance_id,
        } = &self.location;
        let mut next = Self::create(now, region, zone, instance_id)?;
        next.endorsement = Some(self.endorse(next.root.certificate.der(), now)?);
        Ok(next)
    }

    /// Signs another authority's root: a fleet under one root. It lasts as long as the shorter of both.
    ///
    /// # Errors
    /// [`PkiError::Certificate`] when `root_der` is no root, [`PkiError::Endorsement`] when it is this one's own, and as
    /// [`Authority::renew`] when this root cannot issue.
    pub fn endorse(&self, root_der: &[u8], now: UnixMillis) -> Result<Endorsement, PkiError> {
        self.check_root(now)?;
        let unusable = |source| PkiError::Certificate {
            which: "the root to be endorsed",
            source,
        };
        let other = x509::root(root_der).map_err(unusable)?;
        other.check_time(now).map_err(unusable)?;
        if other.point() == self.root.certificate.point() {
            return Err(PkiError::Endorsement {
                problem: "it is this authority's own root",
            });
        }
        let point = other.point().to_vec();
        let own = &self.root.certificate;
        let template = Template {
            subject: other.subject().map_err(unusable)?.into(),
            serial: issue::random_serial()?,
            not_before: now
                .minus(HOUR)
                .max(other.not_before())
                .max(own.not_before()),
            not_after: other.not_after().min(own.not_after()),
            extensions: vec![
                issue::ca_constraints(Some(CAS_BELOW_ROOT))?,
                self.root.authority_key()?,
                issue::subject_key(&point)?,
                issue::ca_usage()?,
            ],
            point,
        };
        let cross = template.sign(self.root.name()?, &self.root.key)?;
        Endorsement::of(own.clone(), Certificate::parse(&cross).map_err(unusable)?)
    }

    /// Takes an endorsement of this authority's root: documents begin with the endorsing root from now on.
    ///
    /// # Errors
    /// [`PkiError::Endorsement`] when it is for another root, [`PkiError::Certificate`] when it is not valid at `now`.
    pub fn adopt(&mut self, endorsement: Endorsement, now: UnixMillis) -> Result<(), PkiError> {
        if !endorsement.is_for(&self.root.certificate) {
            return Err(PkiError::Endorsement {
                problem: "it is for another root than this authority's",
            });
        }
        let now_valid = [&endorsement.root, &endorsement.cross]
            .into_iter()
            .try_for_each(|certificate| certificate.check_time(now));
        now_valid.map_err(|source| PkiError::Certificate {
            which: "the endorsement",
            source,
        })?;
        self.endorsement = Some(endorsement);
        Ok(())
    }

    /// Lets documents begin with this authority's own root again; false when they do already.
    pub fn drop_endorsement(&mut self) -> bool {
        self.endorsement.take().is_some()
    }

    /// Re-issues, with new keys, what is below the root and not good for its next certificate at `now`; true
    /// when something changed and is worth storing.
    ///
    /// # Errors
    /// [`PkiError::ClockBeforeRoot`], [`PkiError::RootExpires`].
    pub fn renew(&mut self, now: UnixMillis) -> Result<bool, PkiError> {
        self.check_root(now)?;
        // A new issuer has a new name, so whatever is below it is due as well.
        let region = self.due(&self.region, Level::Region, now);
        let zone = region || self.due(&self.zone, Level::Zone, now);
        let instance = zone || self.due(&self.instance, Level::Instance, now);
        if region {
            self.region = Level::Region.issue(&self.root, &self.location, now)?;
        }
        if zone {
            self.zone = Level::Zone.issue(&self.region, &self.location, now)?;
        }
        if instance {
            self.instance = Level::Instance.issue(&self.zone, &self.location, now)?;
        }
        Ok(instance)
    }

    /// Moves the authority to another region, zone or instance, keeping its root; true when something changed
    /// and is worth storing. Renews as [`Authority::renew`] does.
    ///
    /// # Errors
    /// As [`Authority::create`] and [`Authority::renew`].
    pub fn relocate(
        &mut self,
        now: UnixMillis,
        region: &str,
        zone: &str,
        instance_id: &str,
    ) -> Result<bool, PkiError> {
        let location = Location::new(region, zone, instance_id)?;
        if location == self.location {
            return self.renew(now);
        }
        self.check_root(now)?;
        self.region = Level::Region.issue(&self.root, &location, now)?;
        self.zone = Level::Zone.issue(&self.region, &location, now)?;
        self.instance = Level::Instance.issue(&self.zone, &location, now)?;
        self.location = location;
        Ok(true)
    }

    /// The root that documents begin with, DER: the endorsing one if there is one, the own one otherwise.
    #[must_use]
    pub fn root_certificate_der(&self) -> &[u8] {
        let endorsing = self.endorsement.as_ref();
        endorsing
            .map_or(&self.root.certificate, |by| &by.root)
            .der()
    }

    /// The root that documents begin with, PEM.
    #[must_use]
    pub fn root_certificate_pem(&self) -> String {
        certificate_pem(self.root_certificate_der())
    }

    /// The root whose key this authority holds, PEM.
    #[must_use]
    pub fn own_root_certificate_pem(&self) -> String {
        certificate_pem(self.root.certificate.der())
    }

    /// Every certificate as documents carry them, root first: subject, SHA-256 of the DER (hex), first and last
    /// moment of the validity.
    #[must_use]
    pub fn describe(&self) -> Vec<Described> {
        let certificates = self.cas().into_iter();
        certificates.map(Described::of).collect()
    }

    /// Issues a leaf certificate for an enclave's key, after [`Authority::renew`] at `now`.
    ///
    /// # Errors
    /// [`PkiError::Certificate`] when `spki_der` is not a P-384 key, [`PkiError::Name`] when the module id
    /// cannot be part of a name, and as [`Authority::renew`].
    pub fn issue_leaf(
        &mut self,
        spki_der: &[u8],
        module_id: &str,
        slot_id: u64,
        now: UnixMillis,
    ) -> Result<IssuedLeaf, PkiError> {
        self.renew(now)?;
        check_name("module id", module_id, MODULE_ID_MAX)?;
        let not_usable = |source| PkiError::Certificate {
            which: "the leaf's key",
            source,
        };
        let not_after = whole_seconds(now.plus(LEAF_LIFETIME));
        let template = Template {
            subject: issue::name(&format!("{module_id}.{}.enclos", self.location.region))?,
            serial: leaf_serial(slot_id, now)?,
            not_before: now.minus(SKEW),
            not_after,
            point: spki_point(spki_der).map_err(not_usable)?.to_vec(),
            extensions: vec![issue::leaf_constraints()?, issue::leaf_usage()?],
        };
        let certificate = template.sign(self.instance.name()?, &self.instance.key)?;
        Ok(IssuedLeaf {
            certificate,
            cabundle: self.cabundle(),
            not_after,
        })
    }

    /// All keys and certificates as PEM. Whoever reads this text can forge documents of this installation.
    ///
    /// # Errors
    /// [`PkiError::Crypto`] when a key cannot be exported.
    pub fn to_pem(&self) -> Result<Zeroizing<String>, PkiError> {
        let mut text = Zeroizing::new(String::new());
        for link in self.links() {
            let refused = |_| PkiError::Crypto {
                action: "export a key",
            };
            let key = link.key.to_pkcs8v1().map_err(refused)?;
            text.push_str(&Zeroizing::new(to_pem(KEY_LABEL, key.as_ref())?));
            text.push_str(&to_pem(CERTIFICATE_LABEL, link.certificate.der())?);
        }
        if let Some(endorsement) = &self.endorsement {
            text.push_str(&endorsement.to_pem());
        }
        Ok(text)
    }

    /// Reads what [`Authority::to_pem`] wrote. Expired certificates are fine: [`Authority::renew`] replaces them.
    ///
    /// # Errors
    /// [`PkiError::Stored`], [`PkiError::Certificate`] and [`PkiError::OtherKey`] say what does not fit.
    pub fn from_pem(text: &str) -> Result<Self, PkiError> {
        let mut blocks = pem_blocks(text)?.into_iter();
        let mut next = |which| read_link(&mut blocks, which);
        let root = next("the root")?;
        let region = next("the region's certificate")?;
        let zone = next("the zone's certificate")?;
        let instance = next("the instance's certificate")?;
        let rest: Vec<_> = blocks.collect();
        let endorsement = match rest.len() {
            0 => None,
            _ => Some(Endorsement::of_blocks(&rest).map_err(stored)?),
        };
        let location = Location::of(&root, &region, &zone, &instance)?;
        let authority = Self {
            root,
            region,
            zone,
            instance,
            location,
            endorsement,
        };
        authority.check_links()?;
        Ok(authority)
    }

    fn links(&self) -> [&CertifiedKey; 4] {
        [&self.root, &self.region, &self.zone, &self.instance]
    }

    /// The CA certificates of documents, root first.
    fn cas(&self) -> Vec<&Certificate> {
        let above = self.endorsement.as_ref().map(|by| [&by.root, &by.cross]);
        let own = self.links().map(|link| &link.certificate);
        match above {
            Some(above) => above.into_iter().chain(own.into_iter().skip(1)).collect(),
            None => own.to_vec(),
        }
    }

    fn cabundle(&self) -> Vec<Vec<u8>> {
        let cas = self.cas().into_iter();
        cas.map(|certificate| certificate.der().to_vec()).collect()
    }

    fn check_links(&self) -> Result<(), PkiError> {
        let endorsement = self.endorsement.as_ref();
        if endorsement.is_some_and(|endorsement| !endorsement.is_for(&self.root.certificate)) {
            return Err(PkiError::Stored {
                problem: "its endorsement is for another root",
            });
        }
        const NAMES: [&str; 4] = ["the root", "the region", "the zone", "the instance"];
        let links = self.links();
        for (position, (link, which)) in links.iter().zip(NAMES).enumerate() {
            let issuer = links[position.saturating_sub(1)];
            let checked = link.certificate.check_issued_by(&issuer.certificate);
            let checked = checked.and_then(|()| link.certificate.check_ca(3 - position));
            checked.map_err(|source| PkiError::Certificate { which, source })?;
        }
        Ok(())
    }

    fn check_root(&self, now: UnixMillis) -> Result<(), PkiError> {
        let root = &self.root.certificate;
        match root.check_time(now) {
            Err(CertificateError::NotYetValid { not_before, .. }) => {
                Err(PkiError::ClockBeforeRoot { now, not_before })
            }
            _ if now.plus(Level::Region.lifetime()) > root.not_after() => {
                Err(PkiError::RootExpires {
                    now,
                    not_after: root.not_after(),
                })
            }
            _ => Ok(()),
        }
    }

    /// Whether a certificate is not valid at `now`, or would end before one that it issues at `now`.
    fn due(&self, link: &CertifiedKey, level: Level, now: UnixMillis) -> bool {
        let certificate = &link.certificate;
        certificate.check_time(now).is_err()
            || now.plus(level.lifetime_below()) > certificate.not_after()
    }
}

impl Endorsement {
    /// Reads what [`Endorsement::to_pem`] wrote.
    ///
    /// # Errors
    /// [`PkiError::Endorsement`] and [`PkiError::Certificate`] say what does not fit.
    pub fn from_pem(text: &str) -> Result<Self, PkiError> {
        Self::of_blocks(&pem_blocks(text)?)
    }

    /// Two certificates, PEM: the endorsing root, and what it signed. Public data.
    #[must_use]
    pub fn to_pem(&self) -> String {
        certificate_pem(self.root.der()) + &certificate_pem(self.cross.der())
    }

    fn of_blocks(blocks: &[PemBlock]) -> Result<Self, PkiError> {
        let [(first, root), (second, cross)] = blocks else {
            return Err(PkiError::Endorsement {
                problem: "expected two certificates: the endorsing root, and what it signed",
            });
        };
        if [first, second]
            .into_iter()
            .any(|label| label != CERTIFICATE_LABEL)
        {
            return Err(PkiError::Endorsement {
                problem: "it holds something else than certificates",
            });
        }
        let unusable = |source| PkiError::Certificate {
            which: "the endorsement",
            source,
        };
        let root = x509::root(root).map_err(unusable)?;
        Self::of(root, Certificate::parse(cross).map_err(unusable)?)
    }

    fn of(root: Certificate, cross: Certificate) -> Result<Self, PkiError> {
        let checked = cross.check_issued_by(&root);
        let checked = checked.and_then(|()| cross.check_ca(usize::from(CAS_BELOW_ROOT)));
        let checked = checked.and_then(|()| root.check_ca(usize::from(CAS_BELOW_ROOT) + 1));
        checked.map_err(|source| PkiError::Certificate {
            which: "the endorsement",
            source,
        })?;
        Ok(Self { root, cross })
    }

    /// Same name, same key: what `root` issued chains to the endorsement, too.
    fn is_for(&self, root: &Certificate) -> bool {
        let names = (self.cross.subject().ok(), root.subject().ok());
        self.cross.point() == root.point() && names.0.is_some() && names.0 == names.1
    }
}

/// One certificate of an authority, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// Its subject.
    pub subject: String,
    /// SHA-256 of its DER, hex.
    pub sha256: String,
    /// First moment of its validity.
    pub not_before: UnixMillis,
    /// Last second of its validity.
    pub not_after: UnixMillis,
}

impl Described {
    fn of(certificate: &Certificate) -> Self {
        let subject = certificate.subject();
        Self {
            subject: subject.map_or_else(|error| error.to_string(), |name| name.to_string()),
            sha256: hex::encode(digest(&SHA256, certificate.der())),
            not_before: certificate.not_before(),
            not_after: certificate.not_after(),
        }
    }
}

impl Level {
    fn issue(
        self,
        issuer: &CertifiedKey,
        location: &Location,
        now: UnixMillis,
    ) -> Result<CertifiedKey, PkiError> {
        let key = issue::new_ca_key()?;
        let point = key.public_key().as_ref().to_vec();
        let template = Template {
            subject: self.subject(&issuer.certificate, location)?,
            serial: issue::random_serial()?,
            not_before: now.minus(self.begins_before()),
            not_after: now.plus(self.lifetime()),
            extensions: self.extensions(issuer, &point)?,
            point,
        };
        certified(key, template.sign(issuer.name()?, &issuer.key)?)
    }

    fn subject(self, issuer: &Certificate, location: &Location) -> Result<RdnSequence, PkiError> {
        let root = root_label(issuer)?;
        let Location {
            region,
            zone,
            instance_id,
        } = location;
        match self {
            Self::Region => issue::name(&format!("{}.{region}.{root}", issue::random_hex(8)?)),
            Self::Zone => {
                let name = format!("{}.zonal.{region}.{root}", issue::random_hex(8)?);
                issue::zonal_name(&name, zone)
            }
            Self::Instance => issue::name(&format!("{instance_id}.{region}.{root}")),
        }
    }

    /// In AWS's order.
    fn extensions(self, issuer: &CertifiedKey, point: &[u8]) -> Result<Vec<Extension>, PkiError> {
        let subject_key = issue::subject_key(point)?;
        let authority_key = issuer.authority_key()?;
        let (path_len, usage) = match self {
            Self::Region => (2, issue::ca_usage()?),
            Self::Zone => (1, issue::ca_usage()?),
            Self::Instance => {
                let constraints = issue::ca_constraints(Some(0))?;
                let usage = issue::instance_usage()?;
                return Ok(vec![constraints, usage, subject_key, authority_key]);
            }
        };
        Ok(vec![
            issue::ca_constraints(Some(path_len))?,
            authority_key,
            subject_key,
            usage,
        ])
    }

    fn begins_before(self) -> Duration {
        match self {
            Self::Region | Self::Zone => HOUR,
            Self::Instance => SKEW,
        }
    }

    /// From the issue to the end. Validity as a whole is AWS's: 20 d + 1 h, 5 d 14 h, 24 h.
    fn lifetime(self) -> Duration {
        match self {
            Self::Region => 20 * DAY,
            Self::Zone => 5 * DAY + 13 * HOUR,
            Self::Instance => DAY - SKEW,
        }
    }

    fn lifetime_below(self) -> Duration {
        match self {
            Self::Region => Self::Zone.lifetime(),
            Self::Zone => Self::Instance.lifetime(),
            Self::Instance => LEAF_LIFETIME,
        }
    }
}

impl Location {
    fn new(region: &str, zone: &str, instance_id: &str) -> Result<Self, PkiError> {
        check_name("region", region, REGION_MAX)?;
        check_name("availability zone", zone, 64)?;
        check_name("instance id", instance_id, INSTANCE_ID_MAX)?;
        let [region, zone, instance_id] = [region, zone, instance_id].map(str::to_owned);
        Ok(Self {
            region,
            zone,
            instance_id,
        })
    }

    /// Reads the location back from the certificates, which are the only place that keeps it.
    fn of(
        root: &CertifiedKey,
        region: &CertifiedKey,
        zone: &CertifiedKey,
        instance: &CertifiedKey,
    ) -> Result<Self, PkiError> {
        let unknown = PkiError::Stored {
            problem: "a certificate's name has another form",
        };
        let root = text(root, issue::CN)?;
        let [region, instance] = [text(region, issue::CN)?, text(instance, issue::CN)?];
        let below_root = region
            .strip_suffix(&root)
            .and_then(|name| name.strip_suffix('.'));
        let region = below_root
            .and_then(|name| name.split_once('.'))
            .map(|(_, region)| region);
        let instance_id = instance.split_once('.').map(|(id, _)| id);
        match (region, instance_id) {
            (Some(region), Some(id)) => Self::new(region, &text(zone, issue::L)?, id),
            _ => Err(unknown),
        }
    }
}

fn new_root(now: UnixMillis) -> Result<CertifiedKey, PkiError> {
    let key = issue::new_ca_key()?;
    let point = key.public_key().as_ref().to_vec();
    let name = issue::name(&format!("{}.enclos", issue::random_hex(4)?))?;
    let extensions = vec![
        issue::ca_constraints(None)?,
        issue::subject_key(&point)?,
        issue::ca_usage()?,
    ];
    let template = Template {
        subject: name.clone(),
        serial: issue::random_serial()?,
        not_before: now.minus(HOUR),
        not_after: now.plus(ROOT_LIFETIME),
        point,
        extensions,
    };
    let certificate = template.sign(name, &key)?;
    certified(key, certificate)
}

fn certified(key: EcdsaKeyPair, der: Vec<u8>) -> Result<CertifiedKey, PkiError> {
    let unusable = |source| PkiError::Certificate {
        which: "a new certificate",
        source,
    };
    Ok(CertifiedKey {
        key,
        certificate: Certificate::parse(&der).map_err(unusable)?,
    })
}

/// `<8 hex>.enclos`, the last two labels of every CA's commonName.
fn root_label(certificate: &Certificate) -> Result<String, PkiError> {
    let name = common_name(certificate, issue::CN)?;
    let labels: Vec<_> = name.rsplitn(3, '.').take(2).collect();
    match labels[..] {
        [last, before] => Ok(format!("{before}.{last}")),
        _ => Err(PkiError::Stored {
            problem: "a certificate's name has another form",
        }),
    }
}

fn text(link: &CertifiedKey, oid: ObjectIdentifier) -> Result<String, PkiError> {
    common_name(&link.certificate, oid)
}

fn common_name(certificate: &Certificate, oid: ObjectIdentifier) -> Result<String, PkiError> {
    let subject = certificate.subject().map_err(|_| PkiError::Stored {
        problem: "a certificate's name cannot be read",
    })?;
    let part = subject.iter().find(|part| part.oid == oid);
    let part = part.ok_or(PkiError::Stored {
        problem: "a certificate's name lacks a part",
    })?;
    let text = std::str::from_utf8(part.value.value());
    let text = text.map_err(|_| PkiError::Stored {
        problem: "a certificate's name is not text",
    })?;
    Ok(text.to_owned())
}

/// Slot id, four zero bytes, Unix seconds: sixteen bytes, as in AWS's leaves.
fn leaf_serial(slot_id: u64, now: UnixMillis) -> Result<SerialNumber, PkiError> {
    let seconds = u128::from(now.as_secs()) & 0xffff_ffff;
    let serial = u128::from(slot_id) << 64 | seconds;
    Ok(SerialNumber::new(&serial.to_be_bytes())?)
}

fn whole_seconds(moment: UnixMillis) -> UnixMillis {
    UnixMillis::from_secs(moment.as_secs())
}

/// Names are what host names and AWS's ids are made of; a dot would be read as a boundary.
fn check_name(field: &'static str, text: &str, max: usize) -> Result<(), PkiError> {
    let usable = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if !text.is_empty() && text.len() <= max && text.bytes().all(usable) {
        return Ok(());
    }
    Err(PkiError::Name {
        field,
        found: text.to_owned(),
        max,
    })
}

/// What is wrong with an endorsement, when it is a stored authority's.
fn stored(error: PkiError) -> PkiError {
    match error {
        PkiError::Endorsement { problem } => PkiError::Stored { problem },
        other => other,
    }
}

fn certificate_pem(der: &[u8]) -> String {
    // Encoding PEM fails for labels and line widths only, and these are constant.
    to_pem(CERTIFICATE_LABEL, der).unwrap_or_default()
}

fn to_pem(label: &str, der: &[u8]) -> Result<String, PkiError> {
    let text = pem::encode_string(label, LineEnding::LF, der);
    text.map_err(|_| PkiError::Crypto {
        action: "write PEM",
    })
}

type PemBlock = (String, Zeroizing<Vec<u8>>);

fn pem_blocks(text: &str) -> Result<Vec<PemBlock>, PkiError> {
    const BEGIN: &str = "-----BEGIN ";
    let starts: Vec<_> = text.match_indices(BEGIN).map(|(at, _)| at).collect();
    let ends = starts.iter().skip(1).copied().chain([text.len()]);
    let blocks = starts.iter().zip(ends).map(|(start, end)| {
        let block = pem::decode_vec(&text.as_bytes()[*start..end]);
        let (label, bytes) = block.map_err(|_| PkiError::Stored {
            problem: "it is not PEM",
        })?;
        Ok((label.to_owned(), Zeroizing::new(bytes)))
    });
    blocks.collect()
}

fn read_link(
    blocks: &mut impl Iterator<Item = PemBlock>,
    which: &'static str,
) -> Result<CertifiedKey, PkiError> {
    let mut next = |expected: &str| match blocks.next() {
        Some((label, bytes)) if label == expected => Ok(bytes),
        _ => Err(PkiError::Stored {
            problem: "a key or a certificate is missing",
        }),
    };
    let (key, certificate) = (next(KEY_LABEL)?, next(CERTIFICATE_LABEL)?);
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_ASN1_SIGNING, &key);
    let key = key.map_err(|_| PkiError::Stored {
        problem: "a key is not PKCS#8 of P-384",
    })?;
    let certificate = Certificate::parse(&certificate);
    let certificate = certificate.map_err(|source| PkiError::Certificate { which, source })?;
    let link = CertifiedKey { key, certificate };
    link.check_key(which)?;
    Ok(link)
}
