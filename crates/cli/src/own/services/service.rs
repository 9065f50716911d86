//! One background process with its pid file and log.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::dirs;
use crate::failure::{Failure, Outcome};
use crate::term;

/// How long a daemon may take until its socket answers. The first start makes keys and directories.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// How long a daemon may take to end after SIGTERM; the hypervisor stops its enclaves first.
const STOPPED_WITHIN: Duration = Duration::from_secs(30);

const POLL: Duration = Duration::from_millis(25);

/// The kernel cuts process names to this many bytes.
const COMM_LEN: usize = 15;

/// A daemon, running or not.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) name: &'static str,
    pub(super) program: PathBuf,
    pub(super) args: Vec<OsString>,
    pub(super) pid_file: PathBuf,
    pub(super) log: PathBuf,
}

/// What a daemon does.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It answers; the pid is known when `up` started it.
    Up(Option<u32>),
    /// The process exists but does not answer.
    Silent(u32),
    Down,
}

impl State {
    pub(super) fn is_up(&self) -> bool {
        matches!(self, Self::Up(_))
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Up(Some(pid)) => write!(f, "up, pid {pid}"),
            Self::Up(None) => f.write_str("up, not started by `enclos up`"),
            Self::Silent(pid) => write!(f, "pid {pid} runs but does not answer"),
            Self::Down => f.write_str("down"),
        }
    }
}

impl Service {
    pub(super) fn arg(&mut self, arg: impl AsRef<OsStr>) -> &mut Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    pub(super) fn state(&self, answers: &dyn Fn() -> bool) -> State {
        match self.pid() {
            None => State::Down,
            Some(pid) if answers() => State::Up(Some(pid)),
            Some(pid) => State::Silent(pid),
        }
    }

    /// Starts the daemon unless it answers already, and waits until it does.
    pub(super) fn start(&self, answers: &dyn Fn() -> bool) -> Outcome {
        if answers() {
            term::note(format_args!("{} is up already", self.name));
            return Ok(());
        }
        let child = match self.pid() {
            Some(_) => None,
            None => Some(self.spawn()?),
        };
        self.wait_ready(child, answers)?;
        term::note(format_args!(
            "{} is up, log {}",
            self.name,
            self.log.display()
        ));
        Ok(())
    }

    fn spawn(&self) -> Outcome<Child> {
        let log = File::options().create(true).append(true).open(&self.log);
        let log = log.map_err(|error| Failure::file(None, "open", &self.log, error))?;
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        // Its own process group: Ctrl-C at this terminal is not meant for it.
        let mut child = command
            .process_group(0)
            .spawn()
            .map_err(|error| self.cannot_start(error))?;
        let written = fs::write(&self.pid_file, format!("{}\n", child.id()));
        if let Err(error) = written {
            // Without the file nobody would find it to stop it.
            let _ = child.kill();
            let _ = child.wait();
            return Err(Failure::file(None, "write", &self.pid_file, error));
        }
        Ok(child)
    }

    fn cannot_start(&self, error: std::io::Error) -> Failure {
        let found = dirs::in_path(&self.program).is_some();
        let failure = Failure::file(None, "start", &self.program, error);
        if found {
            return failure;
        }
        failure.hint("put Enclos's programs into one directory, or that directory into PATH")
    }

    fn wait_ready(&self, mut child: Option<Child>, answers: &dyn Fn() -> bool) -> Outcome {
        let deadline = Instant::now() + READY_WITHIN;
        while !answers() {
            if let Some(status) = child.as_mut().map(Child::try_wait).transpose()?.flatten() {
                let _ = fs::remove_file(&self.pid_file);
                return Err(self.failed(format_args!(
                    "enclos-{} ended at once ({status})",
                    self.name
                )));
            }
            if Instant::now() >= deadline {
                let seconds = READY_WITHIN.as_secs();
                return Err(self.failed(format_args!(
                    "enclos-{} does not answer after {seconds} s",
                    self.name
                )));
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    fn failed(&self, text: fmt::Arguments<'_>) -> Failure {
        let said = log_tail(&self.log);
        Failure::from(anyhow::anyhow!("it said: {said}"))
            .context(text)
            .hint(format_args!("the whole log is {}", self.log.display()))
    }

    /// Ends the daemon; does nothing when it does not run.
    pub(super) fn stop(&self) -> Outcome {
        let Some(pid) = self.pid() else {
            let _ = fs::remove_file(&self.pid_file);
            return Ok(());
        };
        self.signal(pid, Signal::TERM)?;
        if !self.gone_within(STOPPED_WITHIN) {
            term::note(format_args!(
                "{} did not end after {} s: killed",
                self.name,
                STOPPED_WITHIN.as_secs()
            ));
            self.signal(pid, Signal::KILL)?;
            if !self.gone_within(STOPPED_WITHIN) {
                return Err(Failure::text(format_args!(
                    "{} (pid {pid}) cannot be stopped",
                    self.name
                )));
            }
        }
        let _ = fs::remove_file(&self.pid_file);
        term::note(format_args!("{} is down", self.name));
        Ok(())
    }

    fn signal(&self, pid: u32, signal: Signal) -> Outcome {
        let Some(target) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
            return Ok(());
        };
        match kill_process(target, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(Failure::from(std::io::Error::from(error))
                .context(format_args!("cannot stop {} (pid {pid})", self.name))
                .hint("run this command as the user that started it, or as root")),
        }
    }

    fn gone_within(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while self.pid().is_some() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(POLL);
        }
        true
    }

    /// The pid in the pid file, if a process of that name has it.
    pub(super) fn pid(&self) -> Option<u32> {
        let pid = fs::read_to_string(&self.pid_file)
            .ok()?
            .trim()
            .parse()
            .ok()?;
        let name = self.program.file_name()?.to_string_lossy().into_owned();
        runs_as(pid, &name).then_some(pid)
    }
}

/// Whether process `pid` lives (a zombie does not) and is called `name`.
fn runs_as(pid: u32, name: &str) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    let Some((head, tail)) = stat.rsplit_once(") ") else {
        return false;
    };
    let comm = head.split_once('(').map_or("", |(_, comm)| comm);
    let cut = name.get(..COMM_LEN).unwrap_or(name);
    comm == cut && !tail.starts_with(['Z', 'X'])
}

/// The last lines of a log, on one line each.
fn log_tail(path: &Path) -> String {
    const LINES: usize = 3;
    const BYTES: u64 = 4096;
    let tail = File::open(path).and_then(|mut file| {
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(BYTES)))?;
        let mut bytes = Vec::new();
        file.take(BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    });
    let tail = tail.unwrap_or_default();
    let lines: Vec<_> = tail.trim().lines().rev().take(LINES).collect();
    let said: Vec<_> = lines.into_iter().rev().collect();
    if said.is_empty() {
        "nothing".to_owned()
    } else {
        said.join("\n    ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(dir: &Path, program: &str, args: &[&str]) -> Service {
        Service {
            name: "probe",
            program: program.into(),
            args: args.iter().map(Into::into).collect(),
            pid_file: dir.join("probe.pid"),
            log: dir.join("probe.log"),
        }
    }

    #[test]
    fn a_service_starts_once_answers_and_stops() {
        let dir = tempfile::tempdir().unwrap();
        let service = service(dir.path(), "sleep", &["60"]);
        assert_eq!(service.state(&|| true), State::Down);
        let running = || service.pid().is_some();
        service.start(&running).unwrap();
        let pid = service.pid().unwrap();
        assert_eq!(service.state(&|| true), State::Up(Some(pid)));
        assert_eq!(service.state(&|| false), State::Silent(pid));
        service.start(&running).unwrap();
        assert_eq!(service.pid(), Some(pid));
        service.stop().unwrap();
        assert_eq!((service.pid(), service.pid_file.exists()), (None, false));
        service.stop().unwrap();
    }

    #[test]
    fn one_whose_pid_cannot_be_kept_does_not_run() {
        let dir = tempfile::tempdir().unwrap();
        let script = format!("echo $$ > {}/told; exec sleep 60", dir.path().display());
        let mut service = service(dir.path(), "sh", &["-c", &script]);
        service.pid_file = dir.path().join("nowhere/probe.pid");
        let text = service.start(&|| false).unwrap_err().render("enclos");
        assert!(
            text.contains("cannot write") && text.contains("nowhere/probe.pid"),
            "{text}"
        );
        // Killed before it told its number, or after.
        let told = fs::read_to_string(dir.path().join("told")).unwrap_or_default();
        if let Ok(pid) = told.trim().parse() {
            assert!(!runs_as(pid, "sh") && !runs_as(pid, "sleep"));
        }
    }

    #[test]
    fn one_that_ends_at_once_is_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let service = service(
            dir.path(),
            "sh",
            &["-c", "echo first; echo no such key >&2; exit 7"],
        );
        let text = service.start(&|| false).unwrap_err().render("enclos");
        assert!(
            text.contains("ended at once (exit status: 7)") && text.contains("no such key"),
            "{text}"
        );
        assert!(!service.pid_file.exists());
    }

    #[test]
    fn a_missing_program_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let text = service(dir.path(), "no-such-daemon", &[])
            .start(&|| false)
            .unwrap_err()
            .render("enclos");
        assert!(
            text.contains("cannot start no-such-daemon") && text.contains("PATH"),
            "{text}"
        );
    }

    #[test]
    fn a_recycled_pid_is_not_signalled() {
        let dir = tempfile::tempdir().unwrap();
        let service = service(dir.path(), "sleep", &[]);
        fs::write(&service.pid_file, format!("{}\n", std::process::id())).unwrap();
        assert_eq!(service.pid(), None);
        service.stop().unwrap();
        fs::write(&service.pid_file, "not a number").unwrap();
        assert_eq!(service.state(&|| true), State::Down);
    }
}
