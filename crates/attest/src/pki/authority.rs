//! The authority: four keys with their certificates, renewal, storage.

use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use der::oid::ObjectIdentifier;
use der::pem::{self, LineEnding};
use x509_cert::ext::Extension;
use x509_cert::name::RdnSequence;
use x509_cert::serial_number::SerialNumber;
use zeroize::Zeroizing;

use super::issue::{self, CertifiedKey, HOUR, Template};
use super::leaf::{IssuedLeaf, LEAF_LIFETIME};
use super::root::{Issuer, Root, RootKey};
use super::{CertificateError, PkiError};
use crate::time::UnixMillis;
use crate::x509::{self, Certificate, spki_point};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// How long before its issue a leaf or instance certificate begins: the clock skew that AWS's leaves allow.
const SKEW: Duration = Duration::from_secs(3);

/// From the issue of a root to its end: thirty years, eight of them leap years, as AWS's.
pub(super) const ROOT_LIFETIME: Duration = Duration::from_secs(10_958 * 24 * 3600);

/// How long before the region's certificate is due its renewal is asked for, where that takes a token.
const REGION_NOTICE: Duration = Duration::from_secs(5 * 24 * 3600);

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
    root: Root,
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
        Self::with_root(now, location, None)
    }

    /// Makes a new authority whose root's key is kept elsewhere.
    ///
    /// # Errors
    /// As [`Authority::create`], and when the key does not sign.
    pub fn create_with(
        now: UnixMillis,
        region: &str,
        zone: &str,
        instance_id: &str,
        key: &dyn RootKey,
    ) -> Result<Self, PkiError> {
        let location = Location::new(region, zone, instance_id)?;
        Self::with_root(now, location, Some(key))
    }

    fn with_root(
        now: UnixMillis,
        location: Location,
        key: Option<&dyn RootKey>,
    ) -> Result<Self, PkiError> {
        let root = Root::create(now, key)?;
        let issuer = root.issuer(key, "sign the region's certificate")?;
        let region = Level::Region.issue(issuer, &location, now)?;
        let zone = Level::Zone.issue(region.issuer(), &location, now)?;
        let instance = Level::Instance.issue(zone.issuer(), &location, now)?;
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
        self.rotate_with(now, None, None)
    }

    /// [`Authority::rotate`] where this root's key, or the next one's, is kept elsewhere.
    ///
    /// # Errors
    /// As [`Authority::rotate`]; [`PkiError::RootElsewhere`] when this root's key is and is not given.
    pub fn rotate_with(
        &self,
        now: UnixMillis,
        key: Option<&dyn RootKey>,
        next: Option<&dyn RootKey>,
    ) -> Result<Self, PkiError> {
        // Before anything is made.
        self.root.issuer(key, "endorse a root")?;
        let mut authority = Self::with_root(now, self.location.clone(), next)?;
        let endorsement = self.endorse_with(authority.root.certificate.der(), now, key)?;
        authority.endorsement = Some(endorsement);
        Ok(authority)
    }

    /// Signs another authority's root: a fleet under one root. It lasts as long as the shorter of both.
    ///
    /// # Errors
    /// [`PkiError::Certificate`] when `root_der` is no root, [`PkiError::Endorsement`] when it is this one's own, and as
    /// [`Authority::renew`] when this root cannot issue.
    pub fn endorse(&self, root_der: &[u8], now: UnixMillis) -> Result<Endorsement, PkiError> {
        self.endorse_with(root_der, now, None)
    }

    /// [`Authority::endorse`] where this root's key is kept elsewhere.
    ///
    /// # Errors
    /// As [`Authority::endorse`]; [`PkiError::RootElsewhere`] when the key is and is not given.
    pub fn endorse_with(
        &self,
        root_der: &[u8],
        now: UnixMillis,
        key: Option<&dyn RootKey>,
    ) -> Result<Endorsement, PkiError> {
        self.check_root(now)?;
        let issuer = self.root.issuer(key, "endorse a root")?;
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
                issuer.authority_key()?,
                issue::subject_key(&point)?,
                issue::ca_usage()?,
            ],
            point,
        };
        let cross = template.sign(issuer.name()?, issuer.signer)?;
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
    /// [`PkiError::ClockBeforeRoot`], [`PkiError::RootExpires`]; [`PkiError::RootElsewhere`] when nothing is left that could
    /// issue without the root.
    pub fn renew(&mut self, now: UnixMillis) -> Result<bool, PkiError> {
        self.check_root(now)?;
        let mut zone = self.due(&self.zone, Level::Zone, now);
        // Without the root's key a zone's certificate is used for as long as it issues.
        let region = self.due(&self.region, Level::Region, now);
        let region = region && (zone || !self.root.is_elsewhere());
        // A new issuer has a new name, so whatever is below it is due as well.
        zone |= region;
        let instance = zone || self.due(&self.instance, Level::Instance, now);
        if region {
            let issuer = self.root.issuer(None, "sign the region's certificate")?;
            self.region = Level::Region.issue(issuer, &self.location, now)?;
        }
        if zone {
            self.zone = Level::Zone.issue(self.region.issuer(), &self.location, now)?;
        }
        if instance {
            self.instance = Level::Instance.issue(self.zone.issuer(), &self.location, now)?;
        }
        Ok(instance)
    }

    /// The region's next key and certificate, for [`Authority::adopt_region`]: what a root whose key is kept elsewhere signs
    /// every twenty days. PEM; it holds a private key.
    ///
    /// # Errors
    /// As [`Authority::create_with`]; [`PkiError::OtherKey`] when the key is not the root's.
    pub fn next_region(
        &self,
        now: UnixMillis,
        region: Option<&str>,
        key: Option<&dyn RootKey>,
    ) -> Result<Zeroizing<String>, PkiError> {
        self.check_root(now)?;
        let Location {
            region: own,
            zone,
            instance_id,
        } = &self.location;
        let location = Location::new(region.unwrap_or(own), zone, instance_id)?;
        let issuer = self.root.issuer(key, "sign the region's certificate")?;
        link_pem(&Level::Region.issue(issuer, &location, now)?)
    }

    /// Takes what [`Authority::next_region`] made, and issues what is below it.
    ///
    /// # Errors
    /// [`PkiError::Stored`], [`PkiError::Certificate`], [`PkiError::OtherKey`]: it is not of this root, or not valid at `now`.
    pub fn adopt_region(&mut self, text: &str, now: UnixMillis) -> Result<(), PkiError> {
        const WHICH: &str = "the region's next certificate";
        let mut blocks = pem_blocks(text)?.into_iter();
        let link = read_link(&mut blocks, WHICH)?;
        let root = &self.root.certificate;
        let checked = link.certificate.check_issued_by(root);
        let checked = checked.and_then(|()| link.certificate.check_ca(2));
        let checked = checked.and_then(|()| link.certificate.check_time(now));
        checked.map_err(|source| PkiError::Certificate {
            which: WHICH,
            source,
        })?;
        let region = region_name(&self.root.certificate, &link)?;
        let Location {
            zone, instance_id, ..
        } = &self.location;
        let location = Location::new(&region, zone, instance_id)?;
        let zone = Level::Zone.issue(link.issuer(), &location, now)?;
        self.instance = Level::Instance.issue(zone.issuer(), &location, now)?;
        (self.region, self.zone, self.location) = (link, zone, location);
        Ok(())
    }

    /// The end of the region's certificate, when it takes the root's key, kept elsewhere, to replace it and it is time to.
    #[must_use]
    pub fn wants_region(&self, now: UnixMillis) -> Option<UnixMillis> {
        let soon = now.plus(REGION_NOTICE);
        let wanted = self.root.is_elsewhere() && self.due(&self.region, Level::Region, soon);
        wanted.then(|| self.region.certificate.not_after())
    }

    /// Whether the root's key is kept elsewhere.
    #[must_use]
    pub fn root_is_elsewhere(&self) -> bool {
        self.root.is_elsewhere()
    }

    /// Moves the authority to another region, zone or instance, keeping its root; true when something changed
    /// and is worth storing. Renews as [`Authority::renew`] does. Where the root's key is kept elsewhere the region's
    /// certificate stays, and another region comes by [`Authority::adopt_region`].
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
        let same = location.region == self.location.region;
        let region = !same || self.due(&self.region, Level::Region, now);
        if region || !self.root.is_elsewhere() {
            let issuer = self
                .root
                .issuer(None, "sign a certificate for the region")?;
            self.region = Level::Region.issue(issuer, &location, now)?;
        }
        self.zone = Level::Zone.issue(self.region.issuer(), &location, now)?;
        self.instance = Level::Instance.issue(self.zone.issuer(), &location, now)?;
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
        let issuer = self.instance.issuer();
        let certificate = template.sign(issuer.name()?, issuer.signer)?;
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
        if let Some(key) = &self.root.key {
            text.push_str(&key_pem(key)?);
        }
        text.push_str(&certificate_pem(self.root.certificate.der()));
        for link in [&self.region, &self.zone, &self.instance] {
            text.push_str(&link_pem(link)?);
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
        let mut blocks = pem_blocks(text)?.into_iter().peekable();
        let root = read_root(&mut blocks)?;
        let mut next = |which| read_link(&mut blocks, which);
        let region = next("the region's certificate")?;
        let zone = next("the zone's certificate")?;
        let instance = next("the instance's certificate")?;
        let rest: Vec<_> = blocks.collect();
        let endorsement = match rest.len() {
            0 => None,
            _ => Some(Endorsement::of_blocks(&rest).map_err(stored)?),
        };
        let location = Location::of(&root.certificate, &region, &zone, &instance)?;
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

    fn own(&self) -> [&Certificate; 4] {
        let below = [&self.region, &self.zone, &self.instance].map(|link| &link.certificate);
        let [region, zone, instance] = below;
        [&self.root.certificate, region, zone, instance]
    }

    /// The CA certificates of documents, root first.
    fn cas(&self) -> Vec<&Certificate> {
        let above = self.endorsement.as_ref().map(|by| [&by.root, &by.cross]);
        let own = self.own();
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
        let own = self.own();
        for (position, (certificate, which)) in own.iter().zip(NAMES).enumerate() {
            let issuer = own[position.saturating_sub(1)];
            let checked = certificate.check_issued_by(issuer);
            let checked = checked.and_then(|()| certificate.check_ca(3 - position));
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
        issuer: Issuer<'_>,
        location: &Location,
        now: UnixMillis,
    ) -> Result<CertifiedKey, PkiError> {
        let key = issue::new_ca_key()?;
        let point = key.public_key().as_ref().to_vec();
        let template = Template {
            subject: self.subject(issuer.certificate, location)?,
            serial: issue::random_serial()?,
            not_before: now.minus(self.begins_before()),
            not_after: now.plus(self.lifetime()),
            extensions: self.extensions(issuer, &point)?,
            point,
        };
        let der = template.sign(issuer.name()?, issuer.signer)?;
        let certificate = Certificate::parse(&der).map_err(issue::new_unusable)?;
        Ok(CertifiedKey { key, certificate })
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
    fn extensions(self, issuer: Issuer<'_>, point: &[u8]) -> Result<Vec<Extension>, PkiError> {
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
        root: &Certificate,
        region: &CertifiedKey,
        zone: &CertifiedKey,
        instance: &CertifiedKey,
    ) -> Result<Self, PkiError> {
        let region = region_name(root, region)?;
        let instance = text(instance, issue::CN)?;
        let (id, _) = instance.split_once('.').ok_or(OTHER_FORM)?;
        Self::new(&region, &text(zone, issue::L)?, id)
    }
}

const OTHER_FORM: PkiError = PkiError::Stored {
    problem: "a certificate's name has another form",
};

/// The region that a region's certificate names.
fn region_name(root: &Certificate, region: &CertifiedKey) -> Result<String, PkiError> {
    let root = common_name(root, issue::CN)?;
    let name = text(region, issue::CN)?;
    let below_root = name
        .strip_suffix(&root)
        .and_then(|name| name.strip_suffix('.'));
    let (_, region) = below_root
        .and_then(|name| name.split_once('.'))
        .ok_or(OTHER_FORM)?;
    Ok(region.to_owned())
}

/// `<8 hex>.enclos`, the last two labels of every CA's commonName.
fn root_label(certificate: &Certificate) -> Result<String, PkiError> {
    let name = common_name(certificate, issue::CN)?;
    let labels: Vec<_> = name.rsplitn(3, '.').take(2).collect();
    match labels[..] {
        [last, before] => Ok(format!("{before}.{last}")),
        _ => Err(OTHER_FORM),
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

fn key_pem(key: &EcdsaKeyPair) -> Result<Zeroizing<String>, PkiError> {
    let refused = |_| PkiError::Crypto {
        action: "export a key",
    };
    let key = key.to_pkcs8v1().map_err(refused)?;
    to_pem(KEY_LABEL, key.as_ref()).map(Zeroizing::new)
}

fn link_pem(link: &CertifiedKey) -> Result<Zeroizing<String>, PkiError> {
    let mut text = key_pem(&link.key)?;
    text.push_str(&certificate_pem(link.certificate.der()));
    Ok(text)
}

/// The root: its key and certificate, or its certificate alone.
fn read_root(
    blocks: &mut std::iter::Peekable<impl Iterator<Item = PemBlock>>,
) -> Result<Root, PkiError> {
    const WHICH: &str = "the root";
    if blocks.peek().is_some_and(|(label, _)| label == KEY_LABEL) {
        let CertifiedKey { key, certificate } = read_link(blocks, WHICH)?;
        let key = Some(key);
        return Ok(Root { certificate, key });
    }
    let (label, der) = blocks.next().unwrap_or_default();
    if label != CERTIFICATE_LABEL {
        return Err(PkiError::Stored {
            problem: "a key or a certificate is missing",
        });
    }
    let certificate = Certificate::parse(&der);
    let certificate = certificate.map_err(|source| PkiError::Certificate {
        which: WHICH,
        source,
    })?;
    let key = None;
    Ok(Root { certificate, key })
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
