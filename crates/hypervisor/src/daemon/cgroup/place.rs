//! Which group is ours to divide.
//!
//! Where systemd manages groups, those that it has delegated carry a mark; the mark of the parent counts too, for
//! services with `DelegateSubgroup=`. The root of what is mounted is ours if we are in it: a container's own
//! hierarchy, or a machine without a manager of groups.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::Unavailable;

/// systemd's marks; the second can be read without privileges.
const MARKS: [&str; 2] = ["trusted.delegate", "user.delegate"];

const MOUNTS: &str = "/proc/self/mountinfo";
const MEMBERSHIP: &str = "/proc/self/cgroup";

/// The group that this process may divide.
pub(super) fn of_this_process() -> Result<PathBuf, Unavailable> {
    let read = |path| fs::read_to_string(path).map_err(|error| Unavailable::Proc(path, error));
    let (mounts, membership) = (read(MOUNTS)?, read(MEMBERSHIP)?);
    divisible(&mounts, &membership, is_marked)
}

fn is_marked(group: &Path) -> bool {
    let mut value = [0; 8];
    MARKS.iter().any(|mark| {
        rustix::fs::getxattr(group, *mark, &mut value)
            .is_ok_and(|len| value.get(..len) == Some(b"1"))
    })
}

fn divisible(
    mounts: &str,
    membership: &str,
    is_marked: impl Fn(&Path) -> bool,
) -> Result<PathBuf, Unavailable> {
    let own = membership.lines().find_map(|line| line.strip_prefix("0::"));
    let own = Path::new(own.ok_or(Unavailable::NotMounted)?);
    let (mount, below) = mounts
        .lines()
        .filter_map(cgroup2)
        .find_map(|(root, mount)| Some((mount, own.strip_prefix(root).ok()?.to_owned())))
        .ok_or(Unavailable::NotMounted)?;
    if below.as_os_str().is_empty() {
        return Ok(mount);
    }
    let group = mount.join(below);
    let candidates = group.ancestors().take(2);
    let delegated = candidates
        .filter(|path| **path != mount)
        .find(|path| is_marked(path));
    match delegated {
        Some(path) => Ok(path.to_owned()),
        None => Err(Unavailable::NotDelegated(group)),
    }
}

/// Root and mount point of a line of mountinfo, if it is of cgroup v2.
fn cgroup2(line: &str) -> Option<(PathBuf, PathBuf)> {
    let (mount, kind) = line.split_once(" - ")?;
    let mut fields = mount.split(' ').skip(3);
    let paths = (unescape(fields.next()?), unescape(fields.next()?));
    kind.starts_with("cgroup2 ").then_some(paths)
}

/// Blanks and backslashes are three octal digits there.
fn unescape(field: &str) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = field.as_bytes();
    while let [first, tail @ ..] = rest {
        let digits = tail
            .get(..3)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        let escaped = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (first, escaped) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIFIED: &str = "25 1 0:22 / /sys rw - sysfs sysfs rw\n\
         30 25 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
    const SERVICE: &str = "0::/system.slice/enclos.service\n";

    fn found(mounts: &str, membership: &str, marked: &str) -> Result<String, String> {
        let found = divisible(mounts, membership, |path| path == Path::new(marked));
        found
            .map(|path| path.display().to_string())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_delegated_service_divides_its_own_group() {
        let group = "/sys/fs/cgroup/system.slice/enclos.service";
        assert_eq!(found(UNIFIED, SERVICE, group).unwrap(), group);
        let sub = "0::/system.slice/enclos.service/supervisor\n";
        assert_eq!(
            found(UNIFIED, sub, group).unwrap(),
            group,
            "DelegateSubgroup="
        );
    }

    #[test]
    fn what_systemd_keeps_is_left_alone() {
        let slice = "/sys/fs/cgroup/system.slice";
        let refused = found(UNIFIED, "0::/user.slice/session-1.scope\n", slice).unwrap_err();
        assert!(
            refused.contains("/sys/fs/cgroup/user.slice/session-1.scope"),
            "{refused}"
        );
        assert!(refused.contains("Delegate="), "{refused}");
        // The root of all is not somebody's parent to take.
        assert!(found(UNIFIED, "0::/init.scope\n", "/sys/fs/cgroup").is_err());
    }

    #[test]
    fn the_root_of_a_containers_hierarchy_is_its_own() {
        assert_eq!(found(UNIFIED, "0::/\n", "").unwrap(), "/sys/fs/cgroup");
        let mounts = "30 25 0:26 /docker/c1 /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
        assert_eq!(
            found(mounts, "0::/docker/c1\n", "").unwrap(),
            "/sys/fs/cgroup"
        );
        assert!(found(mounts, "0::/docker/c2\n", "").is_err());
    }

    #[test]
    fn hybrid_hosts_have_it_elsewhere_and_old_ones_nowhere() {
        let hybrid = "40 30 0:35 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      41 30 0:36 / /sys/fs/cgroup/unified\\040x rw shared:9 - cgroup2 cgroup2 rw\n";
        let membership = "4:memory:/a\n0::/\n";
        assert_eq!(
            found(hybrid, membership, "").unwrap(),
            "/sys/fs/cgroup/unified x"
        );
        assert!(found(hybrid.lines().next().unwrap(), membership, "").is_err());
        assert!(found(UNIFIED, "4:memory:/a\n", "").is_err());
    }

    #[test]
    fn only_digits_are_escapes() {
        assert_eq!(unescape("a\\134b"), Path::new("a\\b"));
        assert_eq!(unescape("a\\9"), Path::new("a\\9"));
        assert_eq!(unescape("\\"), Path::new("\\"));
    }
}
