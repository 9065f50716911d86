//! A daemon in a directory of its own, a script as its engine, and clients.

use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use enclos_api::control::{
    Cpus, Enclave, Enclaves, Failure, Host, Reply, Request, RunRequest, Selector, Success,
};
use enclos_eif::{BuildMetadata, Builder, Metadata};
use enclos_hypervisor::wire;
use rustix::process::{Pid, Signal};
use tempfile::TempDir;

/// Longest wait for anything.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// An engine that never says anything.
pub(crate) const SILENT: &str = "exec /bin/sleep 300";

/// An engine that fails at once.
pub(crate) const FAILING: &str = "echo 'qemu: no such device' >&2; exit 3";

pub(crate) const INSTANCE: &str = "i-0123456789abcdef0";

/// A daemon, and everything that it leaves on disk.
pub(crate) struct Daemon {
    pub(crate) dir: TempDir,
    child: Option<Child>,
}

impl Daemon {
    /// Starts a daemon with 2 GiB for enclaves and `engine` in QEMU's place.
    pub(crate) fn start(engine: &str, boot_timeout_ms: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // As root, enclaves' users must reach the engine's script.
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        write_config(dir.path());
        write_engine(dir.path(), engine);
        let mut daemon = Self { dir, child: None };
        daemon.restart(boot_timeout_ms);
        daemon
    }

    /// Starts the daemon again on what the last one left.
    pub(crate) fn restart(&mut self, boot_timeout_ms: u64) {
        let child = self
            .command()
            .env("ENCLOS_BOOT_TIMEOUT_MS", boot_timeout_ms.to_string())
            .spawn()
            .unwrap();
        self.child = Some(child);
        eventually("the control socket", || {
            UnixStream::connect(self.socket()).is_ok()
        });
    }

    /// What starts this daemon.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_enclos-hypervisor"));
        command
            .arg("serve")
            .arg("--config")
            .arg(self.path("host.toml"))
            .arg("--state-dir")
            .arg(self.path("state"))
            .arg("--run-dir")
            .arg(self.path("run"))
            .arg("--qemu")
            .arg(self.path("qemu"))
            .arg("--memory-mib=2048")
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("run/hypervisor.sock")
    }

    /// Directories of enclaves.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("run/enclaves")).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    pub(crate) fn pid(&self) -> Pid {
        let id = self.child.as_ref().unwrap().id();
        Pid::from_raw(i32::try_from(id).unwrap()).unwrap()
    }

    /// Sends a signal and waits for the daemon's end.
    pub(crate) fn signal(&mut self, signal: Signal) -> ExitStatus {
        rustix::process::kill_process(self.pid(), signal).unwrap();
        self.wait()
    }

    fn wait(&mut self) -> ExitStatus {
        let mut child = self.child.take().unwrap();
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the daemon does not end");
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn connect(&self) -> UnixStream {
        UnixStream::connect(self.socket()).unwrap()
    }

    /// One request, one answer.
    pub(crate) fn ask(&self, request: &Request) -> Result<Success, Failure> {
        ask(&self.connect(), request, None)
    }

    pub(crate) fn run(&self, request: RunRequest, image: &File) -> Result<Success, Failure> {
        ask(&self.connect(), &Request::Run(request), Some(image))
    }

    /// Asks for an enclave in a thread.
    pub(crate) fn run_in_background(
        &self,
        request: RunRequest,
        image: &File,
    ) -> thread::JoinHandle<Result<Success, Failure>> {
        let (stream, image) = (self.connect(), image.try_clone().unwrap());
        thread::spawn(move || ask(&stream, &Request::Run(request), Some(&image)))
    }

    pub(crate) fn describe(&self) -> Vec<Enclave> {
        list(&self.connect())
    }

    pub(crate) fn host(&self) -> Host {
        match self.ask(&Request::Host) {
            Ok(Success::Host(host)) => *host,
            other => panic!("host: {other:?}"),
        }
    }

    pub(crate) fn terminate(&self, id: &str) -> Result<Success, Failure> {
        let enclave = Selector::Id(id.to_owned());
        self.ask(&Request::Terminate {
            enclave,
            grace_s: 0,
        })
    }

    /// Waits for an enclave whose engine runs.
    pub(crate) fn launched(&self) -> Enclave {
        let mut found = None;
        eventually("a launched enclave", || {
            let mut enclaves = self.describe().into_iter();
            found = enclaves.find(|enclave| enclave.boot.launched_ms.is_some());
            found.is_some()
        });
        found.unwrap()
    }

    /// Nothing of any enclave is left, here or in the daemon's account.
    pub(crate) fn assert_clean(&self) {
        eventually("no enclave", || self.describe().is_empty());
        assert_eq!(self.leftovers(), [""; 0]);
        assert_eq!(self.host().memory_free_mib, 2048);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub(crate) fn ask(
    stream: &UnixStream,
    request: &Request,
    image: Option<&File>,
) -> Result<Success, Failure> {
    wire::send(stream, request, image.map(AsFd::as_fd), LIMIT).unwrap();
    answered(stream)
}

fn answered(stream: &UnixStream) -> Result<Success, Failure> {
    match wire::receive::<Reply>(stream, LIMIT).unwrap().0 {
        Reply::Ok(success) => Ok(success),
        Reply::Error(failure) => Err(failure),
    }
}

/// All enclaves, as any user sees them.
pub(crate) fn list(stream: &UnixStream) -> Vec<Enclave> {
    let mut answer = ask(stream, &Request::Describe, None);
    let mut list = Enclaves::default();
    loop {
        if let Some(all) = list.take(answer.unwrap()).unwrap() {
            return all;
        }
        answer = answered(stream);
    }
}

/// Polls `check` until it holds.
pub(crate) fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !check() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a process exists and is not merely waiting to be waited for.
pub(crate) fn alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit(") ")
        .next()
        .and_then(|rest| rest.chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

/// Processes in the group that a vmm leads, itself included.
pub(crate) fn group(leader: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields: Vec<&str> = stat
            .rsplit(") ")
            .next()
            .unwrap_or_default()
            .split(' ')
            .collect();
        fields.get(2) == Some(&leader.to_string().as_str()) && alive(*pid)
    })
    .collect()
}

pub(crate) fn request() -> RunRequest {
    RunRequest {
        protocol: enclos_api::PROTOCOL_VERSION,
        name: "app".into(),
        cpus: Cpus::Count(1),
        memory_mib: 128,
        cid: None,
        debug: false,
    }
}

pub(crate) fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// A small valid image.
pub(crate) fn image() -> Vec<u8> {
    image_with(ramdisk())
}

/// A small valid image whose ramdisk unpacks to 64 MiB.
pub(crate) fn image_with_bomb() -> Vec<u8> {
    const LEN: u32 = 64 << 20;
    let mut archive = entry("zeros", LEN);
    archive.resize(archive.len() + usize::try_from(LEN).unwrap(), 0);
    archive.extend(ramdisk());
    image_with(gzip(&archive))
}

/// A small valid image that says this much of itself.
pub(crate) fn image_saying(custom_metadata: serde_json::Value) -> Vec<u8> {
    let metadata = Metadata {
        custom_metadata,
        ..metadata()
    };
    built(ramdisk(), metadata)
}

fn image_with(ramdisk: Vec<u8>) -> Vec<u8> {
    built(ramdisk, metadata())
}

fn built(ramdisk: Vec<u8>, metadata: Metadata) -> Vec<u8> {
    let mut out = std::io::Cursor::new(Vec::new());
    let builder = Builder::new()
        .kernel(kernel())
        .cmdline("console=ttyS0 quiet")
        .metadata(metadata)
        .ramdisk(ramdisk);
    builder.write(&mut out).unwrap();
    out.into_inner()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

fn metadata() -> Metadata {
    Metadata {
        image_name: "test".into(),
        image_version: "1.0".into(),
        build_metadata: BuildMetadata {
            build_time: "1970-01-01T00:00:00+00:00".into(),
            build_tool: "test".into(),
            build_tool_version: "0".into(),
            operating_system: "Linux".into(),
            kernel_version: "6.12.0".into(),
        },
        docker_info: serde_json::json!({}),
        custom_metadata: serde_json::Value::Null,
    }
}

/// A newc archive with nothing but its trailer.
fn ramdisk() -> Vec<u8> {
    let mut archive = entry("TRAILER!!!", 0);
    archive.resize(512, 0);
    archive
}

/// Header and name of a newc entry, padded.
fn entry(name: &str, len: u32) -> Vec<u8> {
    let mut entry = b"070701".to_vec();
    let name_len = u32::try_from(name.len()).unwrap() + 1;
    for field in 0..13 {
        let value = match field {
            1 => 0o100_644,
            4 => 1,
            6 => len,
            11 => name_len,
            _ => 0,
        };
        entry.extend_from_slice(format!("{value:08x}").as_bytes());
    }
    entry.extend_from_slice(name.as_bytes());
    entry.push(0);
    entry.resize(entry.len().next_multiple_of(4), 0);
    entry
}

/// The smallest bzImage whose payload unpacks to something like an ELF file.
fn kernel() -> Vec<u8> {
    const SETUP: usize = 1024;
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(256, 0);
    elf[18] = 62;
    let packed = gzip(&elf);
    let mut image = vec![0; SETUP];
    image[0x1f1] = 1;
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&[0x0f, 0x02]);
    image[0x24c..0x250].copy_from_slice(&u32::try_from(packed.len()).unwrap().to_le_bytes());
    image.extend_from_slice(&packed);
    image.resize(image.len().next_multiple_of(16), 0);
    let paragraphs = u32::try_from((image.len() - SETUP) / 16).unwrap();
    image[0x1f4..0x1f8].copy_from_slice(&paragraphs.to_le_bytes());
    image
}

pub(crate) fn write_config(dir: &Path) {
    let text = format!(
        "[instance]\nid = \"{INSTANCE}\"\nregion = \"us-east-1\"\navailability_zone = \"us-east-1a\"\n\
         account_id = \"000000000000\"\n[role]\narn = \"arn:aws:iam::000000000000:role/host\"\n"
    );
    fs::write(dir.join("host.toml"), text).unwrap();
}

/// A program that passes for QEMU when asked for its version and devices, and is `engine` otherwise.
pub(crate) fn write_engine(dir: &Path, engine: &str) {
    let script = format!(
        "#!/bin/sh\ncase \"$1\" in\n--version) echo 'QEMU emulator version 7.2.0'; exit;;\n-machine) \
         echo 'name \"vhost-user-vsock-device\", name \"vhost-user-rng\"'; exit;;\nesac\n{engine}\n"
    );
    let path = dir.join("qemu");
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
}

/// Everything that a stream still has.
pub(crate) fn drain(mut stream: &UnixStream) -> Vec<u8> {
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    bytes
}
