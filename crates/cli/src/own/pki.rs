//! `enclos pki`: the attestation root of this host, where the hypervisor keeps it.
//!
//! Whatever changes it takes the lock that a running hypervisor holds: it keeps the CA in memory and would write
//! over the change.
//!
//! The root's key may be in a PKCS#11 token. This short-lived program then loads the token's library and signs what only a
//! root can: itself, endorsements, and every twenty days the region's certificate. The hypervisor never does.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::{Args, Subcommand};
use enclos_api::config::{CA_KEYS, CA_LOCK, CA_REGION, CA_ROOT};
use enclos_attest::UnixMillis;
use enclos_attest::pki::{Authority, Endorsement, RootKey};
use rustix::fs::FlockOperation;
use serde::Serialize;
use zeroize::Zeroizing;

use crate::dirs;
use crate::failure::{Failure, Outcome};
use crate::files::{make_dir, replace, replace_as};
use crate::signing::TokenRoot;
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
    /// Make the CA before the hypervisor first starts, with its root's key in a PKCS#11 token
    Create {
        #[command(flatten)]
        state: State,
        /// A P-384 key in a token, as a pkcs11: URI
        #[arg(long, value_name = "URI")]
        root_key: String,
        /// The region of host.toml
        #[arg(long)]
        region: String,
    },
    /// Sign the region's next certificate with the root's key in a token, beside a running hypervisor
    Renew {
        #[command(flatten)]
        state: State,
        #[command(flatten)]
        root: RootOption,
        /// Another region, before host.toml changes to it
        #[arg(long)]
        region: Option<String>,
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
        #[command(flatten)]
        key: RootOption,
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
        #[command(flatten)]
        root: RootOption,
        /// The new root's key: a P-384 key in a token, as a pkcs11: URI; without it a key in the CA's file
        #[arg(long, value_name = "URI")]
        new_root_key: Option<String>,
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

/// Where the root's key is, if not in the CA's file.
#[derive(Debug, Args)]
pub(crate) struct RootOption {
    /// The root's key in a token, as a pkcs11: URI; needed where the CA's file does not hold it
    #[arg(long, value_name = "URI")]
    root_key: Option<String>,
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
        Pki::Create {
            state,
            root_key,
            region,
        } => create(state, root_key, region),
        Pki::Renew {
            state,
            root,
            region,
        } => renew(state, root, region.as_deref()),
        Pki::CrossSign { state, key, root } => cross_sign(state, key, root),
        Pki::Adopt { state, endorsement } => adopt(state, endorsement),
        Pki::Rotate {
            state,
            root,
            new_root_key,
        } => rotate(state, root, new_root_key.as_deref()),
        Pki::Drop { state } => drop_endorsement(state),
    }
}

fn cross_sign(state: &State, key: &RootOption, root: &Path) -> Outcome {
    let root = decode(&read(root)?, root)?;
    let key = key.open()?;
    let endorsement = state.load()?.endorse_with(&root, now(), signer(&key))?;
    term::out(&endorsement.to_pem())
}

fn adopt(state: &State, endorsement: &Path) -> Outcome {
    let endorsement = Endorsement::from_pem(&read(endorsement)?)?;
    state.change(|authority| Ok(authority.adopt(endorsement, now())?))?;
    term::out("documents begin with the endorsing root: give its verifiers `enclos pki export`\n")
}

fn rotate(state: &State, root: &RootOption, new_root_key: Option<&str>) -> Outcome {
    let key = root.open()?;
    let next = new_root_key.map(TokenRoot::open).transpose()?;
    state.change(|authority| {
        *authority = authority.rotate_with(now(), signer(&key), signer(&next))?;
        Ok(())
    })?;
    term::out(
        "made a new root, endorsed by the old one\n  \
         now    give every verifier the new root beside the old one: `enclos pki export --own`\n  \
         then   end the overlap: `enclos pki drop`\n",
    )
}

fn drop_endorsement(state: &State) -> Outcome {
    state.change(|authority| match authority.drop_endorsement() {
        true => Ok(()),
        false => Err(Failure::text(
            "documents begin with the host's own root already",
        )),
    })?;
    term::out("documents begin with the host's own root\n")
}

/// What the hypervisor would make at its first start, but for the root's key. Zone and instance it puts in itself.
fn create(state: &State, root_key: &str, region: &str) -> Outcome {
    // First, so that a mistake leaves no folder behind.
    let key = TokenRoot::open(root_key)?;
    let dir = state.dir()?;
    make_dir(&dir, 0o755)?;
    let _lock = lock(&dir)?;
    let path = dir.join(CA_KEYS);
    if path.exists() {
        return Err(Failure::text(format_args!("there is a CA already: {}", path.display()))
            .hint("`enclos pki rotate --new-root-key …` moves its root into a token, without an outage"));
    }
    let zone = format!("{region}a");
    let authority = Authority::create_with(now(), region, &zone, "i-00000000000000000", &key)?;
    replace(&path, &authority.to_pem()?, 0o600)?;
    replace(&dir.join(CA_ROOT), &authority.root_certificate_pem(), 0o644)?;
    term::out("made a CA whose root's key stays in the token; every ten days: `enclos pki renew`\n")
}

/// Leaves the region's next certificate where the hypervisor takes it: it need not stop, so the lock is not taken.
fn renew(state: &State, root: &RootOption, region: Option<&str>) -> Outcome {
    let authority = state.load()?;
    if !authority.root_is_elsewhere() {
        return Err(Failure::text(
            "the CA's file holds the root's key: the hypervisor renews by itself",
        ));
    }
    let key = root.open()?;
    let next = authority.next_region(now(), region, signer(&key))?;
    let dir = state.dir()?;
    replace_as(&dir.join(CA_REGION), &dir.join(CA_KEYS), &next, 0o600)?;
    term::out(
        "signed the region's next certificate; the hypervisor takes it when it next issues one\n",
    )
}

fn signer(key: &Option<TokenRoot>) -> Option<&dyn RootKey> {
    key.as_ref().map(|key| key as &dyn RootKey)
}

impl RootOption {
    fn open(&self) -> Outcome<Option<TokenRoot>> {
        self.root_key.as_deref().map(TokenRoot::open).transpose()
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
        let text = text.map_err(|error| Failure::file(None, "read", &path, error).hint(MADE_BY))?;
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

/// Where a CA comes from that is not there.
const MADE_BY: &str =
    "enclos-hypervisor makes it when it first starts, and only its user may read it";

fn lock(dir: &Path) -> Outcome<File> {
    let path = dir.join(CA_LOCK);
    let mut options = OpenOptions::new();
    let options = options.create(true).write(true).truncate(false).mode(0o600);
    let file = options
        .open(&path)
        .map_err(|error| Failure::file(None, "open", &path, error).hint(MADE_BY))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Failure::text(
            "the hypervisor runs and holds this CA in memory",
        )
        .hint("stop it first: `enclos down`, or systemctl stop; its enclaves end with it")),
        Err(error) => Err(Failure::file(None, "lock", &path, error.into())),
    }
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
