//! `enclos logs`: what the hypervisor, or the vmm of one enclave, has to say. Enclaves that have ended have theirs too.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use clap::Args;

use crate::dirs;
use crate::failure::{Failure, Outcome};
use crate::term;

/// How often a log that is followed is looked at.
const PERIOD: Duration = Duration::from_millis(200);

/// How the last line of an enclave's log begins; the hypervisor writes it.
const LAST_LINE: &str = "info: ended: ";

/// Options of `logs`.
#[derive(Debug, Args)]
#[command(
    after_help = "The application's own output is not in it: in production an enclave has no console, and in debug mode \
                  `enclos console` shows it."
)]
pub(crate) struct Logs {
    /// Name or id of an enclave, also of one that has ended; without it, the hypervisor
    #[arg(value_name = "ENCLAVE")]
    enclave: Option<String>,
    /// Go on with what is added, until the enclave ends
    #[arg(short, long)]
    follow: bool,
}

pub(super) fn run(args: &Logs) -> Outcome {
    let folder = dirs::state()?.join("log");
    let path = match &args.enclave {
        Some(enclave) => find(&folder.join("enclaves"), enclave)?,
        None => folder.join("hypervisor.log"),
    };
    let file = File::open(&path).map_err(|error| {
        Failure::file(None, "open", &path, error)
            .hint("`enclos up` makes it; daemons that systemd runs log to its journal")
    })?;
    show(&mut BufReader::new(file), args.follow)
}

/// The newest log of an enclave with this id or name.
fn find(folder: &Path, wanted: &str) -> Outcome<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let named = entries.filter(|entry| is_of(&entry.path(), wanted));
    let newest = named.max_by_key(|entry| {
        entry
            .metadata()
            .and_then(|metadata| metadata.modified())
            .ok()
    });
    newest.map(|entry| entry.path()).ok_or_else(|| {
        let text = format!(
            "there is no log of an enclave `{wanted}` in {}",
            folder.display()
        );
        Failure::text(text).hint("`enclos describe-enclaves` lists those that run")
    })
}

/// Whether the file is named by the id, or its first line tells the name: `info: NAME (ID): started …`.
fn is_of(path: &Path, wanted: &str) -> bool {
    let Some(id) = path.file_stem().and_then(|stem| stem.to_str()) else {
        return false;
    };
    if id == wanted {
        return true;
    }
    let mut first = String::new();
    let read =
        File::open(path).and_then(|file| BufReader::new(file.take(4096)).read_line(&mut first));
    read.is_ok() && first.starts_with(&format!("info: {wanted} ({id}): "))
}

fn show(log: &mut BufReader<File>, follow: bool) -> Outcome {
    let mut line = Vec::new();
    loop {
        let read = log.read_until(b'\n', &mut line)?;
        if line.ends_with(b"\n") || (read == 0 && !follow && !line.is_empty()) {
            let text = String::from_utf8_lossy(&line);
            let text = term::printable(text.trim_end_matches('\n'));
            term::out(&format!("{text}\n"))?;
            if follow && text.starts_with(LAST_LINE) {
                return Ok(());
            }
            line.clear();
        } else if !follow && read == 0 {
            return Ok(());
        } else if read == 0 {
            // A line that is half written is waited for.
            thread::sleep(PERIOD);
        }
    }
}
