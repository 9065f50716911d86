//! The engine's process: started, watched, killed.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::engine::qemu::Machine;
use crate::sys::{self, Confinement};
use crate::vmm::Event;
use crate::vmm::console::last_lines;

/// Bytes of error output kept.
const KEPT: usize = 4096;

/// Lines of error output told.
const TOLD: usize = 8;

/// A running engine.
#[derive(Debug)]
pub(crate) struct Engine {
    process: OwnedFd,
    errors: Arc<Mutex<Vec<u8>>>,
}

impl Engine {
    /// Starts `machine` on the host CPUs `pinned_to`, or on any when there are none. Call from the main
    /// thread: the engine dies with the thread that starts it.
    pub(crate) fn start(
        machine: &Machine<'_>,
        pinned_to: &[u32],
        events: &SyncSender<Event>,
    ) -> io::Result<Self> {
        let mut command = machine.command();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let inherit = machine.descriptors();
        let confinement = Confinement {
            inherit: &inherit,
            ..Confinement::default()
        };
        let mut child = pinned(pinned_to, || sys::spawn(&mut command, &confinement))?;
        let process = i32::try_from(child.id())
            .ok()
            .and_then(Pid::from_raw)
            .ok_or_else(|| io::Error::other("the engine has no process id"))
            .and_then(|pid| Ok(pidfd_open(pid, PidfdFlags::empty())?));
        let errors = Arc::new(Mutex::new(Vec::new()));
        watch(&mut child, &errors, events.clone()).and_then(|waiter| {
            let process = process?;
            waiter(child)?;
            Ok(Self { process, errors })
        })
    }

    /// Ends the engine at once.
    pub(crate) fn kill(&self) {
        // ESRCH: it is gone already, which is what was wanted.
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
    }

    /// The last lines of its error output.
    pub(crate) fn errors(&self) -> String {
        last_lines(
            &self.errors.lock().unwrap_or_else(PoisonError::into_inner),
            TOLD,
        )
    }
}

type Waiter = Box<dyn FnOnce(Child) -> io::Result<()>>;

/// Starts collecting error output; the result starts waiting for the child.
fn watch(
    child: &mut Child,
    errors: &Arc<Mutex<Vec<u8>>>,
    events: SyncSender<Event>,
) -> io::Result<Waiter> {
    let stderr = child.stderr.take();
    let kept = Arc::clone(errors);
    let collector = thread::Builder::new()
        .name("engine-errors".into())
        .spawn(move || stderr.map(|stderr| collect(stderr, &kept)))?;
    Ok(Box::new(move |mut child: Child| {
        let thread = thread::Builder::new().name("engine-wait".into());
        let waiter = thread.spawn(move || {
            let status = child.wait();
            // What it said last comes before the news of its end.
            let _ = collector.join();
            let _ = events.send(Event::EngineExited(status));
        });
        waiter.map(drop)
    }))
}

/// Keeps the last bytes.
fn collect(mut source: impl Read, kept: &Mutex<Vec<u8>>) {
    let mut buffer = [0; 1024];
    while let Ok(count @ 1..) = source.read(&mut buffer) {
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend_from_slice(&buffer[..count]);
        let excess = kept.len().saturating_sub(KEPT);
        kept.drain(..excess);
    }
}

/// Runs `start` with this thread pinned, and unpins it again: a child inherits the set.
fn pinned<T>(cpus: &[u32], start: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    if cpus.is_empty() {
        return start();
    }
    let before = sched_getaffinity(None)?;
    let mut set = CpuSet::new();
    let ids = cpus.iter().filter_map(|cpu| usize::try_from(*cpu).ok());
    ids.filter(|cpu| *cpu < CpuSet::MAX_CPU)
        .for_each(|cpu| set.set(cpu));
    sched_setaffinity(None, &set)?;
    let started = start();
    sched_setaffinity(None, &before)?;
    started
}

/// A socket pair for the serial port: our end, and the engine's.
pub(crate) fn serial() -> io::Result<(UnixStream, UnixStream)> {
    UnixStream::pair()
}

/// How the engine ended, in words.
pub(crate) fn describe(status: &io::Result<ExitStatus>) -> String {
    use std::os::unix::process::ExitStatusExt;
    match status {
        Err(error) => format!("its end could not be seen: {error}"),
        Ok(status) => match (status.code(), status.signal()) {
            (Some(0), _) => "the guest's kernel stopped the machine".to_owned(),
            (Some(code), _) => format!("QEMU exited with status {code}"),
            (None, Some(signal)) => format!("QEMU was killed by signal {signal}"),
            (None, None) => "QEMU ended".to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_error_output_is_kept() {
        let kept = Mutex::new(Vec::new());
        let text = format!("{}\nlast line\n", "x".repeat(3 * KEPT));
        collect(text.as_bytes(), &kept);
        let kept = kept.into_inner().unwrap();
        assert_eq!(kept.len(), KEPT);
        assert!(last_lines(&kept, 1).ends_with("last line"));
    }

    #[test]
    fn a_child_started_while_pinned_stays_pinned_and_we_do_not() {
        let before = sched_getaffinity(None).unwrap();
        let first = crate::host::cpus()[0];
        let inside = pinned(&[first], || Ok(sched_getaffinity(None)?)).unwrap();
        assert_eq!(inside.count(), 1);
        assert_eq!(sched_getaffinity(None).unwrap(), before);
    }
}
