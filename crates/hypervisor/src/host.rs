//! What this machine has.

use std::fs;

/// Memory left to the host when the operator does not say how much enclaves may have, in MiB.
const HOST_RESERVE_MIB: u64 = 512;

/// Host CPUs that this process may use.
#[must_use]
pub fn cpus() -> Vec<u32> {
    let set = rustix::thread::sched_getaffinity(None);
    let Ok(set) = set else { return vec![0] };
    let ids = (0..rustix::thread::CpuSet::MAX_CPU).filter(|id| set.is_set(*id));
    ids.filter_map(|id| u32::try_from(id).ok()).collect()
}

/// Memory that is available now, in MiB.
#[must_use]
pub fn memory_available_mib() -> u64 {
    field("MemAvailable:")
}

/// All memory, in MiB.
#[must_use]
pub fn memory_total_mib() -> u64 {
    field("MemTotal:")
}

/// What enclaves get when the operator does not say.
#[must_use]
pub fn memory_for_enclaves_mib() -> u64 {
    memory_available_mib().saturating_sub(HOST_RESERVE_MIB)
}

fn field(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    parse(&text, name).unwrap_or_default()
}

/// The field's value, converted from kiB.
fn parse(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_cpus_and_memory() {
        assert!(!cpus().is_empty());
        assert!(memory_total_mib() > 0);
        assert!(memory_available_mib() <= memory_total_mib());
    }

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "MemTotal:       24684544 kB\nMemFree:  1 kB\n";
        assert_eq!(parse(text, "MemTotal:"), Some(24106));
        assert_eq!(parse(text, "MemAvailable:"), None);
    }
}
