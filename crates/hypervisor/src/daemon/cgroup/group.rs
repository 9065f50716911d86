//! One enclave's group: its limits, its members, its end.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

/// What an enclave needs beyond its guest's memory, in MiB: QEMU's translated code (1024 at most) and its own memory, the vmm's,
/// and the kernel's on behalf of both.
const OVERHEAD_MIB: u64 = 1024 + 256;

/// While it boots, an enclave's unpacked ramdisks are beside its memory; they are at most this part of it.
const RAMDISKS_OF_MEMORY: u64 = crate::vmm::payload::MEMORY_PER_RAMDISK;

/// How often a group is looked at that is about to be empty.
const TICK: Duration = Duration::from_millis(2);

/// What an enclave may use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Host CPUs; none: any.
    pub(crate) cpus: Vec<u32>,
    /// NUMA nodes that memory comes from; none: any.
    pub(crate) nodes: Vec<u32>,
    /// Memory of the guest in MiB.
    pub(crate) memory_mib: u64,
    /// Processes and threads.
    pub(crate) tasks: u64,
}

/// One file of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Setting {
    file: &'static str,
    value: String,
    /// Whether kernels that were built without it are fine.
    optional: bool,
}

impl Limits {
    /// The most that the enclave's processes may have in memory, in bytes.
    fn memory_max(&self) -> u64 {
        let ramdisks = self.memory_mib / RAMDISKS_OF_MEMORY;
        let most = self.memory_mib.saturating_add(ramdisks + OVERHEAD_MIB);
        most.saturating_mul(1 << 20)
    }

    fn settings(&self, controllers: &[&str]) -> Vec<Setting> {
        let setting = |file, value: String| Setting {
            file,
            value,
            optional: false,
        };
        let mut settings = Vec::new();
        if controllers.contains(&"cpuset") {
            let sets = [("cpuset.cpus", &self.cpus), ("cpuset.mems", &self.nodes)];
            let given = sets.into_iter().filter(|(_, ids)| !ids.is_empty());
            settings.extend(given.map(|(file, ids)| setting(file, list(ids))));
        }
        if controllers.contains(&"memory") {
            settings.push(setting("memory.max", self.memory_max().to_string()));
            // An enclave's memory is never written to a disk. Kernels without swap have no such file.
            settings.push(Setting {
                optional: true,
                ..setting("memory.swap.max", "0".to_owned())
            });
        }
        if controllers.contains(&"pids") {
            settings.push(setting("pids.max", self.tasks.to_string()));
        }
        settings
    }
}

fn list(ids: &[u32]) -> String {
    let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
    ids.join(",")
}

/// A group that was made; what is written to its entrance makes the writer a member.
#[derive(Debug)]
pub(crate) struct Group(File);

impl Group {
    pub(super) fn make(path: PathBuf, limits: &Limits, controllers: &[&str]) -> io::Result<Self> {
        fs::create_dir(&path)?;
        let set = || {
            for Setting {
                file,
                value,
                optional,
            } in limits.settings(controllers)
            {
                if !optional || path.join(file).exists() {
                    write(&path, file, &value)?;
                }
            }
            open(&path.join("cgroup.procs"))
        };
        set().map(Self).inspect_err(|_| {
            let _ = fs::remove_dir(&path);
        })
    }

    /// For [`crate::sys::Confinement::group`].
    pub(crate) fn entrance(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Makes this process, with all its threads, a member.
pub(super) fn enter(group: &Path) -> io::Result<()> {
    write(group, "cgroup.procs", "0")
}

pub(super) fn write(group: &Path, file: &str, value: &str) -> io::Result<()> {
    let path = group.join(file);
    let written = open(&path).and_then(|mut file| file.write_all(value.as_bytes()));
    written.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
}

/// Kills all members, waits for them to be gone, and removes the group. True if one had been killed for want of memory.
pub(super) fn remove(group: &Path, limit: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + limit;
    let events = fs::read_to_string(group.join("memory.events")).unwrap_or_default();
    // Before Linux 5.14 there is no such file; the caller has killed the process group by then.
    if group.join("cgroup.kill").exists() {
        write(group, "cgroup.kill", "1")?;
    }
    loop {
        match fs::remove_dir(group) {
            Ok(()) => return Ok(lacked_memory(&events)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) if error.kind() != io::ErrorKind::ResourceBusy => return Err(error),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => thread::sleep(TICK),
        }
    }
}

fn lacked_memory(events: &str) -> bool {
    let killed = |line: &str| Some(line.strip_prefix("oom_kill ")?.trim() != "0");
    events.lines().find_map(killed).unwrap_or(false)
}

/// Removes every group in this one, with all that runs there, and names them.
pub(super) fn remove_all_in(parent: &Path, limit: Duration) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(parent) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut removed = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path(), limit)?;
            removed.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            cpus: vec![8, 24, 9],
            nodes: vec![1],
            memory_mib: 16000,
            tasks: 512,
        }
    }

    fn written(limits: &Limits, controllers: &[&str]) -> Vec<(&'static str, String)> {
        let settings = limits.settings(controllers).into_iter();
        settings.map(|one| (one.file, one.value)).collect()
    }

    #[test]
    fn what_is_granted_is_what_is_written() {
        let all = ["cpuset", "memory", "pids"];
        let memory = (((16000 + 5333 + 1280) as u64) << 20).to_string();
        assert_eq!(
            written(&limits(), &all),
            [
                ("cpuset.cpus", "8,24,9".to_owned()),
                ("cpuset.mems", "1".to_owned()),
                ("memory.max", memory),
                ("memory.swap.max", "0".to_owned()),
                ("pids.max", "512".to_owned()),
            ]
        );
        let shared = Limits {
            cpus: Vec::new(),
            nodes: Vec::new(),
            ..limits()
        };
        assert_eq!(written(&shared, &["cpuset"]), []);
        assert_eq!(
            written(&limits(), &["pids"]),
            [("pids.max", "512".to_owned())]
        );
        assert_eq!(written(&limits(), &[]), []);
    }

    #[test]
    fn no_memory_is_too_much_to_be_counted() {
        let most = Limits {
            memory_mib: u64::MAX,
            ..limits()
        };
        assert_eq!(most.memory_max(), u64::MAX);
    }

    #[test]
    fn files_are_written_and_the_entrance_is_open() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("i-1-enc2");
        let group = Group::make(path.clone(), &limits(), &["memory", "pids"]).unwrap();
        let read = |name: &str| fs::read_to_string(path.join(name)).unwrap();
        assert_eq!(read("pids.max"), "512");
        assert!(
            !path.join("cpuset.cpus").exists(),
            "no controller, no limit"
        );
        assert!(
            !path.join("memory.swap.max").exists(),
            "a kernel without swap"
        );
        (&group.0).write_all(b"0").unwrap();
        assert_eq!(read("cgroup.procs"), "0");
        assert!(Group::make(path, &limits(), &[]).is_err(), "never shared");
    }

    #[test]
    fn the_kernels_account_is_read() {
        let events = "low 0\nhigh 0\nmax 12\noom 1\noom_kill 1\noom_group_kill 0\n";
        assert!(lacked_memory(events));
        assert!(!lacked_memory(&events.replace("oom_kill 1", "oom_kill 0")));
        assert!(!lacked_memory(""));
    }
}
