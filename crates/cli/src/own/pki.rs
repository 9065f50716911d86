//! `enclos pki`: the attestation root of this host, where the hypervisor keeps it.
//!
//! Whatever changes it takes the lock that a running hypervisor holds: it keeps the CA in memory and would write
//! over the change.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::{Args, Subcommand};
use enclos_api::config::{CA_KEYS, CA_LOCK, CA_ROOT};
use enclos_attest::UnixMillis;
use enclos_attest::pki::{Authority, Endorsement};
use rustix::fs::FlockOperation;
use serde::Serialize;
use zeroize::Zeroizing;

use crate::dirs;
use crate::failure::{Failure, Outcome};
use crate::term;

/// `enclos pki …`.
#[derive(Debug, Subcommand)]
pub(crate) enum Pki {
    /// Show the certificates that documents of this host carry, root first
    Show {
        #[command(flatten)]
        state: State,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the root that verifiers of this host's documents have to trust, PEM
    Export {
        #[command(flatten)]
        state: State,
        /// The host's own root, even while documents begin with another one that endorsed it
        #[arg(long)]
        own: bool,
    },
    /// Endorse another host's root with this one, and print the endorsement for that host's `adopt`
    CrossSign {
        #[command(flatten)]
        state: State,
        /// The other host's own root, PEM: `enclos pki export --own` there
        root: PathBuf,
    },
    /// Let documents begin with a root that has endorsed this host's
    Adopt {
        #[command(flatten)]
        state: State,
        /// What `cross-sign` printed
        endorsement: PathBuf,
    },
    /// Make a new root, endorsed by the old one: documents still begin with the old root until `drop`
    Rotate {
        #[command(flatten)]
        state: State,
    },
    /// Let documents begin with the host's own root again: the end of a rotation, or of a fleet's root
    Drop {
        #[command(flatten)]
        state: State,
    },
}

/// Where the CA is.
#[derive(Debug, Args)]
pub(crate) struct State {
    /// The hypervisor's state directory; $ENCLOS_STATE_DIR, /var/lib/enclos for root
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

/// A certificate as `show --json` prints it; times in milliseconds since 1970.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Shown {
    subject: String,
    sha256: String,
    not_before: UnixMillis,
    not_after: UnixMillis,
}

pub(super) fn run(command: &Pki) -> Outcome {
    match command {
        Pki::Show { state, json } => show(&state.load()?, *json),
        Pki::Export { state, own: true } => term::out(&state.load()?.own_root_certificate_pem()),
        Pki::Export { state, own: false } => term::out(&state.load()?.root_certificate_pem()),
        Pki::CrossSign { state, root } => {
            let root = decode(&read(root)?, root)?;
            let endorsement = state.load()?.endorse(&root, now())?;
            term::out(&endorsement.to_pem())
        }
        Pki::Adopt { state, endorsement } => {
            let endorsement = Endorsement::from_pem(&read(endorsement)?)?;
            state.change(|authority| Ok(authority.adopt(endorsement, now())?))?;
            term::out(
                "documents begin with the endorsing root: give its verifiers `enclos pki export`\n",
            )
        }
        Pki::Rotate { state } => {
            state.change(|authority| {
                *authority = authority.rotate(now())?;
                Ok(())
            })?;
            term::out(
                "made a new root, endorsed by the old one\n  \
                 now    give every verifier the new root beside the old one: `enclos pki export --own`\n  \
                 then   end the overlap: `enclos pki drop`\n",
            )
        }
        Pki::Drop { state } => {
            state.change(|authority| match authority.drop_endorsement() {
                true => Ok(()),
                false => Err(Failure::text(
                    "documents begin with the host's own root already",
                )),
            })?;
            term::out("documents begin with the host's own root\n")
        }
    }
}

fn show(authority: &Authority, json: bool) -> Outcome {
    let described = authority.describe();
    if json {
        let shown = described.into_iter().map(|certificate| Shown {
            subject: certificate.subject,
            sha256: certificate.sha256,
            not_before: certificate.not_before,
            not_after: certificate.not_after,
        });
        return term::json(&shown.collect::<Vec<_>>());
    }
    let lines = described.iter().map(|certificate| {
        format!(
            "{}\n  {} to {}\n  SHA-256 {}\n",
            certificate.subject, certificate.not_before, certificate.not_after, certificate.sha256
        )
    });
    term::out(&lines.collect::<String>())
}

impl State {
    fn dir(&self) -> Outcome<PathBuf> {
        self.state_dir.clone().map_or_else(dirs::state, Ok)
    }

    fn load(&self) -> Outcome<Authority> {
        let path = self.dir()?.join(CA_KEYS);
        let text = fs::read_to_string(&path).map(Zeroizing::new);
        let text = text.map_err(|error| {
            Failure::file(None, "read", &path, error).hint(
                "enclos-hypervisor makes it when it first starts, and only its user may read it",
            )
        })?;
        Ok(Authority::from_pem(&text)?)
    }

    /// Changes the CA while nobody else does.
    fn change(&self, change: impl FnOnce(&mut Authority) -> Outcome) -> Outcome {
        let dir = self.dir()?;
        let _lock = lock(&dir)?;
        let mut authority = self.load()?;
        change(&mut authority)?;
        replace(&dir.join(CA_KEYS), &authority.to_pem()?, 0o600)?;
        replace(&dir.join(CA_ROOT), &authority.root_certificate_pem(), 0o644)
    }
}

fn lock(dir: &Path) -> Outcome<File> {
    let path = dir.join(CA_LOCK);
    let mut options = OpenOptions::new();
    let options = options.create(true).write(true).truncate(false).mode(0o600);
    let file = options
        .open(&path)
        .map_err(|error| Failure::file(None, "open", &path, error))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Failure::text(
            "the hypervisor runs and holds this CA in memory",
        )
        .hint("stop it first: `enclos down`, or systemctl stop; its enclaves end with it")),
        Err(error) => Err(Failure::file(None, "lock", &path, error.into())),
    }
}

/// Replaces a file as a whole and durably; it keeps its owner.
fn replace(path: &Path, text: &str, mode: u32) -> Outcome {
    let failed =
        |doing: &'static str| move |error: std::io::Error| Failure::file(None, doing, path, error);
    let dir = path.parent().unwrap_or_else(|| Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(dir).map_err(failed("write beside"))?;
    let written = file.write_all(text.as_bytes());
    written.map_err(failed("write"))?;
    let old = path.metadata().map_err(failed("inspect"))?;
    let new = file.as_file().metadata().map_err(failed("inspect"))?;
    if (old.uid(), old.gid()) != (new.uid(), new.gid()) {
        std::os::unix::fs::fchown(file.as_file(), Some(old.uid()), Some(old.gid()))
            .map_err(failed("keep the owner of"))?;
    }
    let permissions = fs::Permissions::from_mode(mode);
    let permitted = file.as_file().set_permissions(permissions);
    permitted.map_err(failed("set the mode of"))?;
    file.as_file().sync_all().map_err(failed("flush"))?;
    let kept = file.persist(path);
    kept.map_err(|error| failed("replace")(error.error))?;
    let dir = File::open(dir).and_then(|dir| dir.sync_all());
    dir.map_err(failed("flush the directory of"))
}

fn read(path: &Path) -> Outcome<String> {
    fs::read_to_string(path).map_err(|error| Failure::file(None, "read", path, error))
}

fn decode(pem: &str, path: &Path) -> Outcome<Vec<u8>> {
    let decoded = pem_rfc7468::decode_vec(pem.trim_end().as_bytes());
    match decoded {
        Ok(("CERTIFICATE", der)) => Ok(der),
        _ => Err(Failure::text(format_args!(
            "{} is not a certificate: expected PEM of exactly one",
            path.display()
        ))),
    }
}

fn now() -> UnixMillis {
    SystemTime::now().into()
}
