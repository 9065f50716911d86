//! User ids for enclaves: which ones this process may hand out.
//!
//! Enclave *n* runs as user and group `base + n`. In a container only some ids exist (`/proc/self/uid_map`); there
//! the range is taken from the end of the largest piece, unless the operator chose one.

use std::fs;
use std::ops::Range;

use crate::daemon::registry::MAX_ENCLAVES;

/// First user id on a host where all ids exist: above every range that Debian, systemd and containers use.
pub const UID_BASE: u32 = 1_880_000_000;

/// Lowest first id: below live people and system services.
const LOWEST: u64 = 1000;

/// Why enclaves cannot have users of their own.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UsersError {
    /// The operator's range cannot be used.
    #[error(
        "--uid-base {base} is out of range: {MAX_ENCLAVES} user ids from there must exist, the first at least \
         {LOWEST}; here the ranges {ranges} exist"
    )]
    OutOfRange {
        /// What was asked for.
        base: u32,
        /// What there is.
        ranges: String,
    },
    /// No range is large enough.
    #[error(
        "enclaves need {MAX_ENCLAVES} user ids of their own, and this container has only the ranges {ranges}; map \
         more, or run enclos-hypervisor as an ordinary user"
    )]
    TooFew {
        /// What there is.
        ranges: String,
    },
}

/// The first id for enclaves, `asked` by the operator or found.
///
/// # Errors
/// See [`UsersError`].
pub(crate) fn base(asked: Option<u32>) -> Result<u32, UsersError> {
    let maps = ["/proc/self/uid_map", "/proc/self/gid_map"];
    let maps = maps.map(|path| fs::read_to_string(path).unwrap_or_default());
    choose(asked, &maps.map(|map| parse(&map)))
}

/// A range is fit when users and groups both have it.
fn choose(asked: Option<u32>, [users, groups]: &[Vec<Range<u64>>; 2]) -> Result<u32, UsersError> {
    let count = u64::try_from(MAX_ENCLAVES).unwrap_or(u64::MAX);
    let covered = |base: u32| {
        let (start, end) = (u64::from(base), u64::from(base) + count);
        let within = |range: &Range<u64>| range.start <= start && end <= range.end;
        start >= LOWEST && users.iter().any(within) && groups.iter().any(within)
    };
    if let Some(base) = asked {
        return if covered(base) {
            Ok(base)
        } else {
            Err(UsersError::OutOfRange {
                base,
                ranges: show(users),
            })
        };
    }
    let ends = users.iter().chain(groups);
    let last = ends.filter_map(|range| u32::try_from(range.end.checked_sub(count)?).ok());
    let mut candidates: Vec<u32> = last.collect();
    candidates.sort_unstable_by(|a, b| b.cmp(a));
    let found = [UID_BASE]
        .into_iter()
        .chain(candidates)
        .find(|base| covered(*base));
    found.ok_or_else(|| UsersError::TooFew {
        ranges: show(users),
    })
}

/// The ids that exist inside, one range per line of the map.
fn parse(map: &str) -> Vec<Range<u64>> {
    let range = |line: &str| {
        let mut fields = line.split_whitespace();
        let start: u64 = fields.next()?.parse().ok()?;
        let length: u64 = fields.nth(1)?.parse().ok()?;
        Some(start..start.checked_add(length)?)
    };
    map.lines().filter_map(range).collect()
}

fn show(ranges: &[Range<u64>]) -> String {
    let texts = ranges
        .iter()
        .map(|range| format!("{}-{}", range.start, range.end.saturating_sub(1)));
    texts.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "         0          0 4294967295\n";

    fn chosen(asked: Option<u32>, map: &str) -> Result<u32, UsersError> {
        choose(asked, &[parse(map), parse(map)])
    }

    #[test]
    fn a_host_has_the_documented_range() {
        assert_eq!(chosen(None, HOST), Ok(UID_BASE));
        assert_eq!(chosen(Some(5000), HOST), Ok(5000));
        assert!(chosen(Some(999), HOST).is_err());
        assert!(chosen(Some(u32::MAX - 100), HOST).is_err());
    }

    #[test]
    fn a_container_gives_the_end_of_what_it_has() {
        let container = "0 1000 1\n1 100000 65536\n";
        assert_eq!(chosen(None, container), Ok(65537 - 256));
        assert_eq!(chosen(Some(2000), container), Ok(2000));
        let error = chosen(Some(UID_BASE), container).unwrap_err();
        assert!(error.to_string().contains("0-0, 1-65536"), "{error}");
    }

    #[test]
    fn groups_must_exist_as_well() {
        let users = parse("0 0 65536\n");
        let groups = parse("0 0 10000\n");
        assert_eq!(choose(None, &[users, groups]), Ok(10_000 - 256));
        assert!(matches!(
            chosen(None, "0 1000 1\n"),
            Err(UsersError::TooFew { .. })
        ));
    }
}
