//! Who a registry is told we are: what `docker login` and `podman login` have stored.
//!
//! | file | read when |
//! |---|---|
//! | `$REGISTRY_AUTH_FILE` | it is set |
//! | `$XDG_RUNTIME_DIR/containers/auth.json`, `~/.config/containers/auth.json` | they are there |
//! | `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json` | it is there |
//!
//! The first that knows the registry counts. Passwords are kept by programs (`credHelpers`, `credsStore`) or in the file.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use oci_client::secrets::RegistryAuth;
use serde::Deserialize;

/// What docker calls Docker Hub in its file.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

#[derive(Debug, Default, Deserialize)]
struct Stored {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default, rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
    #[serde(rename = "credsStore")]
    store: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Entry {
    auth: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Helped {
    username: String,
    secret: String,
}

/// What to tell `registry`.
pub(super) fn find(registry: &str) -> anyhow::Result<RegistryAuth> {
    for path in files() {
        let Ok(text) = std::fs::read_to_string(&path) else {
            continue;
        };
        let found = parse(&text).and_then(|stored| stored.find(registry));
        if let Some(found) = found.with_context(|| format!("cannot use {}", path.display()))? {
            return Ok(found);
        }
    }
    Ok(RegistryAuth::Anonymous)
}

fn files() -> Vec<PathBuf> {
    let variable = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(file) = variable("REGISTRY_AUTH_FILE") {
        return vec![file];
    }
    let home = variable("HOME");
    let below = |folder: Option<&Path>, file: &str| folder.map(|folder| folder.join(file));
    let docker = variable("DOCKER_CONFIG").or_else(|| below(home.as_deref(), ".docker"));
    let files = [
        below(
            variable("XDG_RUNTIME_DIR").as_deref(),
            "containers/auth.json",
        ),
        below(home.as_deref(), ".config/containers/auth.json"),
        below(docker.as_deref(), "config.json"),
    ];
    files.into_iter().flatten().collect()
}

fn parse(text: &str) -> anyhow::Result<Stored> {
    serde_json::from_str(text).context("it is not the JSON that `docker login` writes")
}

impl Stored {
    fn find(&self, registry: &str) -> anyhow::Result<Option<RegistryAuth>> {
        let key = if registry == "docker.io" {
            DOCKER_HUB
        } else {
            registry
        };
        if let Some(helper) = self.helpers.get(key) {
            return ask(helper, key).map(Some);
        }
        let Some(entry) = self.auths.get(key) else {
            return Ok(None);
        };
        match (&entry.auth, &self.store) {
            (Some(auth), _) if !auth.is_empty() => decode(auth).map(Some),
            (_, Some(store)) => ask(store, key).map(Some),
            _ => Ok(None),
        }
    }
}

/// `user:password` in base64.
fn decode(auth: &str) -> anyhow::Result<RegistryAuth> {
    let text = BASE64_STANDARD
        .decode(auth)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok());
    let pair = text.as_deref().and_then(|text| text.split_once(':'));
    let (user, password) = pair.context("an `auth` in it is not base64 of user:password")?;
    Ok(RegistryAuth::Basic(user.to_owned(), password.to_owned()))
}

/// Asks `docker-credential-<helper>`, which gets the registry's name on standard input.
fn ask(helper: &str, registry: &str) -> anyhow::Result<RegistryAuth> {
    let program = format!("docker-credential-{helper}");
    let mut command = Command::new(&program);
    command
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot run {program}, which keeps the password"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(registry.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{program} knows no password for {registry}");
    }
    let Helped { username, secret } = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("{program} printed something else than a user and a secret"))?;
    Ok(RegistryAuth::Basic(username, secret))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str, registry: &str) -> Option<(String, String)> {
        match parse(text).unwrap().find(registry).unwrap()? {
            RegistryAuth::Basic(user, password) => Some((user, password)),
            _ => None,
        }
    }

    #[test]
    fn what_docker_login_wrote_is_found() {
        let text = r#"{"auths":{"example.com:5000":{"auth":"dXNlcjpwYTpzcw=="},"https://index.docker.io/v1/":{"auth":"YTpi"}}}"#;
        assert_eq!(
            found(text, "example.com:5000"),
            Some(("user".into(), "pa:ss".into()))
        );
        assert_eq!(found(text, "docker.io"), Some(("a".into(), "b".into())));
        assert_eq!(found(text, "example.com"), None);
        assert_eq!(found("{}", "docker.io"), None);
    }

    #[test]
    fn what_cannot_be_used_is_said() {
        assert!(parse("{").is_err());
        for auth in ["!", "YQ=="] {
            let stored = parse(&format!(r#"{{"auths":{{"r":{{"auth":"{auth}"}}}}}}"#)).unwrap();
            assert!(stored.find("r").is_err(), "{auth}");
        }
        let stored = parse(r#"{"credHelpers":{"r":"none-such"}}"#).unwrap();
        assert!(
            stored
                .find("r")
                .unwrap_err()
                .to_string()
                .contains("docker-credential-none-such")
        );
    }
}
