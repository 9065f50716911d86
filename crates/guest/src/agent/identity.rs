//! The certificate by which the agent stands in for the KMS inside the enclave, and the bundle that makes the
//! application trust it.
//!
//! At each start the agent makes a certificate authority that can vouch for the KMS's names and nothing else, issues
//! one certificate and forgets the authority's key. The bundle is the image's own roots and this authority.

use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, KeyPair, KeyUsagePurpose, NameConstraints, SanType,
};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::{Duration, OffsetDateTime};
use tokio_rustls::TlsAcceptor;

use crate::kms_names::SERVICE_ADDRESS;

/// Where distributions keep their roots.
const SYSTEM_BUNDLES: [&str; 5] = [
    "etc/ssl/certs/ca-certificates.crt",
    "etc/pki/tls/certs/ca-bundle.crt",
    "etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "etc/ssl/ca-bundle.pem",
    "etc/ssl/cert.pem",
];

/// Longest bundle of an image; Debian's has 220 KB.
const MAX_BUNDLE: u64 = 8 << 20;

/// How long the certificates are good for: longer than any enclave runs.
const LIFETIME: Duration = Duration::days(3650);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The certificates could not be made.
    #[error("cannot make a certificate")]
    Certificate(#[from] rcgen::Error),
    /// TLS does not take the certificate.
    #[error("TLS cannot be set up")]
    Tls(#[from] rustls::Error),
    /// The bundle could not be written.
    #[error("cannot write {}", path.display())]
    Bundle {
        /// Where.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

/// The agent's certificate and its authority's.
#[derive(Debug)]
pub struct Identity {
    authority_pem: String,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    /// A new authority and certificate for these names.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn new(names: &[String]) -> Result<Self, IdentityError> {
        let authority_key = KeyPair::generate()?;
        let authority_params = authority(names);
        let authority = authority_params.self_signed(&authority_key)?;
        let issuer = rcgen::Issuer::new(authority_params, authority_key);
        let key = KeyPair::generate()?;
        let certificate = leaf(names)?.signed_by(&key, &issuer)?;
        Ok(Self {
            authority_pem: authority.pem(),
            chain: vec![certificate.der().clone(), authority.der().clone()],
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        })
    }

    /// The authority's certificate.
    #[must_use]
    pub fn authority_pem(&self) -> &str {
        &self.authority_pem
    }

    /// TLS for the endpoint.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn acceptor(&self) -> Result<TlsAcceptor, IdentityError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(self.chain.clone(), self.key.clone_key())?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// Writes the image's roots and the authority to `path`, readable to everyone.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn write_bundle(&self, rootfs: &Path, path: &Path) -> Result<(), IdentityError> {
        let mut bundle = system_bundle(rootfs);
        if !bundle.is_empty() && !bundle.ends_with(b"\n") {
            bundle.push(b'\n');
        }
        bundle.extend(self.authority_pem.bytes());
        std::fs::write(path, bundle).map_err(|source| IdentityError::Bundle {
            path: path.to_path_buf(),
            source,
        })
    }
}

fn validity(params: &mut CertificateParams) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - Duration::hours(1);
    params.not_after = now + LIFETIME;
}

/// An authority that can vouch for these names, the agent's address and nothing else.
fn authority(names: &[String]) -> CertificateParams {
    let mut params = CertificateParams::default();
    validity(&mut params);
    params
        .distinguished_name
        .push(DnType::CommonName, "Enclos agent of this boot");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let mut permitted: Vec<GeneralSubtree> =
        names.iter().cloned().map(GeneralSubtree::DnsName).collect();
    let address = CidrSubnet::from_addr_prefix(IpAddr::V4(SERVICE_ADDRESS), 32);
    permitted.push(GeneralSubtree::IpAddress(address));
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: permitted,
        excluded_subtrees: Vec::new(),
    });
    params
}

fn leaf(names: &[String]) -> Result<CertificateParams, IdentityError> {
    let mut params = CertificateParams::new(names.to_vec())?;
    validity(&mut params);
    params
        .subject_alt_names
        .push(SanType::IpAddress(IpAddr::V4(SERVICE_ADDRESS)));
    let name = names.first().map_or("kms", String::as_str);
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// The roots that the image brings, or nothing.
fn system_bundle(rootfs: &Path) -> Vec<u8> {
    let read = |path: &&str| {
        read_inside(rootfs, path)
            .ok()
            .filter(|bytes| !bytes.is_empty())
    };
    SYSTEM_BUNDLES.iter().find_map(read).unwrap_or_default()
}

/// Reads a file of the image; links in it lead where the application would find them.
fn read_inside(rootfs: &Path, path: &str) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let root = File::open(rootfs)?;
    let file = openat2(&root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)?;
    let mut bytes = Vec::new();
    File::from(file).take(MAX_BUNDLE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kms_names;
    use rustls::RootCertStore;
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier;
    use rustls::pki_types::{ServerName, UnixTime};

    fn verify(identity: &Identity, name: &'static str) -> Result<(), rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(identity.chain[1].clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
        let name = ServerName::try_from(name).unwrap();
        let verifier = verifier.build().unwrap();
        let leaf = &identity.chain[0];
        verifier
            .verify_server_cert(leaf, &[], &name, &[], UnixTime::now())
            .map(drop)
    }

    #[test]
    fn the_certificate_is_good_for_the_kms_and_nobody_else() {
        let identity = Identity::new(&kms_names::names("eu-west-3")).unwrap();
        verify(&identity, "kms.eu-west-3.amazonaws.com").unwrap();
        verify(&identity, "kms-fips.eu-west-3.amazonaws.com").unwrap();
        verify(&identity, "169.254.170.3").unwrap();
        verify(&identity, "s3.eu-west-3.amazonaws.com").unwrap_err();
        identity.acceptor().unwrap();
    }

    #[test]
    fn the_authority_vouches_for_no_other_name() {
        let names = kms_names::names("eu-west-3");
        let (key, params) = (KeyPair::generate().unwrap(), authority(&names));
        let authority = params.self_signed(&key).unwrap();
        let issuer = rcgen::Issuer::new(params, key);
        let leaf_key = KeyPair::generate().unwrap();
        let forged = leaf(&["s3.eu-west-3.amazonaws.com".to_owned()]).unwrap();
        let forged = forged.signed_by(&leaf_key, &issuer).unwrap();
        let identity = Identity {
            authority_pem: String::new(),
            chain: vec![forged.der().clone(), authority.der().clone()],
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf_key.serialize_der())),
        };
        verify(&identity, "s3.eu-west-3.amazonaws.com").unwrap_err();
    }

    #[test]
    fn the_bundle_is_the_images_roots_and_the_authority() {
        let rootfs = tempfile::tempdir().unwrap();
        let certs = rootfs.path().join("etc/ssl/certs");
        std::fs::create_dir_all(&certs).unwrap();
        std::fs::create_dir_all(rootfs.path().join("usr/share")).unwrap();
        std::fs::write(rootfs.path().join("usr/share/roots"), "SYSTEM ROOTS").unwrap();
        std::os::unix::fs::symlink("/usr/share/roots", certs.join("ca-certificates.crt")).unwrap();
        let identity = Identity::new(&kms_names::names("eu-west-3")).unwrap();
        let path = rootfs.path().join("bundle.pem");
        identity.write_bundle(rootfs.path(), &path).unwrap();
        let bundle = std::fs::read_to_string(&path).unwrap();
        assert_eq!(
            bundle,
            format!("SYSTEM ROOTS\n{}", identity.authority_pem())
        );
        let empty = tempfile::tempdir().unwrap();
        identity.write_bundle(empty.path(), &path).unwrap();
        let bundle = std::fs::read_to_string(&path).unwrap();
        assert_eq!(bundle, identity.authority_pem());
    }
}
