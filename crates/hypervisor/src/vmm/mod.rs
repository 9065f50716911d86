//! `enclos-vmm`: one enclave's devices, its engine, and its key. It lives exactly as long as its enclave.
//!
//! ```text
//!                    ┌────────────────────── enclos-vmm ───────────────────────┐
//!  hypervisor ─link─▶│ main thread: link.rs messages in, milestones out        │
//!                    │   │ unpack ▸ devices ▸ engine ▸ wait                    │
//!                    │ vsock thread ── services 9000, 9001, 9003 (8 each)      │◀─unix─ gateway, clients
//!                    │ NSM thread ──── signs with the leaf key                 │
//!                    │ engine-wait, engine-errors, console, ≤16 followers      │
//!                    └───────┬─────────────────────────────────────────────────┘
//!                            │ vhost-user, serial socket (debug)
//!                          QEMU
//! ```
//!
//! Happy path: launch spec in, key out, certificate in; the image's parts are unpacked while that goes on;
//! devices listen; the engine starts; heartbeat; reports; the engine exits; last word out.
//! Once the engine runs, the process gives up every system call but those that carrying bytes takes
//! (sandbox.rs). Whatever fails on the way is the last word. A link that closes means that the hypervisor is gone: the engine
//! is killed and nobody is told. A vmm that is killed takes the engine with it by its parent-death signal.

pub mod console;
pub mod payload;

mod app_log;
pub(crate) mod engine;
mod sandbox;
mod services;
mod signer;

use std::error::Error;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use enclos_api::frame::FrameError;
use enclos_api::guest::Report;
use enclos_attest::nsm::Nsm;
use enclos_attest::pki::{IssuedLeaf, LeafKey};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use crate::daemon::authority::now;
use crate::engine::cmdline::{self, Cmdline};
use crate::engine::qemu::Machine;
use crate::link::{Ended, FRAME_TIMEOUT, FromVmm, LaunchSpec, ToVmm};
use crate::nsm_device::Module;
use crate::vhost_user::{FrontendSocket, Handle};
use crate::vmm::app_log::AppLog;
use crate::vmm::console::Console;
use crate::vmm::engine::Engine;
use crate::vmm::payload::Payload;
use crate::vmm::services::ToInit;
use crate::vmm::signer::Signer;
use crate::vsock::VsockSpec;
use crate::{VSOCK_SOCKET, log, nsm_device, vsock, wire};

/// Events that may wait for the main thread: more makes the threads that report them wait.
const EVENTS: usize = 64;

/// Time for the hypervisor to issue a certificate.
const CERTIFICATE_TIMEOUT: Duration = Duration::from_secs(30);

/// How often the certificate's age is looked at.
const RENEWAL_TICK: Duration = Duration::from_secs(60);

/// Time for init's last report to arrive after the engine's end: it is in our own threads by then.
const REPORT_GRACE: Duration = Duration::from_millis(300);

/// Time for init, once it has killed an application that did not stop, to say so.
const LAST_WORD: Duration = Duration::from_secs(2);

/// Time for those who follow the console to get the last of it.
const CONSOLE_GRACE: Duration = Duration::from_secs(1);

/// Lines of console told when a debug enclave ends badly.
const TOLD: usize = 20;

/// What the main thread waits for.
#[derive(Debug)]
pub(crate) enum Event {
    /// The hypervisor said something.
    Hypervisor(ToVmm, Option<OwnedFd>),
    /// The hypervisor is gone.
    LinkClosed,
    /// Init's heartbeat.
    Heartbeat,
    /// Init's report, sanitised.
    Report(Report),
    /// The engine ended.
    EngineExited(io::Result<ExitStatus>),
}

/// Why a guest could not be started.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("cannot make the enclave's signing key")]
    Key(#[source] enclos_attest::pki::PkiError),
    #[error("the hypervisor issued no certificate within {} s", CERTIFICATE_TIMEOUT.as_secs())]
    NoCertificate,
    #[error("the hypervisor's certificate does not fit the enclave's key")]
    Certificate(#[source] enclos_attest::pki::PkiError),
    #[error("the image's measurements are not those of a valid image")]
    Measurements(#[source] enclos_attest::PcrError),
    #[error("cannot unpack the image")]
    Payload(#[from] payload::PayloadError),
    #[error("cannot use the image's command line")]
    Cmdline(#[from] cmdline::CmdlineError),
    #[error("cannot start the {device} device")]
    Device {
        device: &'static str,
        source: crate::vhost_user::StartError,
    },
    #[error("cannot {what}")]
    System {
        what: &'static str,
        source: io::Error,
    },
    #[error("cannot confine enclos-vmm; the kernel must support seccomp filters")]
    Sandbox(#[source] sandbox::SandboxError),
    #[error("terminated by request")]
    Terminated,
    #[error("the hypervisor is gone")]
    Orphaned,
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::System { what, source }
}

/// Runs one enclave from its launch spec to its end. `link` leads to the hypervisor, `image` is the sealed image.
///
/// # Errors
/// When the link fails before there is an enclave to speak of.
pub fn run(link: UnixStream, image: File) -> Result<(), Box<dyn Error>> {
    harden()?;
    // Started by descriptor, the process would otherwise be called by its number.
    rustix::thread::set_name(c"enclos-vmm")?;
    let (spec, _) = wire::receive::<ToVmm>(&link, FRAME_TIMEOUT)?;
    let ToVmm::Launch(spec) = spec else {
        return Err("the first word was not a launch spec".into());
    };
    let (sender, events) = sync_channel(EVENTS);
    listen(&link, sender.clone())?;
    let mut vmm = Vmm {
        spec: *spec,
        link,
        sender,
        events,
        guest: Guest::default(),
        init: ToInit::default(),
        kill_at: None,
    };
    match vmm.start(&image) {
        Ok(mut running) => {
            drop(image);
            let ended = vmm.supervise(&mut running);
            if let Some(console) = &running.console {
                console.finish(CONSOLE_GRACE);
            }
            vmm.say(&FromVmm::Ended(ended));
            vmm.stop_devices(running);
        }
        Err(error) => {
            let reason = log::chain(&error);
            vmm.say(&FromVmm::Ended(Ended {
                reason,
                ..Ended::default()
            }));
        }
    }
    Ok(())
}

/// Nobody of the same user may look into this process, nothing it starts may gain privileges, and the
/// group of its directory may use the sockets it makes.
fn harden() -> io::Result<()> {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o007));
    rustix::thread::set_no_new_privs(true)?;
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Turns the hypervisor's messages into events.
fn listen(link: &UnixStream, events: SyncSender<Event>) -> io::Result<()> {
    let link = link.try_clone()?;
    let hear = move || -> Result<Event, FrameError> {
        wire::wait_readable(&link, None)?;
        let (message, descriptor) = wire::receive(&link, FRAME_TIMEOUT)?;
        Ok(Event::Hypervisor(message, descriptor))
    };
    let thread = thread::Builder::new().name("link".into());
    let listener = thread.spawn(move || {
        while let Ok(event) = hear() {
            if events.send(event).is_err() {
                return;
            }
        }
        let _ = events.send(Event::LinkClosed);
    });
    listener.map(drop)
}

struct Vmm {
    spec: LaunchSpec,
    link: UnixStream,
    sender: SyncSender<Event>,
    events: Receiver<Event>,
    guest: Guest,
    init: ToInit,
    /// When a guest that was asked to stop is killed.
    kill_at: Option<Instant>,
}

/// What the guest has said so far.
#[derive(Debug, Default)]
struct Guest {
    up: bool,
    exited: Option<(Option<i32>, Option<i32>, String)>,
}

/// Both devices, by name.
type Devices = [(&'static str, Handle); 2];

/// An enclave that runs.
struct Running {
    engine: Engine,
    signer: Signer,
    payload: Option<Payload>,
    console: Option<Console>,
    devices: Devices,
}

impl Vmm {
    /// Says something to the hypervisor. If it is gone, the link's own thread will tell.
    fn say(&self, message: &FromVmm) {
        let _ = wire::send(&self.link, message, None, FRAME_TIMEOUT);
    }

    fn start(&mut self, image: &File) -> Result<Running, StartError> {
        let key = LeafKey::generate().map_err(StartError::Key)?;
        self.say(&FromVmm::Key(key.spki_der().to_vec()));
        // The hypervisor signs meanwhile.
        let payload = Payload::unpack(image, self.spec.memory_mib)?;
        let machine = cmdline::Machine {
            tsc_khz: self.spec.tsc_khz,
            cpus: self.spec.cpus,
        };
        let cmdline = cmdline::join(&payload.cmdline, machine)?;
        let leaf = self.await_certificate()?;
        let pcrs = signer::boot_pcrs(&self.spec).map_err(StartError::Measurements)?;
        let nsm = Nsm::new(self.spec.id.clone(), &pcrs);
        let (signer, module) = Signer::new(key, leaf, nsm).map_err(StartError::Certificate)?;
        let private = PathBuf::from("engine");
        let made = DirBuilder::new().mode(0o700).create(&private);
        made.map_err(system("make a directory"))?;
        let devices = self.devices(module, &private)?;
        self.say(&FromVmm::Ready);
        let (console, engine) = self.launch(&payload, &cmdline, &private)?;
        sandbox::confine().map_err(StartError::Sandbox)?;
        self.say(&FromVmm::Launched);
        Ok(Running {
            engine,
            signer,
            payload: Some(payload),
            console,
            devices,
        })
    }

    fn await_certificate(&self) -> Result<IssuedLeaf, StartError> {
        let deadline = Instant::now() + CERTIFICATE_TIMEOUT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left) {
                Ok(Event::Hypervisor(ToVmm::Certificate(leaf), _)) => return Ok(leaf),
                Ok(Event::Hypervisor(ToVmm::Terminate { .. }, _)) => {
                    return Err(StartError::Terminated);
                }
                Ok(Event::LinkClosed) => return Err(StartError::Orphaned),
                Ok(_) => {}
                Err(_) => return Err(StartError::NoCertificate),
            }
        }
    }

    fn devices(&self, module: Module, private: &Path) -> Result<Devices, StartError> {
        let bind = |device, name| {
            FrontendSocket::bind(private.join(name))
                .map_err(|source| StartError::Device { device, source })
        };
        let vsock = vsock::Device::start(VsockSpec {
            guest_cid: self.spec.cid,
            uds_path: VSOCK_SOCKET.into(),
            frontend: bind("vsock", "vsock")?,
            services: services::all(
                &self.sender,
                &self.init,
                AppLog::on_stderr(self.spec.own_log),
            ),
        })
        .map_err(|source| StartError::Device {
            device: "vsock",
            source,
        })?;
        let nsm = nsm_device::Device::start(bind("NSM", "nsm")?, module).map_err(|source| {
            StartError::Device {
                device: "NSM",
                source,
            }
        })?;
        Ok([("vsock", vsock), ("NSM", nsm)])
    }

    fn launch(
        &self,
        payload: &Payload,
        cmdline: &Cmdline,
        private: &Path,
    ) -> Result<(Option<Console>, Engine), StartError> {
        let serial = if self.spec.debug {
            Some(engine::serial())
        } else {
            None
        };
        let serial = serial
            .transpose()
            .map_err(system("make the console's socket"))?;
        let machine = Machine {
            program: &self.spec.qemu,
            memory_mib: self.spec.memory_mib,
            cpus: self.spec.cpus,
            kernel: payload.kernel.as_fd(),
            initrd: payload.initrd.as_fd(),
            cmdline,
            vsock: &private.join("vsock"),
            nsm: &private.join("nsm"),
            console: serial.as_ref().map(|(_, theirs)| theirs.as_fd()),
        };
        let engine = Engine::start(&machine, &self.spec.pinned_to, &self.sender)
            .map_err(system("start QEMU"))?;
        let Some((ours, _theirs)) = serial else {
            return Ok((None, engine));
        };
        let console = Console::default();
        console
            .read_from(ours)
            .map_err(system("start the console's thread"))?;
        Ok((Some(console), engine))
    }

    /// Waits until the engine is gone, and says how the enclave ended.
    fn supervise(&mut self, running: &mut Running) -> Ended {
        let mut looked = Instant::now();
        loop {
            match self.events.recv_timeout(self.patience()) {
                Ok(Event::EngineExited(status)) => return self.last_word(running, &status),
                Ok(event) => self.handle(event, running),
                Err(_) => {}
            }
            if self.kill_at.is_some_and(|at| at <= Instant::now()) {
                self.kill_at = None;
                running.engine.kill();
            }
            if looked.elapsed() >= RENEWAL_TICK {
                looked = Instant::now();
                if running.signer.needs_renewal(now()) {
                    self.say(&FromVmm::Key(running.signer.public_key()));
                }
            }
        }
    }

    /// How long to wait for an event.
    fn patience(&self) -> Duration {
        let left = |at: Instant| at.saturating_duration_since(Instant::now());
        self.kill_at.map_or(RENEWAL_TICK, left).min(RENEWAL_TICK)
    }

    /// Asks the guest to stop within so many seconds; one that cannot be asked is killed.
    fn terminate(&mut self, grace_s: u32, running: &mut Running) {
        if grace_s == 0 || !self.init.stop(grace_s) {
            running.engine.kill();
            return;
        }
        let at = Instant::now() + Duration::from_secs(grace_s.into()) + LAST_WORD;
        self.kill_at = Some(self.kill_at.map_or(at, |earlier| earlier.min(at)));
    }

    fn handle(&mut self, event: Event, running: &mut Running) {
        match event {
            Event::Hypervisor(ToVmm::Terminate { grace_s }, _) => self.terminate(grace_s, running),
            Event::LinkClosed => running.engine.kill(),
            Event::Hypervisor(ToVmm::Certificate(leaf), _) => running.signer.renew(leaf),
            Event::Hypervisor(ToVmm::Console, client) => follow(running, client),
            Event::Hypervisor(ToVmm::Launch(_), _) | Event::EngineExited(_) => {}
            Event::Heartbeat => {
                if !std::mem::replace(&mut self.guest.up, true) {
                    // The guest runs from its own copy now.
                    if let Some(payload) = running.payload.take() {
                        payload.discard();
                    }
                    self.say(&FromVmm::Heartbeat);
                }
            }
            Event::Report(report) => self.note(report),
        }
    }

    fn note(&mut self, report: Report) {
        if let Report::Exited {
            status,
            signal,
            reason,
        } = &report
        {
            self.guest.exited = Some((*status, *signal, reason.clone()));
        }
        self.say(&FromVmm::Report(report));
    }

    fn last_word(&mut self, running: &Running, status: &io::Result<ExitStatus>) -> Ended {
        while self.guest.exited.is_none() {
            match self.events.recv_timeout(REPORT_GRACE) {
                Ok(Event::Report(report)) => self.note(report),
                Ok(Event::Heartbeat) => self.guest.up = true,
                Ok(_) => {}
                Err(_) => break,
            }
        }
        let ended = engine::describe(status);
        let tail = match &running.console {
            Some(console) => console.tail(TOLD),
            None => running.engine.errors(),
        };
        match (self.guest.exited.take(), self.guest.up) {
            (Some((status, signal, reason)), _) => Ended {
                reason,
                status,
                signal,
                tail,
            },
            (None, true) => {
                // What a kernel panic looks like from outside.
                let reason = format!("the VM stopped without a word from init: {ended}");
                Ended {
                    reason,
                    tail,
                    ..Ended::default()
                }
            }
            (None, false) => {
                let reason = format!("the VM stopped before init's heartbeat: {ended}");
                let tail = [running.engine.errors(), tail].join("\n").trim().to_owned();
                Ended {
                    reason,
                    tail,
                    ..Ended::default()
                }
            }
        }
    }
}

impl Vmm {
    /// An engine that hangs up ends its devices; anything else that ended one is worth a line.
    fn stop_devices(&self, running: Running) {
        for (name, handle) in running.devices {
            if let Err(error) = handle.stop() {
                log::warn(format_args!(
                    "{}: {name} device: {}",
                    self.spec.id,
                    log::chain(&error)
                ));
            }
        }
    }
}

fn follow(running: &Running, client: Option<OwnedFd>) {
    if let (Some(console), Some(client)) = (&running.console, client) {
        // A client beyond the limit sees its connection close.
        let _ = console.follow(UnixStream::from(client));
    }
}
