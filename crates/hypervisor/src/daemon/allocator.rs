//! What an operator sets aside for enclaves: AWS's `allocator.yaml`, and which CPUs of this host that makes.
//!
//! ```yaml
//! memory_mib: 32768          # a list of such tables adds up
//! cpu_count: 8               # or cpu_pool: 2,3,6-9
//! ```
//!
//! The rules are those of AWS's allocator: CPU 0 and the threads of its core stay with the host, cores are given whole, and one
//! table's CPUs are of one NUMA node. Unlike there, memory is counted exactly, not in huge pages, and nothing is taken from the
//! host before an enclave starts.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where AWS's allocator reads it, below `NITRO_CLI_INSTALL_DIR`.
const FILE: &str = "etc/nitro_enclaves/allocator.yaml";

/// Largest file that is read (bytes).
const MAX_FILE: u64 = 64 << 10;

/// Why nothing can be set aside.
#[derive(Debug, thiserror::Error)]
pub enum AllocatorError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line is not understood.
    #[error(
        "line {line} of {} is not understood: expected `memory_mib: N`, and `cpu_count: N` or `cpu_pool: 2,3,6-9`, \
         or a list of these", path.display()
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// Number of the line.
        line: usize,
    },
    /// A table lacks something, or has too much.
    #[error("{}: every table needs memory_mib and one of cpu_count and cpu_pool", path.display())]
    Table {
        /// The file.
        path: PathBuf,
    },
    /// CPUs that cannot be given.
    #[error(
        "the CPU pool {asked:?} cannot be given to enclaves: {problem}; these can: {possible:?}"
    )]
    Pool {
        /// What was asked for.
        asked: Vec<u32>,
        /// What is wrong with it.
        problem: &'static str,
        /// CPUs that can be given.
        possible: Vec<u32>,
    },
    /// More CPUs than one NUMA node has.
    #[error(
        "{asked} CPUs cannot be given to enclaves: no NUMA node has that many in whole cores ({threads} threads each) \
         besides CPU 0's core; the most that one has is {most}"
    )]
    Count {
        /// What was asked for.
        asked: u32,
        /// Threads of a core.
        threads: usize,
        /// What there is.
        most: usize,
    },
    /// More memory than the host has.
    #[error("{asked} MiB cannot be given to enclaves: this host has {total} MiB")]
    Memory {
        /// What was asked for.
        asked: u64,
        /// What there is.
        total: u64,
    },
}

/// CPUs of one table.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Cpus {
    Count(u32),
    Pool(Vec<u32>),
}

/// One table of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Share {
    memory_mib: u64,
    cpus: Cpus,
}

/// What is set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Allocation {
    pub(crate) memory_mib: u64,
    /// Whole cores, siblings side by side.
    pub(crate) cpus: Vec<u32>,
}

/// What the file says, on this host; `None` without a file. A file that is named has to be there.
///
/// # Errors
/// See [`AllocatorError`].
pub(crate) fn read(
    named: Option<&Path>,
    topology: &Topology,
    total_mib: u64,
) -> Result<Option<Allocation>, AllocatorError> {
    let prefix = std::env::var_os("NITRO_CLI_INSTALL_DIR").unwrap_or_default();
    let usual = Path::new("/").join(prefix).join(FILE);
    let path = named.unwrap_or(&usual);
    let failed = |source| AllocatorError::Read {
        path: path.to_owned(),
        source,
    };
    match fs::metadata(path) {
        Err(error) if named.is_none() && error.kind() == io::ErrorKind::NotFound => {
            return Ok(None);
        }
        Err(error) => return Err(failed(error)),
        Ok(metadata) if metadata.len() > MAX_FILE => {
            return Err(failed(io::ErrorKind::FileTooLarge.into()));
        }
        Ok(_) => {}
    }
    let shares = parse(path, &fs::read_to_string(path).map_err(failed)?)?;
    allocate(&shares, topology, total_mib).map(Some)
}

fn allocate(
    shares: &[Share],
    topology: &Topology,
    total_mib: u64,
) -> Result<Allocation, AllocatorError> {
    let memory_mib = shares
        .iter()
        .fold(0_u64, |sum, share| sum.saturating_add(share.memory_mib));
    if memory_mib > total_mib {
        return Err(AllocatorError::Memory {
            asked: memory_mib,
            total: total_mib,
        });
    }
    let mut cpus = Vec::new();
    // What is named comes first, so that no count takes it.
    let (pools, counts): (Vec<_>, Vec<_>) = shares
        .iter()
        .map(|share| &share.cpus)
        .partition(|cpus| matches!(cpus, Cpus::Pool(_)));
    for share in pools.into_iter().chain(counts) {
        cpus.extend(match share {
            Cpus::Pool(pool) => topology.pool(pool, &cpus)?,
            Cpus::Count(count) => topology.count(*count, &cpus)?,
        });
    }
    Ok(Allocation { memory_mib, cpus })
}

/// A table as far as it has been read.
#[derive(Default)]
struct Table {
    memory_mib: Option<u64>,
    count: Option<u32>,
    pool: Option<Vec<u32>>,
}

impl Table {
    /// Takes a `key: value`; `None` if it is none, or there already.
    fn take(&mut self, line: &str) -> Option<()> {
        let (key, value) = line.split_once(':')?;
        let value = value.trim().trim_matches(['"', '\'']);
        let is_new = match key.trim() {
            "memory_mib" => self.memory_mib.replace(value.parse().ok()?).is_none(),
            "cpu_count" => self.count.replace(value.parse().ok()?).is_none(),
            "cpu_pool" => self.pool.replace(list(value)?).is_none(),
            _ => false,
        };
        is_new.then_some(())
    }

    fn share(self) -> Option<Share> {
        let cpus = match (self.count, self.pool) {
            (Some(count), None) => Cpus::Count(count),
            (None, Some(pool)) => Cpus::Pool(pool),
            _ => return None,
        };
        let memory_mib = self.memory_mib?;
        Some(Share { memory_mib, cpus })
    }
}

/// The lines of AWS's own reader (what is before `---` is skipped), and lists of tables.
fn parse(path: &Path, text: &str) -> Result<Vec<Share>, AllocatorError> {
    let lines: Vec<&str> = text.lines().collect();
    let start = lines
        .iter()
        .position(|line| line.trim_end() == "---")
        .map_or(0, |at| at + 1);
    let mut tables: Vec<Table> = Vec::new();
    for (number, line) in lines.iter().enumerate().skip(start) {
        let line = line.split(" #").next().unwrap_or_default().trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let item = line.strip_prefix("- ");
        if item.is_some() || tables.is_empty() {
            tables.push(Table::default());
        }
        let taken = tables
            .last_mut()
            .and_then(|table| table.take(item.unwrap_or(line)));
        taken.ok_or_else(|| AllocatorError::Line {
            path: path.to_owned(),
            line: number + 1,
        })?;
    }
    let shares: Option<Vec<Share>> = tables.into_iter().map(Table::share).collect();
    shares
        .filter(|shares| !shares.is_empty())
        .ok_or_else(|| AllocatorError::Table {
            path: path.to_owned(),
        })
}

/// `2,3,6-9`, in brackets or not.
fn list(text: &str) -> Option<Vec<u32>> {
    /// More CPUs than any Linux has.
    const MOST: u32 = 1 << 16;
    let mut cpus = Vec::new();
    for part in text
        .trim_start_matches('[')
        .trim_end_matches(']')
        .split(',')
    {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last >= MOST {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

/// A core: the CPUs that share it, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Core {
    cpus: Vec<u32>,
    node: u32,
}

/// The cores of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Topology(Vec<Core>);

impl Topology {
    /// This host's, as far as it is for this process.
    pub(crate) fn of_this_host() -> Self {
        Self::read(Path::new("/sys/devices/system"), &crate::host::cpus())
    }

    /// From `sys`, for these CPUs. A CPU of which nothing is known is a core of its own on node 0.
    fn read(sys: &Path, online: &[u32]) -> Self {
        let file = |path: PathBuf| {
            fs::read_to_string(path)
                .ok()
                .and_then(|text| list(text.trim()))
        };
        let nodes: Vec<(u32, Vec<u32>)> = (0..1024)
            .map_while(|node| Some((node, file(sys.join(format!("node/node{node}/cpulist")))?)))
            .collect();
        let (mut cores, mut seen) = (Vec::new(), BTreeSet::new());
        for cpu in online {
            if !seen.insert(*cpu) {
                continue;
            }
            let siblings = file(sys.join(format!("cpu/cpu{cpu}/topology/thread_siblings_list")));
            let mut cpus = siblings.unwrap_or_else(|| vec![*cpu]);
            cpus.retain(|sibling| online.contains(sibling));
            seen.extend(&cpus);
            let node = nodes
                .iter()
                .find(|(_, cpus)| cpus.contains(cpu))
                .map_or(0, |(node, _)| *node);
            cores.push(Core { cpus, node });
        }
        Self(cores)
    }

    /// NUMA nodes of these CPUs.
    pub(crate) fn nodes_of(&self, cpus: &[u32]) -> Vec<u32> {
        let has = |core: &&Core| core.cpus.iter().any(|cpu| cpus.contains(cpu));
        let nodes: BTreeSet<u32> = self.0.iter().filter(has).map(|core| core.node).collect();
        nodes.into_iter().collect()
    }

    /// Cores that can be given: not the host's, and not given yet.
    fn free<'t>(&'t self, taken: &'t [u32]) -> impl Iterator<Item = &'t Core> {
        let given = |core: &Core| core.cpus.iter().any(|cpu| *cpu == 0 || taken.contains(cpu));
        self.0.iter().filter(move |core| !given(core))
    }

    /// Whole cores that make `count` CPUs, of the node that has most to give.
    fn count(&self, count: u32, taken: &[u32]) -> Result<Vec<u32>, AllocatorError> {
        let wanted = usize::try_from(count).unwrap_or(usize::MAX);
        let nodes: BTreeSet<u32> = self.0.iter().map(|core| core.node).collect();
        let of = |node: u32| -> Vec<u32> {
            let cores = self.free(taken).filter(|core| core.node == node);
            cores.flat_map(|core| core.cpus.iter().copied()).collect()
        };
        // Of two equal nodes the first.
        let best = nodes
            .into_iter()
            .rev()
            .map(of)
            .max_by_key(Vec::len)
            .unwrap_or_default();
        let threads = self.0.iter().map(|core| core.cpus.len()).max().unwrap_or(1);
        if wanted == 0 || wanted > best.len() || !wanted.is_multiple_of(threads) {
            return Err(AllocatorError::Count {
                asked: count,
                threads,
                most: best.len(),
            });
        }
        Ok(best[..wanted].to_vec())
    }

    /// The CPUs that are named, if they can be given.
    fn pool(&self, asked: &[u32], taken: &[u32]) -> Result<Vec<u32>, AllocatorError> {
        let wanted: BTreeSet<u32> = asked.iter().copied().collect();
        let possible: Vec<u32> = self
            .free(taken)
            .flat_map(|core| core.cpus.iter().copied())
            .collect();
        let refuse = |problem| {
            let (asked, possible) = (asked.to_vec(), possible.clone());
            Err(AllocatorError::Pool {
                asked,
                problem,
                possible,
            })
        };
        let named = |core: &&Core| core.cpus.iter().any(|cpu| wanted.contains(cpu));
        let cores: Vec<&Core> = self.free(taken).filter(named).collect();
        if wanted.len() != asked.len() || wanted.is_empty() {
            return refuse("it is empty or names a CPU twice");
        }
        if !wanted.iter().all(|cpu| possible.contains(cpu)) {
            return refuse("a CPU is not there, is given already, or shares CPU 0's core");
        }
        if cores
            .iter()
            .any(|core| core.cpus.iter().any(|cpu| !wanted.contains(cpu)))
        {
            return refuse("it holds a part of a core");
        }
        if cores.windows(2).any(|pair| pair[0].node != pair[1].node) {
            return refuse("its CPUs are of several NUMA nodes");
        }
        Ok(cores
            .into_iter()
            .flat_map(|core| core.cpus.iter().copied())
            .collect())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A host of so many cores with two threads each, threads of core n being n and n + cores, on two nodes.
    pub(crate) fn host(cores: u32) -> Topology {
        let core = |n| Core {
            cpus: vec![n, n + cores],
            node: u32::from(n >= cores / 2),
        };
        Topology((0..cores).map(core).collect())
    }

    fn parsed(text: &str) -> Result<Vec<Share>, AllocatorError> {
        parse(Path::new("allocator.yaml"), text)
    }

    /// The example of docs/hypervisor.md: 4 of 16 cores and 32 of 64 GiB.
    pub(crate) fn example() -> Allocation {
        let shares = parsed("---\n# Enclos\nmemory_mib: 32768\ncpu_count: 8\n").unwrap();
        allocate(&shares, &host(16), 65536).unwrap()
    }

    #[test]
    fn four_of_sixteen_cores_are_whole_and_of_one_node() {
        assert_eq!(
            example(),
            Allocation {
                memory_mib: 32768,
                cpus: vec![8, 24, 9, 25, 10, 26, 11, 27]
            }
        );
    }

    #[test]
    fn memory_comes_from_where_the_cpus_are() {
        let host = host(16);
        assert_eq!(host.nodes_of(&example().cpus), [1]);
        assert_eq!(host.nodes_of(&[2, 9]), [0, 1]);
        assert_eq!(host.nodes_of(&[]), [0; 0]);
    }

    #[test]
    fn awss_file_is_understood_with_its_comments() {
        let shipped = "\
# Enclave configuration file.
memory_mib: 1
---
# How much memory to allocate for enclaves (in MiB).
memory_mib: 512
# How many CPUs to reserve for enclaves.
cpu_count: 2
#
# cpu_pool: 2,3,6-9
";
        assert_eq!(
            parsed(shipped).unwrap(),
            [Share {
                memory_mib: 512,
                cpus: Cpus::Count(2)
            }]
        );
        let pool = parsed("cpu_pool: 2,3,6-9 # these\nmemory_mib: 64").unwrap();
        assert_eq!(pool[0].cpus, Cpus::Pool(vec![2, 3, 6, 7, 8, 9]));
        let tables =
            parsed("- memory_mib: 1\n  cpu_count: 2\n- cpu_pool: [3, 4]\n  memory_mib: 5\n")
                .unwrap();
        let expected = [
            Share {
                memory_mib: 1,
                cpus: Cpus::Count(2),
            },
            Share {
                memory_mib: 5,
                cpus: Cpus::Pool(vec![3, 4]),
            },
        ];
        assert_eq!(tables, expected);
    }

    #[test]
    fn what_is_not_understood_is_refused_by_line() {
        for (text, line) in [
            ("memory: 1", 1),
            ("memory_mib: 1\n\nnonsense", 3),
            ("memory_mib: x", 1),
            ("cpu_pool: 3-1", 1),
            ("cpu_pool: 1-99999999", 1),
            ("memory_mib: 1\nmemory_mib: 1", 2),
        ] {
            assert!(
                matches!(parsed(text), Err(AllocatorError::Line { line: found, .. }) if found == line),
                "{text}"
            );
        }
        for text in [
            "",
            "memory_mib: 1",
            "cpu_count: 1",
            "memory_mib: 1\ncpu_count: 1\ncpu_pool: 1",
            "- memory_mib: 1\n- cpu_count: 1",
        ] {
            assert!(
                matches!(parsed(text), Err(AllocatorError::Table { .. })),
                "{text}"
            );
        }
    }

    #[test]
    fn the_hosts_core_and_halves_of_cores_are_never_given() {
        let host = host(4);
        let refused =
            |pool: &[u32]| matches!(host.pool(pool, &[]), Err(AllocatorError::Pool { .. }));
        assert_eq!(host.pool(&[5, 1], &[]).unwrap(), [1, 5]);
        assert_eq!(host.pool(&[2, 3, 6, 7], &[]).unwrap(), [2, 6, 3, 7]);
        for bad in [
            &[0, 4][..],
            &[4],
            &[1],
            &[1, 5, 2, 6],
            &[1, 1, 5],
            &[],
            &[8, 12],
        ] {
            assert!(refused(bad), "{bad:?}");
        }
        assert!(matches!(
            host.pool(&[1, 5], &[1, 5]),
            Err(AllocatorError::Pool { .. })
        ));
        for bad in [0, 1, 3, 6] {
            assert!(
                matches!(
                    host.count(bad, &[]),
                    Err(AllocatorError::Count { most: 4, .. })
                ),
                "{bad}"
            );
        }
        assert_eq!(host.count(4, &[]).unwrap(), [2, 6, 3, 7]);
        assert_eq!(host.count(2, &[2, 6, 3, 7]).unwrap(), [1, 5]);
    }

    #[test]
    fn tables_add_up_and_pools_come_first() {
        let shares =
            parsed("- memory_mib: 100\n  cpu_count: 2\n- memory_mib: 200\n  cpu_pool: 2,6\n")
                .unwrap();
        let allocation = allocate(&shares, &host(4), 300).unwrap();
        assert_eq!(
            allocation,
            Allocation {
                memory_mib: 300,
                cpus: vec![2, 6, 1, 5]
            }
        );
        assert!(matches!(
            allocate(&shares, &host(4), 299),
            Err(AllocatorError::Memory {
                asked: 300,
                total: 299
            })
        ));
    }

    #[test]
    fn a_topology_is_read_from_sysfs() {
        let sys = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = sys.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        for (cpu, siblings) in [(0, "0,2\n"), (1, "1,3\n"), (2, "0,2\n"), (3, "1,3\n")] {
            write(
                &format!("cpu/cpu{cpu}/topology/thread_siblings_list"),
                siblings,
            );
        }
        write("node/node0/cpulist", "0,2\n");
        write("node/node1/cpulist", "1,3\n");
        let core = |cpus: &[u32], node| Core {
            cpus: cpus.to_vec(),
            node,
        };
        assert_eq!(
            Topology::read(sys.path(), &[0, 1, 2, 3]),
            Topology(vec![core(&[0, 2], 0), core(&[1, 3], 1)])
        );
        assert_eq!(
            Topology::read(sys.path(), &[1]),
            Topology(vec![core(&[1], 1)])
        );
        assert_eq!(
            Topology::read(Path::new("/nonexistent"), &[0, 1]),
            Topology(vec![core(&[0], 0), core(&[1], 0)])
        );
        assert!(!Topology::of_this_host().0.is_empty());
    }

    #[test]
    fn a_file_that_is_named_has_to_be_there() {
        let missing = read(Some(Path::new("/nonexistent/allocator.yaml")), &host(4), 1);
        assert!(matches!(missing, Err(AllocatorError::Read { .. })));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("allocator.yaml");
        fs::write(&path, "memory_mib: 64\ncpu_count: 2\n").unwrap();
        let found = read(Some(&path), &host(4), 64).unwrap().unwrap();
        assert_eq!((found.memory_mib, found.cpus.len()), (64, 2));
    }
}
