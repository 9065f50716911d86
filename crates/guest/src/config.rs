//! Reads the measured configuration.

use std::io;
use std::path::{Path, PathBuf};

use enclos_api::PROTOCOL_VERSION;
use enclos_api::config::EnclaveConfig;

/// Why the measured configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is not there, or unreadable.
    #[error("cannot read {}; build the image with `enclos build`", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The file is not the JSON that was expected.
    #[error("{} is not an enclave configuration", path.display())]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: serde_json::Error,
    },
    /// The builder spoke another version.
    #[error(
        "the image was built for protocol version {found}, this runtime speaks {PROTOCOL_VERSION}; \
         build it again with the matching `enclos`"
    )]
    Version {
        /// What the image says.
        found: u32,
    },
    /// There is nothing to run.
    #[error(
        "the image names no command; give `command` in enclos.toml or an entrypoint in the image"
    )]
    NoCommand,
    /// An ingress port that no application can listen on.
    #[error("ingress port 0 is no port; name the port the application listens on")]
    PortZero,
    /// Attested TLS on a port that nobody reaches.
    #[error(
        "attested TLS is wanted on port {port}, which is no ingress port; add it to `[ingress] ports`"
    )]
    NoIngress {
        /// Which one.
        port: u16,
    },
}

/// Reads and checks the configuration at `path`.
///
/// # Errors
/// See [`ConfigError`].
pub fn read(path: &Path) -> Result<EnclaveConfig, ConfigError> {
    let bytes = std::fs::read(path).map_err(|source| ConfigError::Read {
        path: path.to_path_buf(),
        source,
    })?;
    let config: EnclaveConfig =
        serde_json::from_slice(&bytes).map_err(|source| ConfigError::Parse {
            path: path.to_path_buf(),
            source,
        })?;
    check(&config)?;
    Ok(config)
}

fn check(config: &EnclaveConfig) -> Result<(), ConfigError> {
    if config.version != PROTOCOL_VERSION {
        return Err(ConfigError::Version {
            found: config.version,
        });
    }
    if config.process.argv.first().is_none_or(String::is_empty) {
        return Err(ConfigError::NoCommand);
    }
    if config.ingress.contains(&0) {
        return Err(ConfigError::PortZero);
    }
    let reachable = |port: &&u16| config.ingress.contains(port);
    if let Some(port) = config.attested_tls.iter().find(|port| !reachable(port)) {
        return Err(ConfigError::NoIngress { port: *port });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<EnclaveConfig, ConfigError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), json).unwrap();
        read(file.path())
    }

    const GOOD: &str = r#"{"version":1,"process":{"argv":["/app"],"env":[],"cwd":"/","user":"",
        "stop_signal":"SIGTERM"},"ingress":[5000],"kms":null}"#;

    #[test]
    fn a_good_configuration_is_accepted() {
        assert_eq!(parse(GOOD).unwrap().ingress, [5000]);
    }

    #[test]
    fn each_bad_configuration_names_its_fault() {
        let missing = read(Path::new("/nonexistent/config.json"));
        assert!(matches!(missing, Err(ConfigError::Read { .. })));
        assert!(matches!(parse("{"), Err(ConfigError::Parse { .. })));
        let unknown = GOOD.replace("\"kms\":null", "\"kms\":null,\"x\":1");
        assert!(matches!(parse(&unknown), Err(ConfigError::Parse { .. })));
        let version = GOOD.replace("\"version\":1", "\"version\":2");
        assert!(matches!(
            parse(&version),
            Err(ConfigError::Version { found: 2 })
        ));
        let empty = GOOD.replace("[\"/app\"]", "[]");
        assert!(matches!(parse(&empty), Err(ConfigError::NoCommand)));
        let zero = GOOD.replace("5000", "0");
        assert!(matches!(parse(&zero), Err(ConfigError::PortZero)));
        let apart = GOOD.replace("\"kms\":null", "\"kms\":null,\"attested_tls\":[5001]");
        assert!(matches!(
            parse(&apart),
            Err(ConfigError::NoIngress { port: 5001 })
        ));
        let good = apart.replace("5001", "5000");
        assert_eq!(parse(&good).unwrap().attested_tls, [5000]);
    }
}
