//! A PKCS#11 token of a test's own, SoftHSM's, and data directories whose root key it protects. `cargo xtask test` installs it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::json;

use super::{BINARY, Client, Server, plaintext, postgres};

pub(crate) const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";
const DEV: [&str; 3] = ["--listen", "127.0.0.1:0", "--dev"];

pub(crate) type Variables = Vec<(&'static str, PathBuf)>;

/// An empty token, a file with its PIN, and a data directory.
pub(crate) struct Host {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) database: Option<String>,
}

impl Host {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::create_dir(path("tokens")).unwrap();
        std::fs::create_dir(path("data")).unwrap();
        let tokens = path("tokens").display().to_string();
        let config = format!(
            "directories.tokendir = {tokens}\nobjectstore.backend = file\nlog.level = ERROR\n"
        );
        std::fs::write(path("softhsm2.conf"), config).unwrap();
        std::fs::write(path("pin"), "1234\n").unwrap();
        std::fs::write(path("wrong"), "4321\n").unwrap();
        std::fs::write(path("passphrase"), "correct horse battery\n").unwrap();
        let output = Command::new("softhsm2-util")
            .args(["--init-token", "--free", "--label", "kms"])
            .args(["--so-pin", "5678", "--pin", "1234"])
            .env("SOFTHSM2_CONF", path("softhsm2.conf"))
            .output();
        done(&output.expect("softhsm2-util (package softhsm2)"));
        let database = postgres::for_directory(&path("data"));
        Self {
            directory,
            database,
        }
    }

    /// Another node of the same database and token, with nothing yet.
    pub(crate) fn node(&self, name: &str) -> Node<'_> {
        let data = self.path(name);
        std::fs::create_dir_all(&data).unwrap();
        Node { host: self, data }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn uri(&self, label: &str) -> String {
        let pin = self.text("pin");
        format!("pkcs11:token=kms;object={label}?module-path={MODULE}&pin-source={pin}")
    }

    /// What reaches the token.
    pub(crate) fn variables(&self, pin: &str) -> Variables {
        vec![
            ("SOFTHSM2_CONF", self.path("softhsm2.conf")),
            ("ENCLOS_PKCS11_MODULE", MODULE.into()),
            ("ENCLOS_PKCS11_PIN_FILE", self.path(pin)),
        ]
    }

    /// The same, and what opens a passphrase.
    pub(crate) fn all(&self) -> Variables {
        let passphrase = ("ENCLOS_KMS_PASSPHRASE_FILE", self.path("passphrase"));
        [self.variables("pin"), vec![passphrase]].concat()
    }

    pub(crate) fn this(&self) -> Node<'_> {
        self.node("data")
    }
}

/// A data directory.
pub(crate) struct Node<'a> {
    pub(crate) host: &'a Host,
    pub(crate) data: PathBuf,
}

impl Node<'_> {
    pub(crate) fn tool(&self, variables: &Variables, arguments: &[&str]) -> Output {
        Command::new(BINARY)
            .args(arguments)
            .arg("--data")
            .arg(&self.data)
            .args(
                self.host
                    .database
                    .iter()
                    .flat_map(|url| ["--database", url]),
            )
            .env_remove("ENCLOS_KMS_PASSPHRASE_FILE")
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .output()
            .unwrap()
    }

    #[track_caller]
    pub(crate) fn done(&self, arguments: &[&str]) -> String {
        done(&self.tool(&self.host.all(), arguments))
    }

    /// Puts the root key under a key of this name, which the token makes.
    #[track_caller]
    pub(crate) fn protect_anew(&self, name: &str) -> String {
        let uri = self.host.uri(name);
        self.done(&["root", "protect", "--token", &uri, "--make-token-key"])
    }

    #[track_caller]
    pub(crate) fn refused(
        &self,
        variables: &Variables,
        arguments: &[&str],
        status: i32,
        expected: &str,
    ) {
        let output = self.tool(variables, arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{text}");
        assert!(text.contains(expected), "{text}");
    }

    /// A server that finds the token, and no passphrase.
    pub(crate) fn serve(&self) -> Server {
        let variables = self.host.variables("pin");
        let variables = variables
            .iter()
            .map(|(name, value)| (*name, value.as_path()));
        let variables: Vec<(&str, &Path)> = variables.collect();
        Server::launch(&self.data, self.host.database.clone(), &DEV, &variables)
    }

    pub(crate) fn root_key(&self) -> String {
        std::fs::read_to_string(self.data.join("root.key")).unwrap()
    }
}

#[track_caller]
pub(crate) fn done(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub(crate) fn kept(client: &Client) -> String {
    client.encrypt(&client.create_key(), b"kept", json!({}))
}

#[track_caller]
pub(crate) fn opens(client: &Client, blob: &str) {
    assert_eq!(plaintext(&client.decrypt(blob, json!({})).ok()), b"kept");
}

#[track_caller]
pub(crate) fn wait_until(server: &Server, is_so: impl Fn(&str) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so(&server.log()) {
        assert!(Instant::now() < deadline, "{}", server.log());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until the server has said that everything is sealed under that version.
#[track_caller]
pub(crate) fn wait_until_sealed(server: &Server, version: u32) {
    let version = format!("version={version}");
    wait_until(server, |log| {
        let mut lines = log
            .lines()
            .filter(|line| line.contains("everything is sealed"));
        lines.any(|line| line.contains(&version))
    });
}
