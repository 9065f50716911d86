//! What an enclave may have of this machine. Pure: the registry asks, under its lock.
//!
//! CPUs that an operator set aside (`allocator.yaml`) are given to one enclave each, and there are no others. Without that, on hosts
//! with [`DEDICATED_FROM`] or more CPUs each enclave gets CPUs of its own while they last, and CPU 0 stays with the host, as
//! on Nitro. Smaller hosts, and full ones, share: the enclave runs on any CPU, and the caller is told so.
//!
//! A refusal says what was asked, what is free and who holds the rest.

use std::collections::BTreeSet;

use enclos_api::control::{Cpus, Failure};

use crate::failure::Code;

/// From this number of CPUs on, CPUs are dedicated.
const DEDICATED_FROM: usize = 4;

/// vCPUs that any host gives, however few CPUs it has: what AWS's tutorials ask for runs on a laptop.
const ALWAYS_ALLOWED: usize = 4;

/// Memory of the smallest enclave in MiB (as Nitro).
const MIN_MEMORY_MIB: u64 = 64;

/// First context id that is given out by itself (as Nitro).
const FIRST_CID: u32 = 16;

/// Longest name in bytes.
const MAX_NAME: usize = 128;

/// CPUs for enclaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CpuPool {
    pub(crate) ids: Vec<u32>,
    /// Whether an operator set them aside.
    pub(crate) set_aside: bool,
}

/// What an enclave has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) memory_mib: u64,
    /// CPUs that it is pinned to.
    pub(crate) cpus: BTreeSet<u32>,
}

/// The rest of a refusal: who has what is not free.
fn held_by(holders: &[Holder], what: impl Fn(&Holder) -> Option<String>) -> String {
    let held: Vec<_> = holders
        .iter()
        .filter_map(|holder| {
            Some(format!(
                "{} of user {} ({})",
                holder.name,
                holder.uid,
                what(holder)?
            ))
        })
        .collect();
    match held.is_empty() {
        true => "no enclave holds any".to_owned(),
        false => format!("held by {}", held.join(", ")),
    }
}

fn held_cpus(holders: &[Holder]) -> String {
    held_by(holders, |holder| {
        (!holder.cpus.is_empty()).then(|| format!("CPUs {:?}", holder.cpus))
    })
}

/// CPUs granted to an enclave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CpuGrant {
    /// Number of vCPUs.
    pub(crate) count: u32,
    /// Host CPUs that they may run on.
    pub(crate) ids: Vec<u32>,
    /// Whether the engine is pinned to `ids`.
    pub(crate) pinned: bool,
    /// Sentence for the caller when CPUs are shared.
    pub(crate) warning: Option<String>,
}

/// Chooses CPUs out of `pool`, of which `holders` have some.
///
/// # Errors
/// E03, E20, E21 or E22.
pub(crate) fn choose_cpus(
    pool: &CpuPool,
    holders: &[Holder],
    asked: &Cpus,
) -> Result<CpuGrant, Failure> {
    let taken = holders
        .iter()
        .flat_map(|holder| holder.cpus.iter().copied())
        .collect();
    match asked {
        Cpus::Count(0) => Err(Code::InvalidArgument.because("an enclave needs at least one vCPU")),
        Cpus::Count(count) if pool.set_aside => from_set_aside(pool, &taken, holders, *count),
        Cpus::Count(count) => by_count(&pool.ids, &taken, *count),
        Cpus::Ids(ids) => by_id(pool, &taken, holders, ids),
    }
}

fn from_set_aside(
    pool: &CpuPool,
    taken: &BTreeSet<u32>,
    holders: &[Holder],
    count: u32,
) -> Result<CpuGrant, Failure> {
    let free: Vec<u32> = pool
        .ids
        .iter()
        .copied()
        .filter(|cpu| !taken.contains(cpu))
        .collect();
    let wanted = usize::try_from(count).unwrap_or(usize::MAX);
    if wanted > free.len() {
        return Err(Code::InsufficientCpus.because(format!(
            "{count} vCPUs were asked for, and {} of the {} CPUs set aside for enclaves are free ({free:?}); {}; \
             terminate one, ask for fewer, or set more aside in allocator.yaml",
            free.len(),
            pool.ids.len(),
            held_cpus(holders)
        )));
    }
    Ok(CpuGrant {
        count,
        ids: free[..wanted].to_vec(),
        pinned: true,
        warning: None,
    })
}

fn by_count(pool: &[u32], taken: &BTreeSet<u32>, count: u32) -> Result<CpuGrant, Failure> {
    let wanted = usize::try_from(count).unwrap_or(usize::MAX);
    let limit = pool.len().max(ALWAYS_ALLOWED);
    if wanted > limit {
        return Err(Code::InsufficientCpus.because(format!(
            "{count} vCPUs were asked for, and this host of {} CPUs gives at most {limit}",
            pool.len()
        )));
    }
    let free: Vec<u32> = dedicated(pool).filter(|cpu| !taken.contains(cpu)).collect();
    if wanted <= free.len() {
        let ids = free[..wanted].to_vec();
        return Ok(CpuGrant {
            count,
            ids,
            pinned: true,
            warning: None,
        });
    }
    let warning = format!(
        "the enclave's {count} vCPUs share the host's {} CPUs with other work: {} CPUs can be dedicated now",
        pool.len(),
        free.len()
    );
    Ok(CpuGrant {
        count,
        ids: pool.to_vec(),
        pinned: false,
        warning: Some(warning),
    })
}

/// CPUs that can be given away.
fn dedicated(pool: &[u32]) -> impl Iterator<Item = u32> {
    let pool = if pool.len() >= DEDICATED_FROM {
        pool
    } else {
        &[]
    };
    pool.iter().copied().filter(|cpu| *cpu != 0)
}

fn by_id(
    pool: &CpuPool,
    taken: &BTreeSet<u32>,
    holders: &[Holder],
    ids: &[u32],
) -> Result<CpuGrant, Failure> {
    let distinct: BTreeSet<u32> = ids.iter().copied().collect();
    if ids.is_empty() {
        return Err(Code::InvalidArgument.because("the list of CPU ids is empty"));
    }
    if distinct.len() != ids.len() {
        return Err(Code::InvalidCpuConfiguration.because("the list of CPU ids names one twice"));
    }
    if let Some(missing) = distinct.iter().find(|id| !pool.ids.contains(id)) {
        return Err(Code::NoSuchCpu.because(format!(
            "CPU {missing} is not in this host's pool; it has {:?}",
            pool.ids
        )));
    }
    let shared: Vec<u32> = distinct.intersection(taken).copied().collect();
    if pool.set_aside && !shared.is_empty() {
        return Err(Code::NoSuchCpu.because(format!(
            "the CPUs {shared:?} are not free; {}; ask for others, or by number with --cpu-count",
            held_cpus(holders)
        )));
    }
    let warning = (!shared.is_empty()).then(|| {
        format!("the CPUs {shared:?} are shared with another enclave that they are pinned to")
    });
    let count = u32::try_from(ids.len()).unwrap_or(u32::MAX);
    Ok(CpuGrant {
        count,
        ids: ids.to_vec(),
        pinned: true,
        warning,
    })
}

/// Checks the memory asked for against the image's size and what `holders` leave of `total_mib`, all in MiB except
/// `image_bytes`.
///
/// # Errors
/// E26 or E27.
pub(crate) fn check_memory(
    asked_mib: u64,
    image_bytes: u64,
    total_mib: u64,
    holders: &[Holder],
) -> Result<(), Failure> {
    let needed = needed_mib(image_bytes);
    if asked_mib < needed {
        return Err(Code::InsufficientMemoryRequested.because(format!(
            "{asked_mib} MiB were asked for, and this image of {image_bytes} bytes needs at least \
             {needed} MiB (four times its size); ask for more with --memory"
        )));
    }
    let free_mib = free_mib(total_mib, holders);
    if asked_mib > free_mib {
        return Err(Code::InsufficientMemoryAvailable.because(format!(
            "{asked_mib} MiB were asked for, and {free_mib} of the {total_mib} MiB for enclaves are free; {}; terminate \
             one, ask for less, or give enclaves more (memory_mib in allocator.yaml, or --memory-mib of enclos-hypervisor)",
            held_by(holders, |holder| Some(format!("{} MiB", holder.memory_mib)))
        )));
    }
    Ok(())
}

/// What `holders` leave of `total_mib`.
pub(crate) fn free_mib(total_mib: u64, holders: &[Holder]) -> u64 {
    let used = holders
        .iter()
        .fold(0_u64, |sum, holder| sum.saturating_add(holder.memory_mib));
    total_mib.saturating_sub(used)
}

/// Four times the image, as nitro-cli asks, and never below Nitro's minimum.
fn needed_mib(image_bytes: u64) -> u64 {
    image_bytes
        .saturating_mul(4)
        .div_ceil(1 << 20)
        .max(MIN_MEMORY_MIB)
}

/// The context id asked for, or the next free one from 16.
///
/// # Errors
/// E03 when it is reserved or taken.
pub(crate) fn choose_cid(taken: &BTreeSet<u32>, asked: Option<u32>) -> Result<u32, Failure> {
    match asked {
        None | Some(0) => (FIRST_CID..u32::MAX)
            .find(|cid| !taken.contains(cid))
            .ok_or_else(|| Code::InvalidArgument.because("no context id is free")),
        Some(cid @ (1..=3 | u32::MAX)) => Err(Code::InvalidArgument.because(format!(
            "context id {cid} is reserved: 1 is loopback, 2 the host, 3 the parent, {} any; use 4 or more",
            u32::MAX
        ))),
        Some(cid) if taken.contains(&cid) => Err(Code::InvalidArgument
            .because(format!("context id {cid} belongs to another enclave; leave it out for a free one"))),
        Some(cid) => Ok(cid),
    }
}

/// The name asked for, with `_1`, `_2`, … appended when it is taken.
///
/// # Errors
/// E58 when it is empty, too long, or holds control characters or slashes.
pub(crate) fn choose_name(taken: &BTreeSet<String>, asked: &str) -> Result<String, Failure> {
    let bad = asked.is_empty()
        || asked.len() > MAX_NAME
        || asked.chars().any(|c| c.is_control() || c == '/');
    if bad {
        return Err(Code::Naming.because(format!(
            "an enclave's name has 1 to {MAX_NAME} bytes, no control characters and no slash"
        )));
    }
    if !taken.contains(asked) {
        return Ok(asked.to_owned());
    }
    (1_u32..)
        .map(|number| format!("{asked}_{number}"))
        .find(|name| !taken.contains(name))
        .ok_or_else(|| Code::Naming.because("no such name is free"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(name: &str, memory_mib: u64, cpus: &[u32]) -> Holder {
        let (name, cpus) = (name.to_owned(), cpus.iter().copied().collect());
        Holder {
            name,
            uid: 1000,
            memory_mib,
            cpus,
        }
    }

    fn grant(pool: u32, taken: &[u32], asked: &Cpus) -> Result<CpuGrant, u8> {
        let pool = CpuPool {
            ids: (0..pool).collect(),
            set_aside: false,
        };
        let holders = [holder("other", 64, taken)];
        choose_cpus(&pool, &holders, asked).map_err(|failure| failure.code)
    }

    /// 4 of 16 cores and 32 of 64 GiB, walked through.
    #[test]
    fn what_is_set_aside_is_given_once_and_refusals_say_who_has_it() {
        let set_aside = crate::daemon::allocator::tests::example();
        let pool = CpuPool {
            ids: set_aside.cpus,
            set_aside: true,
        };
        let mut holders = Vec::new();
        for (name, ids) in [("a", [8, 24, 9]), ("b", [25, 10, 26])] {
            let granted = choose_cpus(&pool, &holders, &Cpus::Count(3)).unwrap();
            assert_eq!(
                (granted.ids.as_slice(), granted.pinned, granted.warning),
                (&ids[..], true, None)
            );
            check_memory(16000, 1, set_aside.memory_mib, &holders).unwrap();
            holders.push(holder(name, 16000, &granted.ids));
        }
        let refused = choose_cpus(&pool, &holders, &Cpus::Count(3)).unwrap_err();
        assert_eq!(refused.code, 22);
        assert!(
            refused.message.starts_with(
                "3 vCPUs were asked for, and 2 of the 8 CPUs set aside for enclaves are free ([11, 27]); held by a of user \
                 1000 (CPUs {8, 9, 24}), b of user 1000 (CPUs {10, 25, 26}); "
            ),
            "{}", refused.message
        );
        let refused = choose_cpus(&pool, &holders, &Cpus::Ids(vec![11, 8])).unwrap_err();
        assert_eq!(refused.code, 21);
        assert!(
            refused
                .message
                .starts_with("the CPUs [8] are not free; held by a of user"),
            "{}",
            refused.message
        );
        assert_eq!(
            choose_cpus(&pool, &holders, &Cpus::Ids(vec![1]))
                .unwrap_err()
                .code,
            21
        );
        assert_eq!(
            choose_cpus(&pool, &holders, &Cpus::Ids(vec![11, 27]))
                .unwrap()
                .ids,
            [11, 27]
        );
        let refused = check_memory(769, 1, set_aside.memory_mib, &holders).unwrap_err();
        assert_eq!(refused.code, 27);
        assert!(
            refused.message.starts_with(
                "769 MiB were asked for, and 768 of the 32768 MiB for enclaves are free; held by a of user 1000 (16000 \
                 MiB), b of user 1000 (16000 MiB); "
            ),
            "{}", refused.message
        );
        // Memory is exact: every MiB that is left can be had.
        assert!(check_memory(768, 1, set_aside.memory_mib, &holders).is_ok());
    }

    /// Many small ones, down to the last MiB: no huge pages, no limit of four.
    #[test]
    fn many_enclaves_share_memory_exactly() {
        let mut holders = Vec::new();
        while check_memory(65, 1, 32768, &holders).is_ok() {
            holders.push(holder(&format!("app_{}", holders.len()), 65, &[]));
        }
        assert_eq!((holders.len(), free_mib(32768, &holders)), (504, 8));
    }

    #[test]
    fn small_hosts_share_with_a_warning() {
        let grant = grant(2, &[], &Cpus::Count(2)).unwrap();
        assert!(!grant.pinned && grant.warning.is_some());
        assert_eq!((grant.count, grant.ids), (2, vec![0, 1]));
    }

    #[test]
    fn larger_hosts_dedicate_and_keep_cpu_0() {
        let first = grant(4, &[], &Cpus::Count(2)).unwrap();
        assert_eq!(
            (first.ids, first.pinned, first.warning),
            (vec![1, 2], true, None)
        );
        let second = grant(4, &[1, 2], &Cpus::Count(2)).unwrap();
        assert!(!second.pinned && second.warning.is_some());
        let third = grant(4, &[1, 2], &Cpus::Count(1)).unwrap();
        assert_eq!((third.ids, third.pinned), (vec![3], true));
    }

    #[test]
    fn impossible_cpu_requests_have_awss_numbers() {
        assert_eq!(grant(1, &[], &Cpus::Count(0)), Err(3));
        assert!(grant(1, &[], &Cpus::Count(4)).is_ok());
        assert_eq!(grant(1, &[], &Cpus::Count(5)), Err(22));
        assert!(grant(8, &[], &Cpus::Count(8)).is_ok());
        assert_eq!(grant(8, &[], &Cpus::Count(9)), Err(22));
        assert_eq!(grant(2, &[], &Cpus::Ids(vec![1, 1])), Err(20));
        assert_eq!(grant(2, &[], &Cpus::Ids(vec![2])), Err(21));
        assert_eq!(grant(2, &[], &Cpus::Ids(vec![])), Err(3));
    }

    #[test]
    fn cpus_by_id_are_pinned_and_sharing_is_told() {
        let alone = grant(2, &[], &Cpus::Ids(vec![1])).unwrap();
        assert_eq!(
            (alone.ids, alone.pinned, alone.warning),
            (vec![1], true, None)
        );
        assert!(
            grant(2, &[1], &Cpus::Ids(vec![1]))
                .unwrap()
                .warning
                .is_some()
        );
    }

    #[test]
    fn memory_is_four_times_the_image_and_no_more_than_is_free() {
        let code = |asked, image, free| check_memory(asked, image, free, &[]).map_err(|f| f.code);
        assert_eq!(code(64, 1, 64), Ok(()));
        assert_eq!(code(63, 1, 64), Err(26));
        assert_eq!(code(400, 100 << 20, 400), Ok(()));
        assert_eq!(code(400, (100 << 20) + 1, 400), Err(26));
        assert_eq!(code(400, 100 << 20, 399), Err(27));
        assert_eq!(code(u64::MAX, u64::MAX, u64::MAX), Ok(()));
    }

    #[test]
    fn context_ids_follow_nitros_rules() {
        let taken = [16, 18].into();
        let code = |asked| choose_cid(&taken, asked).map_err(|failure| failure.code);
        assert_eq!(code(None), Ok(17));
        assert_eq!(code(Some(0)), Ok(17));
        for reserved in [1, 2, 3, u32::MAX, 16] {
            assert_eq!(code(Some(reserved)), Err(3), "{reserved}");
        }
        assert_eq!(code(Some(4)), Ok(4));
        assert_eq!(code(Some(u32::MAX - 1)), Ok(u32::MAX - 1));
    }

    #[test]
    fn duplicate_names_are_numbered() {
        let taken = ["app".to_owned(), "app_1".to_owned()].into();
        let code = |asked: &str| choose_name(&taken, asked).map_err(|failure| failure.code);
        assert_eq!(code("app"), Ok("app_2".to_owned()));
        assert_eq!(code("other"), Ok("other".to_owned()));
        for bad in ["", "a/b", "a\nb", &"x".repeat(MAX_NAME + 1)] {
            assert_eq!(code(bad), Err(58), "{bad:?}");
        }
        assert!(code(&"x".repeat(MAX_NAME)).is_ok());
    }
}
