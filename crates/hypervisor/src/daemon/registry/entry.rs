//! One enclave in the registry: what it holds, what its vmm said, and how it ended.

use std::collections::BTreeSet;
use std::time::Instant;

use enclos_api::control::{Enclave, Event, Exit, State};
use enclos_api::guest::Report;
use rustix::process::{Pid, Signal};

use super::Link;
use crate::link::{Ended, FromVmm};

/// An enclave, and what is held for it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) view: Enclave,
    pub(super) arrival: Instant,
    pub(super) user_index: u32,
    pub(super) pinned: BTreeSet<u32>,
    /// The vsock directory is ready: watchers know this enclave.
    pub(super) ready: bool,
    pub(super) link: Option<Link>,
    pub(super) process: Process,
    /// Why we stop it, when we do.
    pub(super) cause: Option<String>,
    /// The vmm's last word.
    pub(super) ended: Option<Ended>,
}

/// Its vmm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Process {
    NotStarted,
    Running(Pid),
    /// Waited for, with the signal that killed it, if one did.
    Reaped(Option<i32>),
}

/// What is remembered of an enclave that is gone.
#[derive(Debug, Clone)]
pub(crate) struct Past {
    pub(crate) exit: Exit,
    /// Its last output.
    pub(crate) tail: String,
}

impl Default for Past {
    fn default() -> Self {
        let exit = Exit {
            id: String::new(),
            name: String::new(),
            status: None,
            signal: None,
            reason: "it ended long ago".to_owned(),
        };
        Self {
            exit,
            tail: String::new(),
        }
    }
}

impl Entry {
    /// Takes in what the vmm says; what watchers hear of it.
    pub(super) fn heard(&mut self, message: FromVmm) -> Option<Event> {
        let boot = &mut self.view.boot;
        let milestone = match message {
            FromVmm::Ready => {
                let first = !std::mem::replace(&mut self.ready, true);
                return first.then(|| Event::Added(Box::new(self.view.clone())));
            }
            FromVmm::Ended(ended) => {
                self.ended = Some(ended);
                return None;
            }
            // Exits are repeated in `Ended`, together with everything else about the end.
            FromVmm::Key(_) | FromVmm::Report(Report::Exited { .. }) => return None,
            FromVmm::Launched => &mut boot.launched_ms,
            FromVmm::Heartbeat => {
                if self.view.state == State::Empty {
                    self.view.state = State::Running;
                }
                &mut boot.heartbeat_ms
            }
            FromVmm::Report(Report::AppStarted) => &mut boot.app_started_ms,
            FromVmm::Report(Report::AppReady { .. }) => &mut boot.app_ready_ms,
        };
        // The first time counts.
        let is_first = milestone.is_none();
        milestone.get_or_insert_with(|| millis(self.arrival));
        is_first.then(|| self.changed())
    }

    pub(super) fn changed(&self) -> Event {
        Event::Changed(Box::new(self.view.clone()))
    }

    pub(super) fn is_reaped(&self) -> bool {
        matches!(self.process, Process::Reaped(_))
    }

    /// The vmm leads a group that the engine belongs to. Its id is ours until we wait for it.
    pub(super) fn kill(&self) {
        if let Process::Running(pid) = self.process {
            // ESRCH between fork and setpgid: the leader alone exists then.
            if rustix::process::kill_process_group(pid, Signal::KILL).is_err() {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
    }

    pub(super) fn past(&self) -> Past {
        let tail = self.ended.as_ref().map(|ended| ended.tail.clone());
        Past {
            exit: self.exit(),
            tail: tail.unwrap_or_default(),
        }
    }

    fn exit(&self) -> Exit {
        let ended = self.ended.clone().unwrap_or_default();
        let reason = match (&self.cause, &self.ended, self.process) {
            (Some(cause), _, _) => cause.clone(),
            (None, Some(ended), _) => ended.reason.clone(),
            (None, None, Process::Reaped(Some(signal))) => {
                format!("its enclos-vmm was killed by signal {signal}")
            }
            (None, None, Process::NotStarted) => "it could not be started".to_owned(),
            (None, None, _) => "its enclos-vmm ended without a last word".to_owned(),
        };
        Exit {
            id: self.view.id.clone(),
            name: self.view.name.clone(),
            status: ended.status,
            signal: ended.signal,
            reason,
        }
    }
}

/// Milliseconds since then.
pub(super) fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
