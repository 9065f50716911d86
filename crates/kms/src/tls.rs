//! TLS of the server: a certificate that the operator brings, or one from a certificate authority that is
//! made once and kept in the data directory.
//!
//! ```text
//! D/tls/ca.pem        what clients and enclave images trust; ten years
//! D/tls/ca-key.pem    0600; signs server certificates, nothing else
//! ```
//!
//! Server certificates live in memory only: one is issued at every start, and again while the server
//! runs, when half of its life is over.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::crypto::aws_lc_rs;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::{Duration, OffsetDateTime};

use crate::durable::write_new;

/// Life of the certificate authority.
const CA_DAYS: i64 = 3650;

/// Life of a server certificate.
pub const SERVER_DAYS: i64 = 90;

/// Certificates are valid from a little earlier, for clients whose clock is late.
const BACKDATE: Duration = Duration::hours(1);

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file.
    #[error("cannot read or write {path}")]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Not PEM, or without what was looked for.
    #[error("{path} holds no {expected} in PEM form")]
    Pem {
        /// Which file.
        path: PathBuf,
        /// What was looked for.
        expected: &'static str,
        /// Why not.
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    /// Issuing a certificate failed.
    #[error("cannot issue a certificate for {names:?}")]
    Issue {
        /// For which names.
        names: Vec<String>,
        /// Why not.
        #[source]
        source: rcgen::Error,
    },
    /// Clients cannot be verified.
    #[error("the authority of client certificates in {path} cannot be used")]
    ClientAuthority {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::server::VerifierBuilderError,
    },
    /// rustls refuses certificate or key.
    #[error("certificate and private key cannot be used for TLS")]
    Rustls(#[from] rustls::Error),
}

/// Where the server's certificate comes from.
#[derive(Debug, Clone)]
pub enum Source {
    /// The operator's files.
    Files {
        /// Certificate chain, PEM.
        certificate: PathBuf,
        /// Private key, PEM.
        key: PathBuf,
    },
    /// A certificate authority of our own.
    Own {
        /// Data directory.
        data: PathBuf,
        /// DNS names and addresses of the server.
        names: Vec<String>,
    },
}

/// A server certificate that can be replaced while connections use it.
#[derive(Debug)]
pub struct ServerCertificate {
    source: Source,
    current: RwLock<Arc<CertifiedKey>>,
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current.read().ok().map(|current| Arc::clone(&current))
    }
}

impl ServerCertificate {
    /// Loads or issues a certificate.
    ///
    /// # Errors
    /// If files are missing or unusable.
    pub fn new(source: Source) -> Result<Arc<Self>, TlsError> {
        let current = RwLock::new(source.certified_key()?);
        Ok(Arc::new(Self { source, current }))
    }

    /// Loads or issues it again.
    ///
    /// # Errors
    /// If that fails; the old one stays in use.
    pub fn renew(&self) -> Result<(), TlsError> {
        let renewed = self.source.certified_key()?;
        if let Ok(mut current) = self.current.write() {
            *current = renewed;
        }
        Ok(())
    }

    /// A rustls configuration that presents it. With `client_ca` it admits only clients that present a certificate of
    /// one of the authorities in that file.
    ///
    /// # Errors
    /// If the file is no authority's.
    pub fn server_config(
        self: &Arc<Self>,
        client_ca: Option<&Path>,
    ) -> Result<rustls::ServerConfig, TlsError> {
        let resolver: Arc<dyn ResolvesServerCert> = Arc::<Self>::clone(self);
        let builder =
            rustls::ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()?;
        let builder = match client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => builder.with_client_cert_verifier(client_verifier(path)?),
        };
        let mut config = builder.with_cert_resolver(resolver);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

impl Source {
    fn certified_key(&self) -> Result<Arc<CertifiedKey>, TlsError> {
        let (chain, key) = match self {
            Self::Files { certificate, key } => (read_certificates(certificate)?, read_key(key)?),
            Self::Own { data, names } => issue(data, names)?,
        };
        let key = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider())?;
        Ok(Arc::new(key))
    }
}

fn client_verifier(path: &Path) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in read_certificates(path)? {
        roots.add(certificate)?;
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|source| TlsError::ClientAuthority {
            path: path.to_owned(),
            source,
        })
}

/// Where the certificate of a data directory's own authority is.
#[must_use]
pub fn ca_path(data: &Path) -> PathBuf {
    data.join("tls/ca.pem")
}

fn pem_error(
    path: &Path,
    expected: &'static str,
) -> impl Fn(rustls_pki_types::pem::Error) -> TlsError {
    move |source| TlsError::Pem {
        path: path.to_owned(),
        expected,
        source,
    }
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let error = pem_error(path, "certificate");
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path)
        .map_err(&error)?
        .collect();
    let chain = chain.map_err(&error)?;
    if chain.is_empty() {
        return Err(error(rustls_pki_types::pem::Error::NoItemsFound));
    }
    Ok(chain)
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(pem_error(path, "private key"))
}

type ChainAndKey = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn issue(data: &Path, names: &[String]) -> Result<ChainAndKey, TlsError> {
    let failed = |source| TlsError::Issue {
        names: names.to_owned(),
        source,
    };
    // The authority's certificate is made from the same parameters, so name and key id agree with it.
    let issuer = Issuer::new(authority_params(), authority(data)?);
    let mut params = CertificateParams::new(names.to_vec()).map_err(failed)?;
    let common_name = names.first().map_or("enclos-kms", String::as_str);
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    set_validity(&mut params, SERVER_DAYS);
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = params.signed_by(&key, &issuer).map_err(failed)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Ok((vec![certificate.der().clone()], key))
}

fn set_validity(params: &mut CertificateParams, days: i64) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BACKDATE;
    params.not_after = now + Duration::days(days);
}

/// Reads the key of the data directory's authority, or makes both key and certificate.
fn authority(data: &Path) -> Result<KeyPair, TlsError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| TlsError::Io { path, source }
    };
    let failed = |source| TlsError::Issue {
        names: vec!["Enclos KMS CA".to_owned()],
        source,
    };
    let directory = data.join("tls");
    let (certificate_path, key_path) = (ca_path(data), directory.join("ca-key.pem"));
    std::fs::create_dir_all(&directory).map_err(io(&directory))?;
    if !key_path.try_exists().map_err(io(&key_path))? {
        let key = KeyPair::generate().map_err(failed)?;
        write_new(&key_path, key.serialize_pem().as_bytes()).map_err(io(&key_path))?;
    }
    let key_pem = std::fs::read_to_string(&key_path).map_err(io(&key_path))?;
    let key = KeyPair::from_pem(&key_pem).map_err(failed)?;
    if !certificate_path
        .try_exists()
        .map_err(io(&certificate_path))?
    {
        let certificate = authority_params().self_signed(&key).map_err(failed)?;
        write_new(&certificate_path, certificate.pem().as_bytes())
            .map_err(io(&certificate_path))?;
        let public = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        std::fs::set_permissions(&certificate_path, public).map_err(io(&certificate_path))?;
    }
    Ok(key)
}

fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, "Enclos KMS CA");
    params
        .distinguished_name
        .push(DnType::OrganizationName, "Enclos");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, CA_DAYS);
    params
}

/// Names that a server's own certificate carries: the given ones, loopback, and the address it listens on.
#[must_use]
pub fn certificate_names(server_names: &[String], listen: IpAddr) -> Vec<String> {
    let mut names = server_names.to_vec();
    names.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
    if !listen.is_unspecified() && !listen.is_loopback() {
        names.push(listen.to_string());
    }
    names
}
