//! One log for each enclave: what its vmm says, between a first line that names it and a last one that says how it ended.
//!
//! `STATE/log/enclaves/<id>.log` outlives its enclave; the oldest go when there are more than [`KEPT`]. A log that cannot be written
//! is no reason not to run an enclave.

use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use enclos_api::control::Enclave;
use enclos_api::log::ENDED;

use crate::daemon::files;
use crate::log;

/// Logs that are kept, those of running enclaves among them.
const KEPT: usize = 256;

/// The folder with all of them.
#[derive(Debug)]
pub(crate) struct Logs(PathBuf);

impl Logs {
    pub(crate) fn below(state_dir: &Path) -> Self {
        Self(state_dir.join("log").join("enclaves"))
    }

    /// Begins an enclave's log, readable to whoever asked for the enclave.
    pub(crate) fn begin(&self, enclave: &Enclave, gid: u32) -> Option<File> {
        let begun = self.try_begin(enclave, gid);
        let failed = |error| log::warn(format_args!("{}: no log of its own: {error}", enclave.id));
        begun.map_err(failed).ok()
    }

    fn try_begin(&self, enclave: &Enclave, gid: u32) -> io::Result<File> {
        let parent = self.0.parent().unwrap_or(&self.0);
        for folder in [parent, &self.0] {
            files::make_dir(folder, 0o755).map_err(io::Error::other)?;
        }
        self.forget_oldest()?;
        let mut file = File::options()
            // The vmm reads what it cuts (`vmm::app_log`).
            .read(true)
            .append(true)
            .create(true)
            .mode(0o640)
            .open(self.path(&enclave.id))?;
        if rustix::process::geteuid().is_root() {
            fchown(&file, None, Some(gid))?;
        }
        let Enclave {
            id,
            name,
            owner_uid,
            cpu_count,
            memory_mib,
            ..
        } = enclave;
        writeln!(
            file,
            "info: {name} ({id}): started for user {owner_uid}, {cpu_count} vCPUs, {memory_mib} MiB"
        )?;
        Ok(file)
    }

    /// The last line.
    pub(crate) fn end(&self, id: &str, reason: &dyn Display) {
        let file = File::options().append(true).open(self.path(id));
        let reason = log::printable(&reason.to_string(), 1024);
        let ended = file.and_then(|mut file| writeln!(file, "{ENDED}{reason}"));
        if let Err(error) = ended {
            log::warn(format_args!("{id}: its log cannot be ended: {error}"));
        }
    }

    fn path(&self, id: &str) -> PathBuf {
        self.0.join(format!("{id}.log"))
    }

    fn forget_oldest(&self) -> io::Result<()> {
        let mut logs: Vec<(SystemTime, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            let entry = entry?;
            logs.push((entry.metadata()?.modified()?, entry.path()));
        }
        logs.sort();
        let surplus = (logs.len() + 1).saturating_sub(KEPT);
        logs.iter()
            .take(surplus)
            .try_for_each(|(_, path)| fs::remove_file(path))
    }
}

#[cfg(test)]
mod tests {
    use enclos_api::control::{BootTimes, Measurements, State};

    use super::*;

    fn enclave(id: &str) -> Enclave {
        Enclave {
            id: id.to_owned(),
            name: "app".to_owned(),
            pid: 0,
            cid: 16,
            cpu_ids: vec![1],
            cpu_count: 1,
            memory_mib: 64,
            state: State::Empty,
            debug: false,
            measurements: Measurements::default(),
            image: serde_json::Value::Null,
            vsock: PathBuf::new(),
            owner_uid: 7,
            boot: BootTimes::default(),
        }
    }

    #[test]
    fn a_log_begins_with_the_name_and_ends_with_the_reason() {
        let state = tempfile::tempdir().unwrap();
        let logs = Logs::below(state.path());
        let gid = rustix::process::getegid().as_raw();
        let mut file = logs.begin(&enclave("i-0-enc1"), gid).unwrap();
        file.write_all(b"warn: something\n").unwrap();
        logs.end("i-0-enc1", &"the application exited\nwith status 3");
        let text = fs::read_to_string(state.path().join("log/enclaves/i-0-enc1.log")).unwrap();
        let expected = "info: app (i-0-enc1): started for user 7, 1 vCPUs, 64 MiB\nwarn: something\n\
                        info: ended: the application exited with status 3\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn the_oldest_go() {
        let state = tempfile::tempdir().unwrap();
        let logs = Logs::below(state.path());
        let gid = rustix::process::getegid().as_raw();
        for number in 0..KEPT + 3 {
            let file = logs
                .begin(&enclave(&format!("i-0-enc{number:x}")), gid)
                .unwrap();
            let time =
                SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(number.try_into().unwrap());
            file.set_modified(time).unwrap();
        }
        assert_eq!(
            fs::read_dir(state.path().join("log/enclaves"))
                .unwrap()
                .count(),
            KEPT
        );
        assert!(!state.path().join("log/enclaves/i-0-enc2.log").exists());
        assert!(state.path().join("log/enclaves/i-0-enc3.log").exists());
    }

    #[test]
    fn an_enclave_does_without_a_log_where_there_can_be_none() {
        let state = tempfile::tempdir().unwrap();
        fs::write(state.path().join("log"), "a file").unwrap();
        assert!(
            Logs::below(state.path())
                .begin(&enclave("i-0-enc1"), 0)
                .is_none()
        );
    }
}
