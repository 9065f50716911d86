//! PID 1.
//!
//! ```text
//!  /dev, console ─ mounts ─ modules, NSM ─ loopback ─ entropy ─ heartbeat ─ life cycle, clock
//!       ─ configuration ─ agent, until ready ─ application ─ reap until it ends ─ report ─ stop the machine
//! ```
//!
//! Whatever fails, the host hears of it: the reason goes to the console and, as soon as there is one, over the
//! life-cycle connection as [`Report::Exited`]. The machine is then stopped by `reboot`, never by a kernel panic.
//!
//! The application's end ends the enclave. The agent's end ends it too: without it nothing of the application
//! can be reached, and a new agent would have another certificate than the one the application trusts.

use std::io::{self, PipeWriter};
use std::net::Ipv4Addr;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use enclos_api::config::{AGENT_PATH, ENCLAVE_CONFIG_PATH, EnclaveConfig, MODULES_PATH};
use enclos_api::frame::FrameError;
use enclos_api::guest::Report;
use enclos_api::signal;
use rustix::io::Errno;
use rustix::process::{Pid, WaitStatus};
use rustix::system::RebootCommand;

use crate::config::{self, ConfigError};
use crate::kms_names::{IMDS_ADDRESS, SERVICE_ADDRESS};
use crate::{log, sys};
use events::{Event, Events};
use host::Lifecycle;

mod entropy;
pub mod env;
mod events;
mod host;
mod launch;
mod modules;
mod mounts;
mod names;
mod network;
pub mod user;

/// Where init and agent leave what the application may read.
pub const RUN_DIR: &str = "/run/enclos";

/// Addresses on the loopback interface that the agent answers on.
const ADDRESSES: [Ipv4Addr; 2] = [IMDS_ADDRESS, SERVICE_ADDRESS];

/// How long the agent may take to listen on everything; it takes well under a second on an idle host.
const AGENT_TIMEOUT: Duration = Duration::from_secs(60);

/// How long the last of the application's output may take to reach the host: processes that it leaves behind hold its output
/// open.
const LOG_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the application may take to stop before it is killed, when nobody says how long.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Line by which the agent says that it listens.
pub const AGENT_READY: &str = "ready";
/// Start of the line by which the agent says that the application accepts connections; the port follows.
pub const AGENT_APP_READY: &str = "app-ready ";
/// Line by which the agent says that all output of the application is in the host's log.
pub const AGENT_LOGGED: &str = "logged";
/// Start of the line by which the agent says why it gives up; the reason follows.
pub const AGENT_FAILED: &str = "failed ";

/// Why init cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// A mount failed.
    #[error("cannot mount {}", target.display())]
    Mount {
        /// Where.
        target: PathBuf,
        /// Cause.
        #[source]
        source: Errno,
    },
    /// A directory or link could not be made.
    #[error("cannot make {}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Cause.
        #[source]
        source: Errno,
    },
    /// Neither console nor `/dev/null`.
    #[error("cannot open /dev/console or /dev/null")]
    Console {
        /// Cause.
        #[source]
        source: Errno,
    },
    /// A module's file cannot be read.
    #[error("cannot read {}", path.display())]
    ModuleFile {
        /// Which.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// `modules.order` names something else than a file beside it.
    #[error("{} names {name}, expected the name of a file beside it", path.display())]
    ModuleName {
        /// The list.
        path: PathBuf,
        /// What it names.
        name: String,
    },
    /// The kernel refused a module.
    #[error("the kernel refuses module {}; is it of another kernel?", path.display())]
    Module {
        /// Which.
        path: PathBuf,
        /// Cause.
        #[source]
        source: Errno,
    },
    /// The loopback interface could not be set up.
    #[error("cannot set up the loopback interface")]
    Loopback {
        /// Cause.
        #[source]
        source: Errno,
    },
    /// The host's heartbeat service cannot be reached.
    #[error("no heartbeat with the host (vsock CID 3, port 9000)")]
    Heartbeat {
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The host answered the heartbeat with something else.
    #[error("the host answered the heartbeat with {found:#04x}, expected 0xb7")]
    HeartbeatEcho {
        /// What it answered.
        found: u8,
    },
    /// The life-cycle service did not say welcome.
    #[error("the host's life-cycle service (vsock CID 3, port 9001) did not say welcome")]
    Welcome {
        /// Cause.
        #[source]
        source: FrameError,
    },
    /// The host speaks another version.
    #[error(
        "the host speaks protocol version {found}, the image {}; build the image again or update the host",
        enclos_api::PROTOCOL_VERSION
    )]
    Protocol {
        /// The host's version.
        found: u32,
    },
    /// The clock could not be set.
    #[error("cannot set the clock to {unix_time_ns} ns after 1970")]
    Clock {
        /// What the host said.
        unix_time_ns: u64,
        /// Cause.
        #[source]
        source: Errno,
    },
    /// The measured configuration is unusable.
    #[error("the enclave's configuration is unusable")]
    Config(#[from] ConfigError),
    /// Signals or children could not be waited for.
    #[error("cannot wait for events")]
    Events(#[source] io::Error),
    /// The agent's process could not be made.
    #[error("cannot start {AGENT_PATH}")]
    Agent(#[source] io::Error),
}

/// How the enclave ended.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Ending {
    status: Option<i32>,
    signal: Option<i32>,
    reason: String,
}

impl Ending {
    fn of(reason: String) -> Self {
        Self {
            status: None,
            signal: None,
            reason,
        }
    }

    fn of_application(status: WaitStatus) -> Self {
        let (exit, signal) = (status.exit_status(), status.terminating_signal());
        let reason = format!("the application {}", how(status));
        Self {
            status: exit,
            signal,
            reason,
        }
    }

    fn into_report(self) -> Report {
        Report::Exited {
            status: self.status,
            signal: self.signal,
            reason: self.reason,
        }
    }
}

/// "exited with status 3", "was ended by signal 9 (SIGKILL)".
fn how(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(status), _) => format!("exited with status {status}"),
        (_, Some(number)) => {
            let name = signal::name(number).map_or_else(String::new, |name| format!(" ({name})"));
            format!("was ended by signal {number}{name}")
        }
        _ => "ended".to_owned(),
    }
}

/// Runs the enclave from the kernel's hand-over to the machine's stop.
pub fn run() -> ! {
    let mut lifecycle = Lifecycle::default();
    let boot = AssertUnwindSafe(|| boot(&mut lifecycle));
    let ending = match std::panic::catch_unwind(boot) {
        Ok(Ok(ending)) => ending,
        Ok(Err(error)) => Ending::of(format!(
            "the enclave could not start: {}",
            log::chain(&error)
        )),
        Err(_) => Ending::of("init panicked; the console of a debug enclave says where".to_owned()),
    };
    log::line("enclos-init", format_args!("{}", ending.reason));
    lifecycle.report(&ending.into_report());
    lifecycle.finish();
    stop_machine()
}

/// Restarts the machine, which ends an enclave: an engine never boots it a second time.
fn stop_machine() -> ! {
    for command in [
        RebootCommand::Restart,
        RebootCommand::PowerOff,
        RebootCommand::Halt,
    ] {
        let _ = rustix::system::reboot(command);
    }
    loop {
        std::thread::sleep(STOP_TIMEOUT);
    }
}

fn boot(lifecycle: &mut Lifecycle) -> Result<Ending, InitError> {
    mounts::mount_dev()?;
    mounts::open_console()?;
    let mut events = Events::new().map_err(InitError::Events)?;
    mounts::mount_base()?;
    modules::load_all(Path::new(MODULES_PATH))?;
    network::set_up(&ADDRESSES)?;
    settings();
    if let Err(warning) = entropy::seed() {
        log::line("enclos-init", format_args!("WARNING: {warning}"));
    }
    host::heartbeat()?;
    *lifecycle = Lifecycle::open()?;
    events.listen_to_host(lifecycle.words());
    let config = config::read(Path::new(ENCLAVE_CONFIG_PATH))?;
    let (output, application) = output_of(&config).map_err(InitError::Agent)?;
    let agent = start_agent(&mut events, output)?;
    if let Some(ending) = wait_for_agent(&mut events, agent)? {
        return Ok(ending);
    }
    run_application(&config, application, &mut events, agent, lifecycle)
}

/// What the agent reads as its standard input, and where the application writes, unless that is the console: the two ends of
/// a pipe if the application's output goes to the host.
fn output_of(config: &EnclaveConfig) -> io::Result<(Stdio, Option<PipeWriter>)> {
    if !config.process.log_to_host {
        return Ok((Stdio::null(), None));
    }
    let (reader, writer) = io::pipe()?;
    Ok((reader.into(), Some(writer)))
}

/// Waits until the agent has handed on what the application printed at last.
fn wait_for_log(events: &mut Events, agent: Pid) -> Result<(), InitError> {
    let deadline = Some(Instant::now() + LOG_TIMEOUT);
    loop {
        match events.next(deadline).map_err(InitError::Events)? {
            Event::Agent(line) if line == AGENT_LOGGED => return Ok(()),
            Event::Ended(pid, _) if pid == agent => return Ok(()),
            Event::Deadline => return Ok(()),
            _ => {}
        }
    }
}

/// As OCI runtimes have it, every user may listen on ports below 1024.
fn settings() {
    let path = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
    if let Err(error) = std::fs::write(path, "0") {
        log::line("enclos-init", format_args!("cannot write {path}: {error}"));
    }
}

/// Starts the agent; its standard output is the pipe on which it speaks to init, its standard input the application's output.
fn start_agent(events: &mut Events, output: Stdio) -> Result<Pid, InitError> {
    std::fs::create_dir_all(RUN_DIR).map_err(InitError::Agent)?;
    let (reader, writer) = io::pipe().map_err(InitError::Agent)?;
    let child = Command::new(AGENT_PATH)
        .env_clear()
        .stdin(output)
        .stdout(writer)
        .spawn()
        .map_err(InitError::Agent)?;
    events.listen_to(reader);
    // When memory runs out the application goes first: its end is reported, the agent's would hide it.
    let adjust = format!("/proc/{}/oom_score_adj", child.id());
    drop(std::fs::write(adjust, "-1000"));
    Ok(Pid::from_child(&child))
}

/// Waits until the agent listens; an [`Ending`] means that it never will.
fn wait_for_agent(events: &mut Events, agent: Pid) -> Result<Option<Ending>, InitError> {
    let deadline = Some(Instant::now() + AGENT_TIMEOUT);
    let mut said = None;
    loop {
        match events.next(deadline).map_err(InitError::Events)? {
            Event::Agent(line) if line == AGENT_READY => return Ok(None),
            Event::Agent(line) => said = line.strip_prefix(AGENT_FAILED).map(str::to_owned),
            Event::Ended(pid, status) if pid == agent => {
                return Ok(Some(agent_ending(status, said)));
            }
            Event::Ended(..) => {}
            Event::Stop(_) => {
                return Ok(Some(Ending::of(
                    "stopped before the application".to_owned(),
                )));
            }
            Event::Deadline => {
                let seconds = AGENT_TIMEOUT.as_secs();
                return Ok(Some(Ending::of(format!(
                    "the agent was not ready in {seconds} s"
                ))));
            }
        }
    }
}

fn agent_ending(status: WaitStatus, said: Option<String>) -> Ending {
    let because = said.map(|said| format!(": {said}")).unwrap_or_default();
    Ending::of(format!("the agent {}{because}", how(status)))
}

fn run_application(
    config: &EnclaveConfig,
    output: Option<PipeWriter>,
    events: &mut Events,
    agent: Pid,
    lifecycle: &mut Lifecycle,
) -> Result<Ending, InitError> {
    let mut logging = output.is_some();
    let app = match launch::start(config, output) {
        Ok(app) => app,
        Err(failed) => {
            let (status, signal) = (Some(failed.status), None);
            return Ok(Ending {
                status,
                signal,
                reason: failed.reason,
            });
        }
    };
    lifecycle.report(&Report::AppStarted);
    let stop_signal = signal::number(&config.process.stop_signal).map_or(libc::SIGTERM, i32::from);
    let mut kill_at = None;
    let mut said = None;
    loop {
        match events.next(kill_at).map_err(InitError::Events)? {
            Event::Ended(pid, status) if pid == app => {
                if logging {
                    wait_for_log(events, agent)?;
                }
                return Ok(Ending::of_application(status));
            }
            Event::Ended(pid, status) if pid == agent => return Ok(agent_ending(status, said)),
            Event::Ended(..) => {}
            Event::Stop(grace) => {
                send(app, stop_signal);
                kill_at = kill_at.or_else(|| Instant::now().checked_add(grace));
            }
            Event::Deadline => {
                send(app, libc::SIGKILL);
                kill_at = None;
            }
            // An application may close its output and go on.
            Event::Agent(line) if line == AGENT_LOGGED => logging = false,
            Event::Agent(line) => match app_ready(&line) {
                Some(port) => lifecycle.report(&Report::AppReady { port }),
                None => said = line.strip_prefix(AGENT_FAILED).map(str::to_owned),
            },
        }
    }
}

fn app_ready(line: &str) -> Option<u16> {
    line.strip_prefix(AGENT_APP_READY)?.parse().ok()
}

fn send(app: Pid, signal: i32) {
    if let Err(error) = sys::kill(app, signal) {
        log::line(
            "enclos-init",
            format_args!("cannot signal the application: {error}"),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agents_words_are_understood() {
        assert_eq!(app_ready("app-ready 5000"), Some(5000));
        assert_eq!(app_ready("app-ready 70000"), None);
        assert_eq!(app_ready("ready"), None);
    }

    #[test]
    fn an_ending_without_the_application_has_no_status() {
        let report = Ending::of("the agent was not ready in 60 s".into()).into_report();
        let Report::Exited { status, signal, .. } = report else {
            panic!("{report:?}")
        };
        assert_eq!((status, signal), (None, None));
    }
}
