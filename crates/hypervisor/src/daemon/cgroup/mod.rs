//! cgroup v2: what holds enclaves to their CPUs and memory where the kernel's controllers are to be had.
//!
//! ```text
//!  B/                        the hypervisor's own group when it starts: delegated to it (place.rs)
//!  B/hypervisor-<run>/       the hypervisor: a group that passes controllers on may hold no process itself
//!  B/enclaves-<run>/         passes cpuset, memory and pids on, as far as there are any
//!  B/enclaves-<run>/<id>/    one enclave: its vmm and its engine, under Limits (group.rs)
//! ```
//!
//! `<run>` is the run directory's path, so that hypervisors of several run directories do not meet, and what the
//! last one of this directory left is found and removed. A child enters its enclave's group between fork and exec, before it
//! is anybody: nothing of an enclave ever runs outside. At the end the group is killed as a whole, which no
//! process of it can escape, and removed.
//!
//! Where this cannot be had (no cgroup v2, its controllers bound to v1, a group that is not ours to divide), affinity and
//! resource limits remain, and [`Unavailable`] says why. Once it could be had, a group that cannot be made is an error: no
//! enclave starts without the limits that this host says it has.

mod group;
mod place;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use enclos_api::control::Cgroup;

use crate::log;

pub(crate) use group::{Group, Limits};

/// Controllers that limits are made of.
const WANTED: [&str; 3] = ["cpuset", "memory", "pids"];

/// Time for what is left of killed processes to go.
const GONE: Duration = Duration::from_secs(30);

/// Why enclaves are not held by cgroup v2 here. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unavailable {
    /// Nothing is mounted.
    #[error("no cgroup v2 is mounted; a host that boots with it alone has one at /sys/fs/cgroup")]
    NotMounted,
    /// The files that say where we are cannot be read.
    #[error("cannot read {0}; mount /proc")]
    Proc(&'static str, #[source] io::Error),
    /// systemd's, or another manager's.
    #[error(
        "the group {} is not delegated to this process; start enclos-hypervisor as a systemd service with \
         Delegate=cpuset memory pids (docs/hypervisor.md shows one), or by systemd-run -p Delegate=yes", .0.display()
    )]
    NotDelegated(PathBuf),
    /// The controllers are elsewhere.
    #[error(
        "{} has none of the controllers cpuset, memory and pids; they are bound to cgroup v1, or were not delegated: boot \
         with systemd.unified_cgroup_hierarchy=1, or delegate them", .0.display()
    )]
    NoController(PathBuf),
    /// The group cannot be divided.
    #[error("cannot divide the group {}; {}", path.display(), remedy(source))]
    Divide {
        /// The group.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// What an earlier hypervisor left does not go away.
    #[error("cannot remove the group {} of an earlier hypervisor; end its processes", path.display())]
    Leftover {
        /// The group.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ResourceBusy => {
            "it holds other processes: start enclos-hypervisor in a group of its own"
        }
        io::ErrorKind::ReadOnlyFilesystem => "mount the container's /sys/fs/cgroup writable",
        _ => "it must be writable by this process's user",
    }
}

/// The groups of one hypervisor.
#[derive(Debug)]
pub(crate) struct Groups {
    base: PathBuf,
    own: PathBuf,
    enclaves: PathBuf,
    controllers: Vec<&'static str>,
}

impl Groups {
    /// Divides the group that this process is in. Returns the names of the enclaves whose groups an earlier hypervisor left.
    pub(crate) fn open(run_dir: &Path) -> Result<(Self, Vec<String>), Unavailable> {
        Self::below(place::of_this_process()?, run_dir, &WANTED)
    }

    /// What [`Self::open`] would find: for `doctor`, without a change to anything.
    pub(crate) fn look() -> Result<Vec<&'static str>, Unavailable> {
        let base = place::of_this_process()?;
        let found = offered(&base, &WANTED);
        rustix::fs::access(&base, rustix::fs::Access::WRITE_OK)
            .map_err(|error| divide(&base)(error.into()))?;
        match found.is_empty() {
            true => Err(Unavailable::NoController(base)),
            false => Ok(found),
        }
    }

    fn below(
        base: PathBuf,
        run_dir: &Path,
        wanted: &[&'static str],
    ) -> Result<(Self, Vec<String>), Unavailable> {
        let controllers = offered(&base, wanted);
        if controllers.is_empty() && !wanted.is_empty() {
            return Err(Unavailable::NoController(base));
        }
        let groups = Self {
            own: base.join(name("hypervisor", run_dir)),
            enclaves: base.join(name("enclaves", run_dir)),
            base,
            controllers,
        };
        let stale = group::remove_all_in(&groups.enclaves, GONE).map_err(|source| {
            Unavailable::Leftover {
                path: groups.enclaves.clone(),
                source,
            }
        })?;
        match groups.divide() {
            Ok(()) => Ok((groups, stale)),
            Err(source) => {
                groups.close();
                Err(divide(&groups.base)(source))
            }
        }
    }

    /// Out of the way, and the controllers passed on.
    fn divide(&self) -> io::Result<()> {
        for group in [&self.own, &self.enclaves] {
            match fs::create_dir(group) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => other?,
            }
        }
        group::enter(&self.own)?;
        for group in [&self.base, &self.enclaves] {
            for controller in &self.controllers {
                group::write(group, "cgroup.subtree_control", &format!("+{controller}"))?;
            }
        }
        Ok(())
    }

    /// The controllers that hold enclaves.
    pub(crate) fn controllers(&self) -> &[&'static str] {
        &self.controllers
    }

    /// Makes the group of an enclave.
    pub(crate) fn make(&self, id: &str, limits: &Limits) -> io::Result<Group> {
        Group::make(self.enclaves.join(id), limits, &self.controllers)
    }

    /// Kills what is left in an enclave's group and removes it. True if the kernel had killed a process of it for want of memory.
    pub(crate) fn remove(&self, id: &str) -> io::Result<bool> {
        group::remove(&self.enclaves.join(id), GONE)
    }

    /// Leaves the group as it was found, as far as others let us: another hypervisor may use it, too.
    pub(crate) fn close(&self) {
        let _ = fs::remove_dir(&self.enclaves);
        for controller in &self.controllers {
            let _ = group::write(
                &self.base,
                "cgroup.subtree_control",
                &format!("-{controller}"),
            );
        }
        let _ = group::enter(&self.base);
        let _ = fs::remove_dir(&self.own);
    }
}

/// For those who ask what holds enclaves.
pub(crate) fn describe(found: Result<&[&'static str], &Unavailable>) -> Cgroup {
    let controllers = found.as_ref().copied().unwrap_or_default();
    Cgroup {
        controllers: controllers.iter().map(|name| (*name).to_owned()).collect(),
        problem: found.err().map(|problem| log::chain(problem)),
    }
}

fn divide(base: &Path) -> impl FnOnce(io::Error) -> Unavailable {
    let path = base.to_owned();
    move |source| Unavailable::Divide { path, source }
}

/// Those of the wanted controllers that a group can pass on.
fn offered(base: &Path, wanted: &[&'static str]) -> Vec<&'static str> {
    let text = fs::read_to_string(base.join("cgroup.controllers")).unwrap_or_default();
    let has = |name: &&'static str| text.split_whitespace().any(|word| word == *name);
    wanted.iter().copied().filter(has).collect()
}

/// A group's name for a run directory: its path, with what a name cannot hold escaped as systemd does.
fn name(kind: &str, run_dir: &Path) -> String {
    use std::fmt::Write as _;
    use std::os::unix::ffi::OsStrExt;
    let mut name = kind.to_owned();
    for byte in run_dir.as_os_str().as_bytes() {
        match byte {
            b'/' => name.push('-'),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' => name.push(char::from(*byte)),
            _ => {
                let _ = write!(name, "\\x{byte:02x}");
            }
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn names_are_one_per_run_directory() {
        let of = |path: &str| name("enclaves", Path::new(path));
        assert_eq!(of("/run/enclos"), "enclaves-run-enclos");
        assert_ne!(of("/run/a-b"), of("/run/a/b"));
        assert_eq!(of("/run/a b"), "enclaves-run-a\\x20b");
        // The longest run directory there may be, at its worst.
        assert!(of(&"é".repeat(20)).len() < 255);
    }

    /// A folder stands in for the kernel's: what is written where.
    #[test]
    fn controllers_are_passed_on_and_the_hypervisor_steps_aside() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().to_owned();
        fs::write(base.join("cgroup.controllers"), "cpu io memory pids\n").unwrap();
        let (groups, stale) = Groups::below(base.clone(), Path::new("/run/x"), &WANTED).unwrap();
        assert_eq!(
            (groups.controllers(), stale.len()),
            (&["memory", "pids"][..], 0)
        );
        let read = |name: &str| fs::read_to_string(base.join(name)).unwrap();
        assert_eq!(read("hypervisor-run-x/cgroup.procs"), "0");
        assert_eq!(read("cgroup.subtree_control"), "+pids");
        assert_eq!(read("enclaves-run-x/cgroup.subtree_control"), "+pids");
    }

    #[test]
    fn without_a_controller_it_says_so_and_touches_nothing() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.controllers"), "hugetlb\n").unwrap();
        let refused = Groups::below(dir.path().to_owned(), Path::new("/run/x"), &WANTED);
        assert!(matches!(refused, Err(Unavailable::NoController(_))));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    /// The kernel's own cgroup v2, where this process may divide its group: everything but the limits, whose controllers
    /// are bound to v1 on some machines that tests run on. `e2e` shows those in a machine that has them.
    #[test]
    fn a_group_takes_children_in_kills_them_and_goes() {
        let Ok(base) = place::of_this_process() else {
            return eprintln!("skipped: this process may not divide a group of cgroup v2");
        };
        let base = base.join(format!("enclos-test-{}", std::process::id()));
        if fs::create_dir(&base).is_err() {
            return eprintln!("skipped: {} cannot be made", base.display());
        }
        let enclaves = base.join("enclaves-run-x");
        fs::create_dir(&enclaves).unwrap();
        let groups = Groups {
            own: base.join("unused"),
            base: base.clone(),
            enclaves,
            controllers: Vec::new(),
        };
        let group = groups.make("i-1-enc2", &Limits::default()).unwrap();
        let mut command = Command::new("/bin/sh");
        // A grandchild in a session of its own: no process group would reach it.
        command
            .args(["-c", "setsid sleep 300 & exec sleep 300"])
            .stdout(Stdio::null());
        let confinement = crate::sys::Confinement {
            group: Some(group.entrance()),
            ..Default::default()
        };
        let mut child = crate::sys::spawn(&mut command, &confinement).unwrap();
        let members = || {
            let text = fs::read_to_string(groups.enclaves.join("i-1-enc2/cgroup.procs"));
            text.unwrap_or_default().lines().count()
        };
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while members() < 2 && std::time::Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(members(), 2, "child and grandchild");
        assert!(
            groups.make("i-1-enc2", &Limits::default()).is_err(),
            "never shared"
        );
        assert!(!groups.remove("i-1-enc2").unwrap(), "nobody lacked memory");
        assert!(!groups.enclaves.join("i-1-enc2").exists());
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap()),
            Some(9)
        );
        assert!(
            !groups.remove("i-1-enc2").unwrap(),
            "it may be gone already"
        );
        // What a hypervisor that was killed left.
        fs::create_dir(groups.enclaves.join("i-1-enc3")).unwrap();
        let stale = group::remove_all_in(&groups.enclaves, GONE).unwrap();
        assert_eq!(stale, ["i-1-enc3"]);
        fs::remove_dir(&groups.enclaves).unwrap();
        fs::remove_dir(&base).unwrap();
    }
}
