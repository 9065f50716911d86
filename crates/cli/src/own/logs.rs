//! `enclos logs`: what the hypervisor, or the vmm of one enclave, has to say. Enclaves that have ended have theirs too.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use clap::Args;
use enclos_api::log::{CUT, ENDED};

use crate::dirs;
use crate::failure::{Failure, Outcome};
use crate::term;

/// Longest of the two lines that a log keeps when it is cut (bytes).
const MAX_HEAD: u64 = 4096;

/// How often a log that is followed is looked at.
const PERIOD: Duration = Duration::from_millis(200);

/// Options of `logs`.
#[derive(Debug, Args)]
#[command(
    after_help = "What the application prints is in it, behind `app: `, if its image was built with `log_to_host = true` in \
                  [app] of enclos.toml, which is measured. Otherwise the host cannot read it: in production an enclave has no \
                  console. In debug mode `enclos console` shows it."
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
            if follow && text.starts_with(ENDED) {
                return Ok(());
            }
            line.clear();
        } else if !follow && read == 0 {
            return Ok(());
        } else if read == 0 {
            // A line that is half written is waited for.
            thread::sleep(PERIOD);
            if go_on_after_cut(log)? {
                line.clear();
            }
        }
    }
}

/// When the log became shorter, because its older part was removed, goes on where the follower was: whether it did.
fn go_on_after_cut(log: &mut BufReader<File>) -> Outcome<bool> {
    let read = log.stream_position()?;
    if log.get_ref().metadata()?.len() >= read {
        return Ok(false);
    }
    log.rewind()?;
    let mut head = Vec::new();
    log.by_ref().take(MAX_HEAD).read_until(b'\n', &mut head)?;
    let first = head.len();
    log.by_ref().take(MAX_HEAD).read_until(b'\n', &mut head)?;
    let begins = std::str::from_utf8(&head[first..])
        .ok()
        .and_then(|line| line.strip_prefix(CUT)?.trim_end().parse::<u64>().ok());
    let kept = begins.map(|begins| read.saturating_sub(begins));
    let behind = kept.map_or(0, |kept| u64::try_from(head.len()).unwrap_or(0) + kept);
    log.seek(SeekFrom::Start(behind))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rest(log: &mut BufReader<File>) -> String {
        let mut text = String::new();
        log.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn a_follower_goes_on_where_it_was_when_the_log_is_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let first = "info: app (i-1): started\n";
        let numbers = (100..200).map(|number| format!("app: {number}\n"));
        let before: String = std::iter::once(first.to_owned()).chain(numbers).collect();
        let begins = before.find("app: 190").unwrap();
        let cut = format!("{first}{CUT}{begins}\n{}app: new\n", &before[begins..]);
        for read_to in ["app: 150", "app: 190", "app: 195"] {
            let read_to = before.find(read_to).unwrap();
            fs::write(&path, &before[..read_to]).unwrap();
            let mut log = BufReader::new(File::open(&path).unwrap());
            assert_eq!(rest(&mut log), before[..read_to]);
            assert!(!go_on_after_cut(&mut log).unwrap());
            fs::write(&path, &cut).unwrap();
            assert!(go_on_after_cut(&mut log).unwrap());
            let expected = format!("{}app: new\n", &before[begins.max(read_to)..]);
            assert_eq!(rest(&mut log), expected);
        }
    }
}
