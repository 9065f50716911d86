//! Reads the operator's `host.toml`.

use std::io;
use std::path::{Path, PathBuf};

use enclos_api::config::HostConfig;

/// Why the host file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read {}; name the host file with --config", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// It is not what was expected.
    #[error("{} is no host file", path.display())]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: Box<toml::de::Error>,
    },
}

/// Reads the host file. Unknown keys are refused: a secret that somebody puts here by mistake is never held.
///
/// # Errors
/// See [`ConfigError`].
pub fn read(path: &Path) -> Result<HostConfig, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_path_buf(),
        source,
    })?;
    toml::from_str(&text).map_err(|source| ConfigError::Parse {
        path: path.to_path_buf(),
        source: Box::new(source),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
[instance]
id = "i-0123456789abcdef0"
region = "eu-west-3"
availability_zone = "eu-west-3a"
account_id = "000000000000"
[role]
arn = "arn:aws:iam::000000000000:role/parent"
credentials_file = "/etc/enclos/role.json"
[kms]
address = "127.0.0.1:9100"
"#;

    fn parse(text: &str) -> Result<HostConfig, ConfigError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        read(file.path())
    }

    #[test]
    fn a_good_file_is_read() {
        let config = parse(GOOD).unwrap();
        assert_eq!(config.kms.unwrap().address.port(), 9100);
        assert_eq!(config.instance.region, "eu-west-3");
    }

    #[test]
    fn bad_files_name_their_fault() {
        assert!(matches!(
            read(Path::new("/nonexistent")),
            Err(ConfigError::Read { .. })
        ));
        let secret = GOOD.replace("credentials_file", "secret_access_key");
        let error = parse(&secret).unwrap_err();
        let ConfigError::Parse { source, .. } = error else {
            panic!("{error}")
        };
        assert!(source.to_string().contains("secret_access_key"), "{source}");
        assert!(parse(&GOOD.replace("9100", "99999")).is_err());
        assert!(parse("").is_err());
    }
}
