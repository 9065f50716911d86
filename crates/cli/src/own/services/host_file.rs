//! The generated `host.toml`: an identity for this host that stays the same.

use std::fs;
use std::path::{Path, PathBuf};

use enclos_api::config::{HostConfig, Instance, KmsAddress, Role};

use super::Places;
use super::kms::{ACCOUNT, REGION, ROLE_ARN, Wanted};
use crate::failure::{Failure, Outcome};
use crate::files::replace;
use crate::term;

/// A host file that was read.
#[derive(Debug)]
pub(super) struct HostFile {
    pub(super) path: PathBuf,
    pub(super) config: HostConfig,
}

impl HostFile {
    /// Reads the host file; makes the default one if it is absent.
    pub(super) fn ensure(
        places: &Places,
        given: Option<&Path>,
        kms: Option<&Wanted>,
    ) -> Outcome<Self> {
        let path = given.map_or_else(|| places.state.join("host.toml"), Path::to_owned);
        let path = std::path::absolute(&path)?;
        if given.is_none() && !path.exists() {
            write_default(&path, kms)?;
            term::note(format_args!("wrote {}", path.display()));
        }
        let file = Self::read(path)?;
        if kms.is_some() && (file.config.kms.is_none() || file.config.role.is_none()) {
            return Err(Failure::text(format_args!("{} names no KMS or no role", file.path.display())).hint(
                "add [kms] address and [role] arn, credentials_file to it, or remove it and run `enclos up --kms` again",
            ));
        }
        Ok(file)
    }

    fn read(path: PathBuf) -> Outcome<Self> {
        let text =
            fs::read_to_string(&path).map_err(|error| Failure::file(None, "read", &path, error))?;
        let config = toml::from_str(&text).map_err(|error| {
            Failure::from(error).context(format_args!("{} is not a host file", path.display()))
        })?;
        Ok(Self { path, config })
    }
}

fn write_default(path: &Path, kms: Option<&Wanted>) -> Outcome {
    let config = HostConfig {
        instance: Instance {
            id: new_instance_id()?,
            region: REGION.to_owned(),
            availability_zone: format!("{REGION}a"),
            account_id: ACCOUNT.to_owned(),
        },
        role: kms.map(|kms| Role {
            arn: ROLE_ARN.to_owned(),
            credentials_file: Some(kms.credentials.clone()),
        }),
        kms: kms.map(|kms| KmsAddress {
            address: kms.listen,
        }),
    };
    let text = toml::to_string(&config)?;
    replace(path, &text, 0o644)
}

/// `i-` and 17 hex digits, as EC2 makes them.
fn new_instance_id() -> Outcome<String> {
    let mut random = [0; 9];
    getrandom::fill(&mut random)?;
    let mut id = format!("i-{}", hex::encode(random));
    id.truncate("i-".len() + 17);
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(dir: &Path) -> Places {
        Places {
            run: dir.into(),
            state: dir.into(),
        }
    }

    #[test]
    fn the_default_is_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let first = HostFile::ensure(&places(dir.path()), None, None)
            .unwrap()
            .config;
        assert_eq!((first.instance.id.len(), first.kms.is_none()), (19, true));
        assert_eq!(
            HostFile::ensure(&places(dir.path()), None, None)
                .unwrap()
                .config,
            first
        );
    }

    #[test]
    fn a_kms_is_written_into_a_new_file_and_demanded_of_an_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let address = "127.0.0.1:8443".parse().unwrap();
        let wanted = Wanted::new(&places(dir.path()), address, address);
        let made = HostFile::ensure(&places(dir.path()), None, Some(&wanted))
            .unwrap()
            .config;
        assert_eq!(
            (made.kms.unwrap().address, made.role.unwrap().arn.as_str()),
            (address, ROLE_ARN)
        );

        let old = tempfile::tempdir().unwrap();
        HostFile::ensure(&places(old.path()), None, None).unwrap();
        let refused = HostFile::ensure(&places(old.path()), None, Some(&wanted)).unwrap_err();
        assert!(refused.render("enclos").contains("names no KMS"));
    }

    #[test]
    fn a_file_that_is_given_is_never_made() {
        let dir = tempfile::tempdir().unwrap();
        let given = dir.path().join("given.toml");
        assert!(HostFile::ensure(&places(dir.path()), Some(&given), None).is_err());
        assert!(!given.exists());
        fs::write(&given, "[instance]\nid = 1\n").unwrap();
        let refused = HostFile::ensure(&places(dir.path()), Some(&given), None).unwrap_err();
        assert!(refused.render("enclos").contains("is not a host file"));
    }
}
