//! `enclos doctor`: what this machine has, what it lacks, what to do.
//!
//! Every check is a function from the machine to a [`Finding`]; a missing thing that something needs makes
//! the status 1.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use enclos_api::control::{Cgroup, Host, Request, Success};
use serde::{Deserialize, Serialize};

use super::kernel;
use super::services::{gateway_answers, hypervisor_answers};
use crate::daemon;
use crate::dirs;
use crate::failure::{Failure, Outcome};
use crate::term;

/// Options of `doctor`.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
}

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Level {
    /// As it should be.
    Good,
    /// Something optional is missing or could be better.
    Note,
    /// Something needed is missing.
    Bad,
}

#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    level: Level,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    todo: Option<String>,
}

impl Finding {
    fn good(what: &'static str, found: impl Into<String>) -> Self {
        Self {
            what,
            level: Level::Good,
            found: found.into(),
            todo: None,
        }
    }

    fn note(what: &'static str, found: impl Into<String>, todo: impl Into<String>) -> Self {
        Self {
            what,
            level: Level::Note,
            found: found.into(),
            todo: Some(todo.into()),
        }
    }

    fn bad(what: &'static str, found: impl Into<String>, todo: impl Into<String>) -> Self {
        Self {
            what,
            level: Level::Bad,
            found: found.into(),
            todo: Some(todo.into()),
        }
    }

    fn line(&self) -> String {
        let mark = match self.level {
            Level::Good => '✓',
            Level::Note => '–',
            Level::Bad => '✗',
        };
        let mut line = format!("{mark} {:<12} {}\n", self.what, self.found);
        for todo in self.todo.iter().flat_map(|todo| todo.lines()) {
            let _ = writeln!(line, "  {:<12} → {todo}", "");
        }
        line
    }
}

pub(super) fn run(args: &Doctor) -> Outcome {
    let packages = Packages::of_this_machine();
    let probe = probe();
    let host = in_force();
    let mut findings = vec![cores(), memory(), set_aside(host.as_ref())];
    let version = probe
        .iter()
        .flatten()
        .find_map(|probe| probe.qemu.version.as_deref());
    findings.push(version.map_or_else(|| qemu(packages), |line| qemu_version(line, packages)));
    findings.extend(engines(probe, host.as_ref()));
    findings.extend([
        programs(),
        guest(),
        kernel(packages),
        rootfs_tool(packages),
        container_tool(packages),
    ]);
    findings.extend([hypervisor(), gateway()]);
    if args.json {
        term::json(&findings)?;
    } else {
        term::out(&findings.iter().map(Finding::line).collect::<String>())?;
    }
    match findings
        .iter()
        .filter(|finding| finding.level == Level::Bad)
        .count()
    {
        0 => Ok(()),
        1 => Err(Failure::text(
            "1 thing that is needed is missing; what to do is shown above",
        )),
        count => Err(Failure::text(format_args!(
            "{count} things that are needed are missing; what to do is shown above"
        ))),
    }
}

/// Which distribution's package names to recommend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Packages {
    Debian,
    Fedora,
    Arch,
    Suse,
    Alpine,
    Other,
}

impl Packages {
    fn of_this_machine() -> Self {
        Self::from_os_release(&std::fs::read_to_string("/etc/os-release").unwrap_or_default())
    }

    fn from_os_release(text: &str) -> Self {
        let ids = text.lines().filter_map(|line| {
            line.strip_prefix("ID=")
                .or_else(|| line.strip_prefix("ID_LIKE="))
        });
        let known = |id: &str| match id {
            "debian" | "ubuntu" => Some(Self::Debian),
            "fedora" | "rhel" | "centos" | "amzn" => Some(Self::Fedora),
            "arch" => Some(Self::Arch),
            "suse" | "opensuse" => Some(Self::Suse),
            "alpine" => Some(Self::Alpine),
            _ => None,
        };
        ids.flat_map(|ids| ids.trim_matches('"').split(' '))
            .find_map(known)
            .unwrap_or(Self::Other)
    }

    /// How to install a thing, by its package's name there.
    fn install(self, tool: &str) -> String {
        let name = match (self, tool) {
            (Self::Debian, "qemu") => "qemu-system-x86",
            (Self::Fedora, "qemu") => "qemu-system-x86-core",
            (Self::Arch, "qemu") => "qemu-system-x86",
            (Self::Suse, "qemu") => "qemu-x86",
            (Self::Alpine, "qemu") => "qemu-system-x86_64",
            (_, tool) => tool,
        };
        match self {
            Self::Debian => format!("apt-get install --no-install-recommends {name}"),
            Self::Fedora => format!("dnf install {name}"),
            Self::Arch => format!("pacman -S {name}"),
            Self::Suse => format!("zypper install {name}"),
            Self::Alpine => format!("apk add {name}"),
            Self::Other => format!("install {name} with this distribution's package manager"),
        }
    }
}

fn cores() -> Finding {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if cores < 2 {
        return Finding::note(
            "cores",
            "1",
            "an enclave and its host share it; expect slow boots",
        );
    }
    Finding::good("cores", cores.to_string())
}

/// Below this an enclave with a Python application does not boot beside its host.
const WANTED_MIB: u64 = 1024;

fn memory() -> Finding {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    match (
        meminfo_mib(&text, "MemTotal"),
        meminfo_mib(&text, "MemAvailable"),
    ) {
        (Some(total), Some(free)) if free < WANTED_MIB => {
            let todo = format!("free memory: {WANTED_MIB} MiB and more are wanted for an enclave");
            Finding::note("memory", format!("{free} of {total} MiB available"), todo)
        }
        (Some(total), Some(free)) => {
            Finding::good("memory", format!("{free} of {total} MiB available"))
        }
        _ => Finding::note(
            "memory",
            "unknown: /proc/meminfo cannot be read",
            "mount /proc",
        ),
    }
}

/// What enclaves have from the hypervisor that runs, else what an operator has set aside, which it reads at its start.
fn set_aside(host: Option<&Host>) -> Finding {
    if let Some(host) = host {
        let (total, free) = (host.memory_total_mib, host.memory_free_mib);
        let found = format!(
            "{total} MiB ({free} free), CPUs {:?} of the hypervisor that runs",
            host.cpu_ids
        );
        return Finding::good("set aside", found);
    }
    let prefix = std::env::var_os("NITRO_CLI_INSTALL_DIR").unwrap_or_default();
    let path = Path::new("/")
        .join(prefix)
        .join("etc/nitro_enclaves/allocator.yaml");
    match path.is_file() {
        true => Finding::good("set aside", format!("what {} says", path.display())),
        false => Finding::good("set aside", "nothing: enclaves get what the host can spare"),
    }
}

/// What holds enclaves to their share: in the hypervisor that runs, else in one that is started from here.
fn limits(cgroup: &Cgroup, running: bool) -> Finding {
    let always = "CPU affinity, guest memory of a fixed size, resource limits";
    let who = if running {
        ""
    } else {
        " (of a hypervisor started from here)"
    };
    match &cgroup.problem {
        None => {
            let controllers = cgroup.controllers.join(", ");
            Finding::good("limits", format!("cgroup v2: {controllers}; {always}{who}"))
        }
        Some(problem) => Finding::note(
            "limits",
            format!("{always}{who}; no cgroup v2"),
            format!("to have cgroup v2 hold them too: {problem}"),
        ),
    }
}

/// What the hypervisor says that runs.
fn in_force() -> Option<Host> {
    match daemon::hypervisor(&Request::Host) {
        Ok(Success::Host(host)) => Some(*host),
        _ => None,
    }
}

fn meminfo_mib(text: &str, name: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? / 1024)
}

const QEMU: &str = "qemu-system-x86_64";

/// Oldest QEMU that the engine is tested with.
const QEMU_AT_LEAST: (u32, u32) = (7, 2);

fn qemu(packages: Packages) -> Finding {
    let Some(path) = dirs::in_path(QEMU) else {
        return Finding::bad(
            "qemu",
            format!("{QEMU} not found in PATH"),
            packages.install("qemu"),
        );
    };
    match kernel::output(Command::new(&path).arg("--version")) {
        Ok(text) => qemu_version(text.lines().next().unwrap_or_default(), packages),
        Err(failure) => Finding::bad(
            "qemu",
            failure.render("enclos").trim().to_owned(),
            packages.install("qemu"),
        ),
    }
}

fn qemu_version(line: &str, packages: Packages) -> Finding {
    let version = line.split_whitespace().find_map(|word| {
        let (major, rest) = word.split_once('.')?;
        Some((
            major.parse::<u32>().ok()?,
            rest.split('.').next()?.parse::<u32>().ok()?,
        ))
    });
    match version {
        Some(version) if version >= QEMU_AT_LEAST => Finding::good("qemu", line),
        Some(_) => Finding::bad(
            "qemu",
            format!("{line}: older than 7.2"),
            packages.install("qemu"),
        ),
        None => Finding::note(
            "qemu",
            format!("{line}: version not recognised"),
            "7.2 or later is needed",
        ),
    }
}

/// What `enclos-hypervisor probe` says. Without the program there is another finding already.
fn probe() -> Option<Outcome<Probe>> {
    let program = dirs::program("enclos-hypervisor");
    dirs::in_path(&program)?;
    let output = kernel::output(Command::new(&program).arg("probe"));
    Some(output.and_then(|text| parse_probe(&text)))
}

/// One finding per engine, and what holds enclaves.
fn engines(probe: Option<Outcome<Probe>>, host: Option<&Host>) -> Vec<Finding> {
    match probe {
        None => Vec::new(),
        Some(Ok(probe)) => probed(probe, host),
        Some(Err(failure)) => {
            let found = failure.render("enclos").trim().replace('\n', ";");
            vec![Finding::bad(
                "engine",
                found,
                "no enclave can run here until the probe succeeds",
            )]
        }
    }
}

/// The part of the probe that is shown.
#[derive(Debug, Deserialize)]
struct Probe {
    qemu: ProbedQemu,
    kvm: ProbedKvm,
    cgroup: Cgroup,
}

#[derive(Debug, Deserialize)]
struct ProbedQemu {
    usable: bool,
    version: Option<String>,
    problem: Option<String>,
}

#[derive(Debug, Deserialize)]
struct ProbedKvm {
    verdict: String,
}

fn parse_probe(text: &str) -> Outcome<Probe> {
    serde_json::from_str(text).map_err(|error| {
        Failure::from(error).context("enclos-hypervisor probe printed something else")
    })
}

fn probed(Probe { qemu, kvm, cgroup }: Probe, host: Option<&Host>) -> Vec<Finding> {
    let engine = match qemu.problem {
        None if qemu.usable => Finding::good("engine qemu", qemu.version.unwrap_or_default()),
        problem => {
            let problem = problem.unwrap_or_else(|| "not usable".to_owned());
            Finding::bad(
                "engine qemu",
                problem,
                "no enclave can run here until this is solved",
            )
        }
    };
    let note =
        "nothing to do: this release runs enclaves on QEMU's translator, with or without KVM";
    let kvm = Finding::note("engine kvm", kvm.verdict, note);
    let limits = match host {
        Some(host) => limits(&host.cgroup, true),
        None => limits(&cgroup, false),
    };
    vec![engine, kvm, limits]
}

fn programs() -> Finding {
    let names = [
        "enclos-hypervisor",
        "enclos-vmm",
        "enclos-gateway",
        "enclos-kms",
    ];
    let missing: Vec<_> = names
        .into_iter()
        .filter(|name| dirs::in_path(dirs::program(name)).is_none())
        .collect();
    if missing.is_empty() {
        return Finding::good("programs", "all of Enclos's daemons are here");
    }
    let todo = "put them beside `enclos`, or their directory into PATH";
    Finding::bad(
        "programs",
        format!("not found: {}", missing.join(", ")),
        todo,
    )
}

fn guest() -> Finding {
    let todo = "set ENCLOS_GUEST_DIR to the directory with the static enclos-init and enclos-agent";
    match dirs::guest() {
        Ok(dir) if has_guest(&dir) => Finding::good("guest", dir.display().to_string()),
        Ok(dir) => Finding::bad(
            "guest",
            format!("no enclos-init and enclos-agent in {}", dir.display()),
            todo,
        ),
        Err(_) => Finding::bad("guest", "directory unknown", todo),
    }
}

fn has_guest(dir: &Path) -> bool {
    [["enclos-init", "init"], ["enclos-agent", "agent"]]
        .iter()
        .all(|names| names.iter().any(|name| dir.join(name).is_file()))
}

fn kernel(packages: Packages) -> Finding {
    let todo = match packages {
        Packages::Debian => "run `enclos kernel fetch`".to_owned(),
        _ => "run `enclos kernel fetch --deb FILE` with linux-image-6.12.*-cloud-amd64 from \
              https://packages.debian.org/bookworm/linux-image-6.12-cloud-amd64 (needs dpkg-deb: package dpkg)"
            .to_owned(),
    };
    match kernel::newest() {
        Ok(Some(dir)) => Finding::good("kernel", dir.display().to_string()),
        _ => Finding::bad("kernel", "none in the cache", todo),
    }
}

fn rootfs_tool(packages: Packages) -> Finding {
    match dirs::in_path("mmdebstrap") {
        Some(path) => Finding::good("mmdebstrap", path.display().to_string()),
        None => Finding::note(
            "mmdebstrap",
            "not found: needed to build the Python example without a registry",
            packages.install("mmdebstrap"),
        ),
    }
}

fn container_tool(packages: Packages) -> Finding {
    let found: Vec<PathBuf> = ["docker", "podman", "buildah"]
        .into_iter()
        .filter_map(dirs::in_path)
        .collect();
    match found.first() {
        Some(path) => Finding::good("containers", path.display().to_string()),
        None => Finding::note(
            "containers",
            "no docker, podman or buildah: images are built from archives and root file systems only",
            packages.install("podman"),
        ),
    }
}

fn hypervisor() -> Finding {
    daemon_finding(
        "hypervisor",
        hypervisor_answers(),
        daemon::hypervisor_socket(),
    )
}

fn gateway() -> Finding {
    daemon_finding("gateway", gateway_answers(), daemon::gateway_socket())
}

fn daemon_finding(what: &'static str, up: bool, socket: Outcome<PathBuf>) -> Finding {
    match socket {
        Ok(socket) if up => Finding::good(what, format!("answers at {}", socket.display())),
        Ok(socket) => Finding::note(
            what,
            format!("does not answer at {}", socket.display()),
            "run `enclos up`",
        ),
        Err(_) => Finding::note(what, "run directory unknown", "set ENCLOS_RUN_DIR"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_named_as_the_distribution_names_them() {
        let of = Packages::from_os_release;
        assert_eq!(of("NAME=x\nID=debian\n"), Packages::Debian);
        assert_eq!(
            of("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n"),
            Packages::Debian
        );
        assert_eq!(
            of("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n"),
            Packages::Fedora
        );
        assert_eq!(
            of("ID=\"opensuse-leap\"\nID_LIKE=\"suse opensuse\"\n"),
            Packages::Suse
        );
        assert_eq!(of("ID=plan9\n"), Packages::Other);
        assert!(
            Packages::Debian
                .install("qemu")
                .ends_with("qemu-system-x86")
        );
        assert_eq!(Packages::Arch.install("podman"), "pacman -S podman");
    }

    #[test]
    fn old_qemu_is_refused_and_new_is_not() {
        let level = |line| qemu_version(line, Packages::Debian).level;
        assert_eq!(
            level("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)"),
            Level::Good
        );
        assert_eq!(level("QEMU emulator version 10.0.2"), Level::Good);
        assert_eq!(level("QEMU emulator version 7.1.0"), Level::Bad);
        assert_eq!(level("something else"), Level::Note);
    }

    #[test]
    fn limits_are_named_as_they_are() {
        let mut cgroup = Cgroup {
            controllers: vec!["cpuset".into(), "memory".into()],
            problem: None,
        };
        let held = limits(&cgroup, true);
        assert_eq!(held.level, Level::Good);
        assert!(held.found.starts_with("cgroup v2: cpuset, memory; "));
        cgroup.problem = Some("no cgroup v2 is mounted".into());
        let not = limits(&cgroup, false);
        assert_eq!(not.level, Level::Note);
        assert!(not.found.contains("of a hypervisor started from here"));
        assert!(not.todo.unwrap().ends_with("no cgroup v2 is mounted"));
    }

    #[test]
    fn memory_is_read_in_mib() {
        let text = "MemTotal:        8147080 kB\nMemFree: 1 kB\nMemAvailable:    2097152 kB\n";
        assert_eq!(meminfo_mib(text, "MemTotal"), Some(7956));
        assert_eq!(meminfo_mib(text, "MemAvailable"), Some(2048));
        assert_eq!(meminfo_mib(text, "Mem"), None);
    }

    #[test]
    fn a_probe_becomes_one_finding_per_engine() {
        let good = r#"{"version":"0.1.0","qemu":{"usable":true,"program":"/q","version":"QEMU 7.2","problem":null},
            "kvm":{"works":false,"verdict":"cannot make a machine"},"tsc_khz":1,
            "cgroup":{"controllers":["memory"],"problem":null}}"#;
        let levels = |text: &str| {
            probed(parse_probe(text).unwrap(), None)
                .iter()
                .map(|f| f.level)
                .collect::<Vec<_>>()
        };
        assert_eq!(levels(good), [Level::Good, Level::Note, Level::Good]);
        let bad = r#"{"qemu":{"usable":false,"problem":"too old; install 7.2"},"kvm":{"works":true,"verdict":"v"},
            "cgroup":{"controllers":[],"problem":"no cgroup v2 is mounted"}}"#;
        assert_eq!(levels(bad), [Level::Bad, Level::Note, Level::Note]);
        assert!(parse_probe("{}").is_err());
    }

    #[test]
    fn a_line_says_what_to_do() {
        let line = Finding::bad("qemu", "not found", "install it").line();
        assert_eq!(
            line,
            "✗ qemu         not found\n               → install it\n"
        );
        assert_eq!(Finding::good("cores", "2").line(), "✓ cores        2\n");
    }
}
