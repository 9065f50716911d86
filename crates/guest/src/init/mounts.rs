//! The file systems that a process expects, for init and agent and then again for the application.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags};

use super::InitError;

const NO_EXEC: MountFlags = MountFlags::NOSUID.union(MountFlags::NOEXEC);
const PLAIN: MountFlags = NO_EXEC.union(MountFlags::NODEV);

/// One line of the table of mounts.
struct Line {
    target: &'static str,
    kind: &'static str,
    flags: MountFlags,
    options: &'static str,
}

/// What init and agent see, in the order of AWS's init.
const TABLE: &[Line] = &[
    Line {
        target: "/dev",
        kind: "devtmpfs",
        flags: NO_EXEC,
        options: "mode=0755",
    },
    Line {
        target: "/proc",
        kind: "proc",
        flags: PLAIN,
        options: "",
    },
    Line {
        target: "/sys",
        kind: "sysfs",
        flags: PLAIN,
        options: "",
    },
    Line {
        target: "/run",
        kind: "tmpfs",
        flags: PLAIN,
        options: "mode=0755",
    },
    Line {
        target: "/tmp",
        kind: "tmpfs",
        flags: PLAIN,
        options: "mode=1777",
    },
    Line {
        target: "/dev/shm",
        kind: "tmpfs",
        flags: PLAIN,
        options: "mode=1777",
    },
    Line {
        target: "/dev/pts",
        kind: "devpts",
        flags: NO_EXEC,
        options: "gid=5,mode=0620,ptmxmode=0666",
    },
    Line {
        target: "/sys/fs/cgroup",
        kind: "cgroup2",
        flags: PLAIN,
        options: "",
    },
];

/// Names that programs expect in `/dev` and that no driver makes.
const LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Mounts one line; something mounted there already is no failure, and neither is a kernel without cgroups.
fn mount_line(line: &Line) -> Result<(), InitError> {
    make_dir(Path::new(line.target), 0o755).map_err(|source| InitError::Directory {
        path: line.target.into(),
        source,
    })?;
    let options = std::ffi::CString::new(line.options).unwrap_or_default();
    match rustix::mount::mount(line.kind, line.target, line.kind, line.flags, &*options) {
        Ok(()) | Err(Errno::BUSY) => Ok(()),
        Err(_) if line.kind == "cgroup2" => Ok(()),
        Err(source) => Err(InitError::Mount {
            target: line.target.into(),
            source,
        }),
    }
}

/// Makes a directory; one that exists is as good.
pub(super) fn make_dir(path: &Path, mode: u32) -> Result<(), Errno> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(mode)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Mounts everything init and agent need.
pub(super) fn mount_base() -> Result<(), InitError> {
    for line in TABLE {
        mount_line(line)?;
    }
    for (target, link) in LINKS {
        match rustix::fs::symlink(*target, *link) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(source) => {
                return Err(InitError::Directory {
                    path: (*link).into(),
                    source,
                });
            }
        }
    }
    Ok(())
}

/// Mounts `/dev` alone, so that there is a console to complain on.
pub(super) fn mount_dev() -> Result<(), InitError> {
    TABLE.first().map_or(Ok(()), mount_line)
}

/// Puts the console, or `/dev/null` where a production enclave has none, on descriptors 0, 1 and 2.
pub(super) fn open_console() -> Result<(), InitError> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let open = |path: &str| rustix::fs::open(path, flags, Mode::empty());
    // The kernel opens a console whose serial port is not there, and then fails every write to it: an application that
    // prints would end with an I/O error. So one byte is tried first.
    let writable = |fd: OwnedFd| rustix::io::write(&fd, b"\n").map(|_| fd);
    let console = open("/dev/console")
        .and_then(writable)
        .or_else(|_| open("/dev/null"))
        .map_err(|source| InitError::Console { source })?;
    let dup = || -> Result<(), Errno> {
        rustix::stdio::dup2_stdin(&console)?;
        rustix::stdio::dup2_stdout(&console)?;
        rustix::stdio::dup2_stderr(&console)
    };
    dup().map_err(|source| InitError::Console { source })
}

fn at(root: &Path, path: &str) -> std::path::PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// A directory of the image is used as it is unless it is empty or missing.
fn is_empty(path: &Path) -> bool {
    std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}

fn wrap(target: &Path) -> impl Fn(Errno) -> InitError {
    let target = target.to_path_buf();
    move |source| InitError::Mount {
        target: target.clone(),
        source,
    }
}

/// Turns `root` into `/` of this process, which has a mount namespace of its own, with `/dev`, `/proc`,
/// `/sys`, `/run` and `/tmp` in place.
///
/// The initial root file system cannot be pivoted away from, so the new one is moved over it, as AWS's init
/// does.
pub(super) fn enter(root: &Path) -> Result<(), InitError> {
    use rustix::mount::{mount_bind, mount_bind_recursive, mount_change, mount_move};
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(wrap(Path::new("/")))?;
    mount_bind(root, root).map_err(wrap(root))?;
    for path in ["/dev", "/sys"] {
        let target = at(root, path);
        make_dir(&target, 0o755).map_err(wrap(&target))?;
        mount_bind_recursive(path, &target).map_err(wrap(&target))?;
    }
    mount_own(root, "/proc", "proc", PLAIN, c"")?;
    mount_if_empty(root, "/run", c"mode=0755")?;
    mount_if_empty(root, "/tmp", c"mode=1777")?;
    share_run(root)?;
    rustix::process::chdir(root).map_err(wrap(root))?;
    mount_move(".", "/").map_err(wrap(root))?;
    rustix::process::chroot(".").map_err(wrap(root))?;
    rustix::process::chdir("/").map_err(wrap(root))
}

fn mount_own(
    root: &Path,
    path: &str,
    kind: &str,
    flags: MountFlags,
    options: &std::ffi::CStr,
) -> Result<(), InitError> {
    let target = at(root, path);
    make_dir(&target, 0o755).map_err(wrap(&target))?;
    rustix::mount::mount(kind, &target, kind, flags, options).map_err(wrap(&target))
}

fn mount_if_empty(root: &Path, path: &str, options: &std::ffi::CStr) -> Result<(), InitError> {
    let target = at(root, path);
    make_dir(&target, 0o1777).map_err(wrap(&target))?;
    if is_empty(&target) {
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        rustix::mount::mount("tmpfs", &target, "tmpfs", flags, options).map_err(wrap(&target))?;
    }
    Ok(())
}

/// Shows the application what the agent wrote for it (`/run/enclos`), read-only.
fn share_run(root: &Path) -> Result<(), InitError> {
    let source = Path::new(super::RUN_DIR);
    let target = at(root, super::RUN_DIR);
    make_dir(&target, 0o755).map_err(wrap(&target))?;
    rustix::mount::mount_bind(source, &target).map_err(wrap(&target))?;
    let flags = MountFlags::BIND | MountFlags::RDONLY | PLAIN;
    rustix::mount::mount_remount(&target, flags, c"").map_err(wrap(&target))
}

/// Replaces a file of the image, or makes it, and the directory it is in.
pub(super) fn replace_file(path: &Path, text: &str) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match rustix::fs::unlinkat(CWD, path, rustix::fs::AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    std::fs::write(path, text)
}
