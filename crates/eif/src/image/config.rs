//! `enclos.toml`: what a user says about an image beyond what its source says.
//!
//! ```toml
//! [app]                       # overrides the image's own configuration; needed for root file systems
//! command = ["/usr/bin/server", "--port", "5000"]
//! env = { LOG = "info" }
//! workdir = "/srv"
//! user = "app"
//! stop_signal = "SIGTERM"
//! log_to_host = true          # what it prints is in its log on the host, in production too; default: false
//!
//! [ingress]                   # default: the image's ExposedPorts
//! ports = [5000]
//! attested_tls = [5000]       # ports where the agent ends TLS with an attested key; default: none
//!
//! [kms]
//! region = "us-east-1"
//! server_name = "kms.enclos.internal"
//! ca = "kms-ca.pem"           # beside this file; its content is measured
//! key_arns = []
//! attested_signing = true     # Sign, Verify, GenerateMac, VerifyMac by attestation; the KMS runs with --attested-signing; default: false
//! ```

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

use enclos_api::config::Kms;
use serde::Deserialize;
use x509_cert::Certificate;

/// Largest file that is read as configuration or certificates (bytes).
const MAX_FILE: u64 = 1 << 20;

/// Why an `enclos.toml` was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is larger than any configuration.
    #[error("{} is larger than {MAX_FILE} bytes; name the right file", path.display())]
    TooLarge {
        /// Which.
        path: PathBuf,
    },
    /// The file is not the TOML that is expected.
    #[error("{} is not a valid enclos.toml", path.display())]
    Toml {
        /// Which.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// The certificates of the KMS are not where the file says.
    #[error(
        "{} names {} as the CA certificate of its KMS (`ca` under `[kms]`), which cannot be read; copy it there from the KMS's \
         data directory, tls/ca.pem",
        path.display(), ca.display()
    )]
    NoCertificates {
        /// The file.
        path: PathBuf,
        /// What it names.
        ca: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The certificates of the KMS cannot be used.
    #[error("{} holds no PEM certificate that can be read; name the KMS's CA certificate", path.display())]
    Certificates {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: x509_cert::der::Error,
    },
    /// A value is out of range.
    #[error("{}: {field} is {value}, expected {expected}", path.display())]
    Value {
        /// Which file.
        path: PathBuf,
        /// The setting.
        field: &'static str,
        /// Its value.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
}

/// A parsed and checked `enclos.toml`; the default is an empty one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BuildConfig {
    /// `[app]`.
    pub app: App,
    /// `[ingress] ports`.
    pub ports: Option<Vec<u16>>,
    /// `[ingress] attested_tls`.
    pub attested_tls: Vec<u16>,
    /// `[kms]`, its certificates read.
    pub kms: Option<Kms>,
}

/// `[app]`: how the application is started, where that differs from the image's configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct App {
    /// Replaces Entrypoint and Cmd.
    pub command: Option<Vec<String>>,
    /// Added to the environment, replacing variables of the same name.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Working directory.
    pub workdir: Option<String>,
    /// `name`, `uid`, `name:group` or `uid:gid`.
    pub user: Option<String>,
    /// Signal that asks the application to stop.
    pub stop_signal: Option<String>,
    /// Whether what it prints goes to the enclave's log on the host.
    #[serde(default)]
    pub log_to_host: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    app: App,
    #[serde(default)]
    ingress: Ingress,
    kms: Option<KmsTable>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ingress {
    ports: Option<Vec<u16>>,
    #[serde(default)]
    attested_tls: Vec<u16>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KmsTable {
    region: String,
    server_name: String,
    ca: PathBuf,
    #[serde(default)]
    key_arns: Vec<String>,
    #[serde(default)]
    attested_signing: bool,
}

impl BuildConfig {
    /// Reads an `enclos.toml` and the certificates that it names, relative to its folder.
    ///
    /// # Errors
    /// [`ConfigError`], with the line in the file where there is one.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = read(path)?;
        let toml = |source| ConfigError::Toml {
            path: path.to_owned(),
            source: Box::new(source),
        };
        let file: File = toml::from_str(&text).map_err(toml)?;
        let folder = path.parent().unwrap_or_else(|| Path::new(""));
        let kms = file
            .kms
            .map(|kms| load_kms(path, folder, kms))
            .transpose()?;
        let config = Self {
            app: file.app,
            ports: file.ingress.ports,
            attested_tls: file.ingress.attested_tls,
            kms,
        };
        config.check(path)?;
        Ok(config)
    }

    fn check(&self, path: &Path) -> Result<(), ConfigError> {
        let bad = |field, value: &str, expected| {
            let (path, value) = (path.to_owned(), format!("{value:?}"));
            Err(ConfigError::Value {
                path,
                field,
                value,
                expected,
            })
        };
        if self.app.command.as_ref().is_some_and(Vec::is_empty) {
            return bad("app.command", "", "the program and its arguments");
        }
        if let Some(name) = self
            .app
            .env
            .keys()
            .find(|name| name.is_empty() || name.contains('='))
        {
            return bad("a name in app.env", name, "a variable's name without `=`");
        }
        if let Some(dir) = self
            .app
            .workdir
            .as_ref()
            .filter(|dir| !dir.starts_with('/'))
        {
            return bad("app.workdir", dir, "an absolute path");
        }
        if self.ports.iter().flatten().any(|port| *port == 0) {
            return bad("ingress.ports", "0", "1 to 65535");
        }
        Ok(())
    }
}

fn load_kms(path: &Path, folder: &Path, kms: KmsTable) -> Result<Kms, ConfigError> {
    let KmsTable {
        region,
        server_name,
        ca,
        key_arns,
        attested_signing,
    } = kms;
    let needed = [
        ("kms.region", &region, "a region such as us-east-1"),
        (
            "kms.server_name",
            &server_name,
            "a name in the KMS's certificate",
        ),
    ];
    for (field, value, expected) in needed {
        if value.is_empty() {
            let (path, value) = (path.to_owned(), format!("{value:?}"));
            return Err(ConfigError::Value {
                path,
                field,
                value,
                expected,
            });
        }
    }
    Ok(Kms {
        region,
        server_name,
        ca_pem: certificates(path, folder.join(ca))?,
        key_arns,
        attested_signing,
    })
}

/// The text of `ca`, which `path` names, if there are certificates in it.
fn certificates(path: &Path, ca: PathBuf) -> Result<String, ConfigError> {
    let pem = read(&ca).map_err(|error| match error {
        ConfigError::Read { path: ca, source } => ConfigError::NoCertificates {
            path: path.to_owned(),
            ca,
            source,
        },
        other => other,
    })?;
    let none = x509_cert::der::ErrorKind::Failed;
    match Certificate::load_pem_chain(pem.as_bytes()) {
        Ok(chain) if !chain.is_empty() => Ok(pem),
        Ok(_) => Err(ConfigError::Certificates {
            path: ca,
            source: none.into(),
        }),
        Err(source) => Err(ConfigError::Certificates { path: ca, source }),
    }
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let failed = |source| ConfigError::Read {
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    let read =
        fs::File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes));
    let len = u64::try_from(read.map_err(failed)?).unwrap_or(u64::MAX);
    if len > MAX_FILE {
        return Err(ConfigError::TooLarge {
            path: path.to_owned(),
        });
    }
    String::from_utf8(bytes)
        .map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidData, error)))
}
