//! The `qemu` engine: stock QEMU's `microvm` as vCPUs, memory and boot, and nothing else.
//!
//! ```text
//!  enclos-vmm ──vhost-user──▶ vhost-user-vsock-device ─┐
//!             ──vhost-user──▶ vhost-user-rng (NSM)   ──┤ virtio-mmio ─ guest
//!             ◀─socket────── isa-serial, debug only  ──┘
//! ```
//!
//! No NIC, no disk, no display, no monitor; seccomp with every class denied that QEMU can deny. Guest memory
//! is a shared memfd, because both devices live in `enclos-vmm`. The firmware is qboot, not SeaBIOS: SeaBIOS
//! puts the ACPI tables where `microvm` puts the end of the initrd, and the guest then hangs for some sizes.
//! `-erms,-fsrm`: TCG runs `rep movsb` byte by byte, so the guest must not prefer it.

use std::env;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::cmdline::Cmdline;

/// Program name, looked up in `PATH` unless the operator names a file.
pub const PROGRAM: &str = "qemu-system-x86_64";

/// Oldest version that has all the devices.
pub const OLDEST: (u32, u32) = (7, 2);

/// Longest a `--version` or `-device help` may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(20);

/// Everything QEMU's command line is made of.
#[derive(Debug)]
pub struct Machine<'a> {
    /// QEMU's program.
    pub program: &'a Path,
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// Number of vCPUs.
    pub cpus: u32,
    /// Unpacked kernel (ELF), a memfd.
    pub kernel: BorrowedFd<'a>,
    /// Unpacked ramdisks, one after the other, a memfd.
    pub initrd: BorrowedFd<'a>,
    /// Complete kernel command line, and whether there is ACPI.
    pub cmdline: &'a Cmdline,
    /// vhost-user socket of the vsock device.
    pub vsock: &'a Path,
    /// vhost-user socket of the NSM.
    pub nsm: &'a Path,
    /// Our end's peer for the serial port; `None` leaves the guest without one.
    pub console: Option<BorrowedFd<'a>>,
}

impl Machine<'_> {
    /// The command that runs the machine, in our working directory. Nothing of our environment reaches QEMU.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(self.program);
        command.env_clear().args(self.arguments());
        command
    }

    /// Descriptors that QEMU has to inherit.
    #[must_use]
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        [Some(self.kernel), Some(self.initrd), self.console]
            .into_iter()
            .flatten()
            .collect()
    }

    fn arguments(&self) -> Vec<OsString> {
        let mut arguments = Arguments::default();
        arguments.flags(&["-nodefaults", "-no-user-config", "-no-reboot"]);
        arguments.pair("-display", "none");
        arguments.pair("-monitor", "none");
        arguments.pair(
            "-sandbox",
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        );
        self.board(&mut arguments);
        self.devices(&mut arguments);
        arguments.pair("-bios", "qboot.rom");
        arguments.pair("-kernel", &inherited(self.kernel));
        arguments.pair("-initrd", &inherited(self.initrd));
        arguments.pair("-append", &self.cmdline.line);
        arguments.0
    }

    fn board(&self, arguments: &mut Arguments) {
        let serial = if self.console.is_some() { "on" } else { "off" };
        let acpi = if self.cmdline.acpi { "on" } else { "off" };
        let board = format!("microvm,rtc=on,acpi={acpi},isa-serial={serial},memory-backend=mem");
        let memory = format!(
            "memory-backend-memfd,id=mem,size={}M,share=on",
            self.memory_mib
        );
        arguments.pair("-machine", &board);
        arguments.pair("-accel", "tcg");
        arguments.pair("-cpu", "max,-erms,-fsrm");
        arguments.pair("-smp", &self.cpus.to_string());
        arguments.pair("-m", &format!("{}M", self.memory_mib));
        arguments.pair("-object", &memory);
        arguments.pair("-global", "virtio-mmio.force-legacy=false");
    }

    fn devices(&self, arguments: &mut Arguments) {
        arguments.socket("vsock", self.vsock);
        arguments.pair("-device", "vhost-user-vsock-device,chardev=vsock");
        arguments.socket("nsm", self.nsm);
        arguments.pair("-device", "vhost-user-rng,chardev=nsm");
        if let Some(console) = self.console {
            let chardev = format!("socket,id=console,fd={}", console.as_raw_fd());
            arguments.pair("-chardev", &chardev);
            arguments.pair("-serial", "chardev:console");
        }
    }
}

/// A file that QEMU opens by name although it has none.
fn inherited(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// QEMU's arguments so far.
#[derive(Default)]
struct Arguments(Vec<OsString>);

impl Arguments {
    fn flags(&mut self, flags: &[&str]) {
        self.0.extend(flags.iter().map(OsString::from));
    }

    fn pair(&mut self, flag: &str, value: &str) {
        self.flags(&[flag, value]);
    }

    /// QEMU separates options by commas; one in a path is doubled.
    fn socket(&mut self, id: &str, path: &Path) {
        let path = path.to_string_lossy().replace(',', ",,");
        self.pair("-chardev", &format!("socket,id={id},path={path}"));
    }
}

/// A QEMU that has what the engine needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// Absolute path of the program.
    pub program: PathBuf,
    /// First line of `--version`.
    pub version: String,
}

/// Why no QEMU can be used.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// There is none.
    #[error("{PROGRAM} was not found in PATH; install the package qemu-system-x86")]
    Missing,
    /// It does not run.
    #[error("cannot run {}", program.display())]
    Run {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is older than [`OLDEST`], or says something else than a version.
    #[error("{} says {said:?}, and version {}.{} or newer is needed", program.display(), OLDEST.0, OLDEST.1)]
    Version {
        /// The program.
        program: PathBuf,
        /// What it said.
        said: String,
    },
    /// It was built without a device.
    #[error("{} was built without the device {device}; use the distribution's full build", program.display())]
    Device {
        /// The program.
        program: PathBuf,
        /// The device that is missing.
        device: &'static str,
    },
}

/// Finds QEMU (`named`, else in `PATH`) and checks its version and devices.
///
/// # Errors
/// See [`ProbeError`].
pub fn probe(named: Option<&Path>) -> Result<Installed, ProbeError> {
    let program = match named {
        Some(path) => path.to_owned(),
        None => find_in_path().ok_or(ProbeError::Missing)?,
    };
    let said = output(&program, &["--version"])?;
    let version = said.lines().next().unwrap_or_default().to_owned();
    if parse_version(&version).is_none_or(|version| version < OLDEST) {
        return Err(ProbeError::Version {
            program,
            said: version,
        });
    }
    let devices = output(&program, &["-machine", "microvm", "-device", "help"])?;
    for device in ["vhost-user-vsock-device", "vhost-user-rng"] {
        if !devices.contains(&format!("name \"{device}\"")) {
            return Err(ProbeError::Device { program, device });
        }
    }
    Ok(Installed { program, version })
}

fn find_in_path() -> Option<PathBuf> {
    let executable = |path: &PathBuf| {
        path.metadata()
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(PROGRAM))
        .find(executable)
}

/// Standard output of a short run, bounded in time.
fn output(program: &Path, arguments: &[&str]) -> Result<String, ProbeError> {
    let failed = |source| ProbeError::Run {
        program: program.to_owned(),
        source,
    };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    let Some(stdout) = child.stdout.take() else {
        return Ok(String::new());
    };
    let reader = thread::spawn(move || io::read_to_string(stdout));
    let deadline = Instant::now() + PROBE_TIMEOUT;
    while child.try_wait().map_err(failed)?.is_none() {
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            return Err(failed(io::ErrorKind::TimedOut.into()));
        }
        thread::sleep(Duration::from_millis(5));
    }
    match reader.join() {
        Ok(text) => text.map_err(failed),
        Err(_) => Ok(String::new()),
    }
}

/// `QEMU emulator version 7.2.22 (…)` → (7, 2).
fn parse_version(line: &str) -> Option<(u32, u32)> {
    let number = line.split("version ").nth(1)?;
    let mut parts = number.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::AsFd;

    use super::*;

    fn arguments(console: bool) -> Vec<String> {
        arguments_of(console, true)
    }

    fn arguments_of(console: bool, acpi: bool) -> Vec<String> {
        let line = "quiet a=b,c".to_owned();
        let file = File::open("/dev/null").unwrap();
        let machine = Machine {
            program: Path::new("/usr/bin/qemu-system-x86_64"),
            memory_mib: 512,
            cpus: 2,
            kernel: file.as_fd(),
            initrd: file.as_fd(),
            cmdline: &Cmdline { line, acpi },
            vsock: Path::new("/run/a,b/vs"),
            nsm: Path::new("/run/a,b/ns"),
            console: console.then(|| file.as_fd()),
        };
        assert_eq!(machine.descriptors().len(), if console { 3 } else { 2 });
        machine
            .arguments()
            .into_iter()
            .map(|argument| argument.into_string().unwrap())
            .collect()
    }

    fn value_of<'a>(arguments: &'a [String], flag: &str) -> Vec<&'a str> {
        let pairs = arguments.windows(2).filter(|pair| pair[0] == flag);
        pairs.map(|pair| pair[1].as_str()).collect()
    }

    #[test]
    fn a_production_machine_has_two_devices_and_no_console() {
        let arguments = arguments(false);
        assert_eq!(
            value_of(&arguments, "-device"),
            [
                "vhost-user-vsock-device,chardev=vsock",
                "vhost-user-rng,chardev=nsm"
            ]
        );
        assert_eq!(value_of(&arguments, "-serial"), [""; 0]);
        assert!(value_of(&arguments, "-machine")[0].contains("isa-serial=off"));
        for forbidden in [
            "-netdev",
            "-nic",
            "-drive",
            "-blockdev",
            "-fsdev",
            "-virtfs",
            "-qmp",
        ] {
            assert!(
                !arguments.iter().any(|argument| argument == forbidden),
                "{forbidden}"
            );
        }
    }

    #[test]
    fn a_machine_without_acpi_announces_devices_on_the_command_line() {
        assert!(value_of(&arguments_of(false, true), "-machine")[0].contains(",acpi=on,"));
        assert!(value_of(&arguments_of(false, false), "-machine")[0].contains(",acpi=off,"));
    }

    #[test]
    fn the_sandbox_denies_every_class() {
        assert_eq!(
            value_of(&arguments(false), "-sandbox"),
            ["on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
        );
    }

    #[test]
    fn a_debug_machine_has_a_serial_port() {
        let arguments = arguments(true);
        assert_eq!(value_of(&arguments, "-serial"), ["chardev:console"]);
        assert!(value_of(&arguments, "-machine")[0].contains("isa-serial=on"));
    }

    #[test]
    fn commas_in_paths_do_not_become_options() {
        let arguments = arguments(false);
        assert_eq!(
            value_of(&arguments, "-chardev")[0],
            "socket,id=vsock,path=/run/a,,b/vs"
        );
        assert_eq!(value_of(&arguments, "-append"), ["quiet a=b,c"]);
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(
            parse_version("QEMU emulator version 7.2.22 (Debian 1:7.2)"),
            Some((7, 2))
        );
        assert_eq!(parse_version("QEMU emulator version 10.0.2"), Some((10, 0)));
        assert_eq!(parse_version("something else"), None);
        assert!((10, 0) > OLDEST && (7, 1) < OLDEST);
    }

    fn fake(dir: &Path, script: &str) -> PathBuf {
        let path = dir.join("qemu");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn an_old_or_lean_qemu_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let old = fake(dir.path(), "echo 'QEMU emulator version 6.2.0'");
        assert!(matches!(probe(Some(&old)), Err(ProbeError::Version { .. })));
        let lean = fake(
            dir.path(),
            "[ \"$1\" = --version ] && echo 'QEMU emulator version 8.1.0' || \
             echo 'name \"vhost-user-vsock-device\", bus virtio-bus'",
        );
        let error = probe(Some(&lean)).unwrap_err();
        assert!(
            matches!(
                error,
                ProbeError::Device {
                    device: "vhost-user-rng",
                    ..
                }
            ),
            "{error}"
        );
        let gone = dir.path().join("gone");
        assert!(matches!(probe(Some(&gone)), Err(ProbeError::Run { .. })));
    }
}
