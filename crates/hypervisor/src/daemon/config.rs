//! The operator's file: read once, at start.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use enclos_api::config::HostConfig;

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the host configuration {}; write one as docs/hypervisor.md shows", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not the TOML that was expected.
    #[error("the host configuration {} is not what docs/hypervisor.md describes", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A value has the wrong form.
    #[error("the host configuration's {field} is {found:?}, expected {expected}")]
    Value {
        /// Which one.
        field: &'static str,
        /// What it is.
        found: String,
        /// What it should be.
        expected: &'static str,
    },
}

/// Reads and checks `path`.
///
/// # Errors
/// See [`ConfigError`].
pub fn read(path: &Path) -> Result<HostConfig, ConfigError> {
    let text = fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    let config: HostConfig = toml::from_str(&text).map_err(|source| ConfigError::Parse {
        path: path.to_owned(),
        source: Box::new(source),
    })?;
    check(&config)?;
    Ok(config)
}

/// What goes into certificates, PCRs and path names has to have AWS's form.
fn check(config: &HostConfig) -> Result<(), ConfigError> {
    let instance = &config.instance;
    let id = instance.id.strip_prefix("i-").unwrap_or_default();
    let name = |text: &str| {
        !text.is_empty()
            && text.len() <= 32
            && text
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    expect(
        id.len() == 17 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')),
        "instance.id",
        &instance.id,
        "`i-` and 17 lower-case hex digits",
    )?;
    expect(
        name(&instance.region),
        "instance.region",
        &instance.region,
        "a region such as us-east-1",
    )?;
    expect(
        name(&instance.availability_zone),
        "instance.availability_zone",
        &instance.availability_zone,
        "an availability zone such as us-east-1a",
    )?;
    expect(
        instance.account_id.len() == 12 && instance.account_id.bytes().all(|b| b.is_ascii_digit()),
        "instance.account_id",
        &instance.account_id,
        "twelve digits",
    )?;
    let role = config.role.as_ref().map(|role| role.arn.as_str());
    expect(
        role.is_none_or(is_role_arn),
        "role.arn",
        role.unwrap_or_default(),
        "an ARN such as arn:aws:iam::000000000000:role/name",
    )
}

fn is_role_arn(arn: &str) -> bool {
    let parts: Vec<&str> = arn.splitn(6, ':').collect();
    matches!(parts[..], ["arn", partition, "iam", "", account, role]
        if !partition.is_empty() && account.len() == 12 && role.len() > 5 && role.starts_with("role/"))
        && arn.bytes().all(|b| b.is_ascii_graphic())
}

fn expect(
    holds: bool,
    field: &'static str,
    found: &str,
    expected: &'static str,
) -> Result<(), ConfigError> {
    if holds {
        return Ok(());
    }
    Err(ConfigError::Value {
        field,
        found: found.to_owned(),
        expected,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        [instance]
        id = "i-0123456789abcdef0"
        region = "us-east-1"
        availability_zone = "us-east-1a"
        account_id = "000000000000"
        [role]
        arn = "arn:aws:iam::000000000000:role/enclave-host"
    "#;

    fn parse(text: &str) -> Result<HostConfig, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("host.toml");
        fs::write(&path, text).unwrap();
        read(&path)
    }

    #[test]
    fn the_documented_file_is_accepted() {
        assert_eq!(parse(GOOD).unwrap().instance.region, "us-east-1");
    }

    #[test]
    fn values_of_another_form_are_refused_by_field() {
        for (good, bad, named) in [
            ("i-0123456789abcdef0", "i-0123456789abcdef", "instance.id"),
            ("i-0123456789abcdef0", "../3456789abcdef012", "instance.id"),
            ("\"us-east-1\"", "\"us east\"", "instance.region"),
            ("us-east-1a", "", "instance.availability_zone"),
            ("\"000000000000\"", "\"0\"", "instance.account_id"),
            ("role/enclave-host", "user/enclave-host", "role.arn"),
            ("role/enclave-host", "role/", "role.arn"),
        ] {
            let error = parse(&GOOD.replacen(good, bad, 1)).unwrap_err();
            assert!(
                matches!(&error, ConfigError::Value { field, .. } if *field == named),
                "{error}"
            );
        }
    }

    #[test]
    fn a_missing_file_and_a_misspelt_key_differ() {
        let gone = read(Path::new("/nonexistent/host.toml"));
        assert!(matches!(gone, Err(ConfigError::Read { .. })));
        let misspelt = parse(&GOOD.replace("region", "regoin"));
        assert!(matches!(misspelt, Err(ConfigError::Parse { .. })));
    }
}
