//! What is published, written down: a gateway that is restarted publishes it again.
//!
//! The file lies beside the control socket and goes with the run directory when the host restarts; enclaves do not
//! outlive that either, and an enclave's id is never used twice. It is replaced as a whole at each change. A file that
//! cannot be read or written costs the memory across restarts and nothing else; the log says so.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use enclos_api::gateway::Publication;

/// File name in the run directory.
pub const FILE_NAME: &str = "publications.json";

/// Largest file that is read: thousands of publications.
const MAX_LEN: u64 = 1 << 20;

/// The publications of all enclaves, those of enclaves not yet seen again included.
#[derive(Debug)]
pub(crate) struct Ledger {
    path: PathBuf,
    publications: Vec<Publication>,
}

impl Ledger {
    /// Reads what the gateway before this one left.
    pub(crate) fn open(path: PathBuf) -> Self {
        let publications = read(&path).unwrap_or_else(|error| {
            tracing::warn!(
                path = %path.display(),
                "earlier publications are forgotten, the file cannot be read: {error}"
            );
            Vec::new()
        });
        Self { path, publications }
    }

    /// What was published of an enclave.
    pub(crate) fn of(&self, enclave_id: &str) -> Vec<Publication> {
        let of_it = |publication: &&Publication| publication.enclave_id == enclave_id;
        self.publications.iter().filter(of_it).cloned().collect()
    }

    /// Notes a publication.
    pub(crate) fn add(&mut self, publication: Publication) {
        self.publications.push(publication);
        self.save();
    }

    /// Forgets the publications that are not to be kept.
    pub(crate) fn retain(&mut self, keep: impl Fn(&Publication) -> bool) {
        let before = self.publications.len();
        self.publications.retain(keep);
        if self.publications.len() != before {
            self.save();
        }
    }

    fn save(&self) {
        if let Err(error) = write(&self.path, &self.publications) {
            tracing::warn!(
                path = %self.path.display(),
                "publications will not survive a restart of the gateway, the file cannot be written: {error}"
            );
        }
    }
}

fn read(path: &Path) -> io::Result<Vec<Publication>> {
    let file = match fs::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        file => file?,
    };
    let mut text = Vec::new();
    file.take(MAX_LEN).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

/// Replaced by renaming: a crash leaves the old file or the new one.
fn write(path: &Path, publications: &[Publication]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut options = fs::OpenOptions::new();
    let options = options.write(true).create(true).truncate(true).mode(0o600);
    options
        .open(&new)?
        .write_all(&serde_json::to_vec(publications)?)?;
    fs::rename(new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publication(enclave_id: &str) -> Publication {
        Publication {
            enclave_id: enclave_id.into(),
            listen: "127.0.0.1:8080".parse().unwrap(),
            guest_port: 5000,
        }
    }

    #[test]
    fn it_is_found_again_until_it_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        let mut ledger = Ledger::open(path.clone());
        ledger.add(publication("a"));
        ledger.add(publication("b"));
        assert_eq!(Ledger::open(path.clone()).of("b"), [publication("b")]);
        ledger.retain(|publication| publication.enclave_id != "b");
        let again = Ledger::open(path);
        assert_eq!((again.of("a").len(), again.of("b").len()), (1, 0));
    }

    #[test]
    fn nonsense_is_forgotten_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        for nonsense in ["", "{}", "[{\"enclave_id\":1}]", "\0\0"] {
            fs::write(&path, nonsense).unwrap();
            let mut ledger = Ledger::open(path.clone());
            assert!(ledger.of("a").is_empty(), "{nonsense:?}");
            ledger.add(publication("a"));
            assert_eq!(Ledger::open(path.clone()).of("a").len(), 1);
        }
    }

    #[test]
    fn a_folder_that_is_not_there_costs_the_memory_alone() {
        let mut ledger = Ledger::open("/nonexistent/enclos/publications.json".into());
        ledger.add(publication("a"));
        assert_eq!(ledger.of("a").len(), 1);
    }
}
