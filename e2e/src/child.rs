//! Processes that end when their owner does.
//!
//! Each child leads a process group of its own, so that a Ctrl-C in the terminal reaches only this program, which then ends its
//! children in order. [`end_all_on_signal`] does that for the signals that would skip every destructor.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child as Process, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::wait;

/// How long a process may take to end by itself when asked to.
const GRACE: Duration = Duration::from_secs(15);

/// Folders that go when everything has ended.
static FOLDERS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Whether a signal is how this program is meant to end.
static SIGNAL_IS_EXPECTED: AtomicBool = AtomicBool::new(false);

/// Ids of the children that run, oldest first.
static RUNNING: Mutex<Vec<u32>> = Mutex::new(Vec::new());

/// A process that is ended when dropped.
#[derive(Debug)]
pub struct Child {
    name: String,
    process: Process,
    log: PathBuf,
}

impl Child {
    /// Starts `command` with both outputs in `log`.
    ///
    /// # Errors
    /// The log cannot be created or the program not started.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let file = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        command.process_group(0);
        let process = command
            .spawn()
            .with_context(|| format!("cannot start {name}: {command:?}"))?;
        running().push(process.id());
        Ok(Self {
            name: name.to_owned(),
            process,
            log: log.to_owned(),
        })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// What it has printed so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until `ready` says so, or explains with the child's own words why not.
    ///
    /// # Errors
    /// The child ended, or `limit` has passed.
    pub fn until(&mut self, limit: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
        let (name, process) = (&self.name, &mut self.process);
        let outcome = wait::until(&format!("{name} is ready"), limit, || {
            if let Some(status) = process.try_wait()? {
                return Ok(Some(Err(status)));
            }
            Ok(ready().then_some(Ok(())))
        });
        match outcome {
            Ok(Ok(())) => Ok(()),
            Ok(Err(status)) => bail!("{name} ended ({status}) and said:\n{}", self.log()),
            Err(error) => Err(error.context(format!("{name} said:\n{}", self.log()))),
        }
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// The process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        send(self.id(), signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// `limit` has passed.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let process = &mut self.process;
        wait::until(&format!("{} ends", self.name), limit, || {
            Ok(process.try_wait()?)
        })
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let id = self.id();
        // Errors mean that it is gone, which is what is wanted.
        let _ = self.signal(Signal::TERM);
        if self.wait(GRACE).is_err() {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
        running().retain(|other| *other != id);
    }
}

/// Runs a command to its end and returns what it printed.
///
/// # Errors
/// It cannot be started or does not end within `limit`.
pub fn output(command: &mut Command, limit: Duration) -> Result<Output> {
    let text = format!("{command:?}");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let mut process = command
        .spawn()
        .with_context(|| format!("cannot run {text}"))?;
    let (stdout, stderr) = (
        collect(process.stdout.take()),
        collect(process.stderr.take()),
    );
    let status = wait::until(&text, limit, || Ok(process.try_wait()?));
    if status.is_err() {
        let _ = process.kill();
        let _ = process.wait();
    }
    let read = |thread: std::thread::JoinHandle<Vec<u8>>| thread.join().unwrap_or_default();
    Ok(Output {
        status: status?,
        stdout: read(stdout),
        stderr: read(stderr),
    })
}

/// Both pipes are drained at once: a child that fills one while the other is waited for would never end.
fn collect(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // A pipe that breaks ends the output there.
        let _ = pipe.map(|mut pipe| pipe.read_to_end(&mut bytes));
        bytes
    })
}

/// Runs a command that must succeed and returns its standard output.
///
/// # Errors
/// It fails; the error carries what it said.
pub fn read(command: &mut Command, limit: Duration) -> Result<String> {
    let output = output(command, limit)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{command:?} failed ({}):\n{}",
            output.status,
            said.trim_end()
        );
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// On SIGINT, SIGTERM and SIGHUP: ends every child, newest first, and this process.
///
/// # Errors
/// A handler is installed already.
pub fn end_all_on_signal() -> Result<()> {
    ctrlc::set_handler(|| {
        end_all();
        let expected = SIGNAL_IS_EXPECTED.load(Ordering::Relaxed);
        #[expect(
            clippy::exit,
            reason = "a signal handler's thread has nowhere to return to"
        )]
        std::process::exit(if expected { 0 } else { 130 });
    })?;
    Ok(())
}

/// Removes `folder` too when a signal ends this program.
pub(crate) fn remove_on_signal(folder: &Path) {
    let mut folders = FOLDERS.lock().unwrap_or_else(PoisonError::into_inner);
    folders.push(folder.to_owned());
}

/// Sleeps until a signal ends this program, as a success.
pub fn until_signal() -> ! {
    SIGNAL_IS_EXPECTED.store(true, Ordering::Relaxed);
    loop {
        std::thread::park();
    }
}

fn end_all() {
    let ids: Vec<u32> = running().iter().rev().copied().collect();
    for id in ids {
        let _ = send(id, Signal::TERM);
        let gone = wait::until("end", GRACE, || Ok(has_ended(id).then_some(())));
        if gone.is_err() {
            let _ = send(id, Signal::KILL);
        }
    }
    let folders = FOLDERS.lock().unwrap_or_else(PoisonError::into_inner);
    for folder in folders.iter() {
        // One that is gone already was removed by its owner.
        let _ = fs::remove_dir_all(folder);
    }
}

/// Whether a process is gone, or only waits for its parent to look at its status.
#[must_use]
pub fn has_ended(id: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    let state = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next());
    matches!(state, None | Some('Z' | 'X'))
}

/// Sends a signal to a process by its id.
///
/// # Errors
/// There is no such process, or it may not be signalled.
pub fn send(id: u32, signal: Signal) -> Result<()> {
    let pid = i32::try_from(id)
        .ok()
        .and_then(Pid::from_raw)
        .context("not a process id")?;
    Ok(kill_process(pid, signal)?)
}

fn running() -> std::sync::MutexGuard<'static, Vec<u32>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_child_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("sleep");
        command.arg("600");
        let child = Child::start("sleep", command, &dir.path().join("log")).unwrap();
        let id = child.id();
        assert!(!has_ended(id));
        drop(child);
        assert!(has_ended(id));
    }

    #[test]
    fn a_command_that_does_not_end_is_ended() {
        let mut command = Command::new("sleep");
        let error = output(command.arg("600"), Duration::from_millis(100)).unwrap_err();
        assert!(error.to_string().contains("sleep"));
    }

    #[test]
    fn both_outputs_are_drained() {
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "head -c 300000 /dev/zero >&2; head -c 300000 /dev/zero",
        ]);
        let output = output(&mut command, Duration::from_secs(20)).unwrap();
        assert_eq!(
            (output.stdout.len(), output.stderr.len()),
            (300_000, 300_000)
        );
    }
}
