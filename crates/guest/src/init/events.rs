//! What init waits for: children that end, requests to stop, words of the agent and of the host. One poll loop, no threads.

use std::collections::VecDeque;
use std::io::{self, PipeReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use enclos_api::frame;
use enclos_api::guest::HostWord;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, WaitStatus};

use super::STOP_TIMEOUT;
use crate::sys;

/// Longest line that the agent may say.
const MAX_LINE: usize = 4096;

/// `sizeof(struct signalfd_siginfo)`; the signal's number is its first field.
const SIGNAL_INFO_LEN: usize = 128;

/// Signals that ask init to stop the enclave.
const STOP_SIGNALS: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGPWR];

/// Something happened.
#[derive(Debug)]
pub(super) enum Event {
    /// A child ended and was reaped.
    Ended(Pid, WaitStatus),
    /// init was asked to stop the application within this time.
    Stop(Duration),
    /// The agent said a line.
    Agent(String),
    /// The deadline passed.
    Deadline,
}

/// The sources of [`Event`]s.
#[derive(Debug)]
pub(super) struct Events {
    signals: OwnedFd,
    agent: Option<PipeReader>,
    host: Option<UnixStream>,
    line: Vec<u8>,
    queue: VecDeque<Event>,
}

/// Which sources have something to say.
#[derive(Debug, Clone, Copy)]
struct Ready {
    signals: bool,
    agent: bool,
    host: bool,
}

impl Events {
    /// Blocks all signals and takes them from here on.
    pub(super) fn new() -> io::Result<Self> {
        sys::block_all_signals()?;
        let mut signals = STOP_SIGNALS.to_vec();
        signals.push(libc::SIGCHLD);
        let signals = sys::signal_fd(&signals)?;
        Ok(Self {
            signals,
            agent: None,
            host: None,
            line: Vec::new(),
            queue: VecDeque::new(),
        })
    }

    /// Listens to the agent from now on.
    pub(super) fn listen_to(&mut self, agent: PipeReader) {
        self.agent = Some(agent);
    }

    /// Listens to the host from now on.
    pub(super) fn listen_to_host(&mut self, host: Option<UnixStream>) {
        self.host = host;
    }

    /// The next event; [`Event::Deadline`] once `deadline` has passed.
    pub(super) fn next(&mut self, deadline: Option<Instant>) -> io::Result<Event> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Ok(event);
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Ok(Event::Deadline);
            }
            let ready = self.wait(left)?;
            if ready.agent {
                self.read_agent();
            }
            if ready.host {
                self.read_host();
            }
            if ready.signals {
                self.read_signals()?;
            }
        }
    }

    /// Waits for any source; says which of them are ready.
    fn wait(&self, left: Option<Duration>) -> io::Result<Ready> {
        let agent = self.agent.as_ref().map(AsFd::as_fd);
        let host = self.host.as_ref().map(AsFd::as_fd);
        // Poll wants a descriptor in each place: for a source that is not there the signals stand once more.
        let signals = self.signals.as_fd();
        let fds = [signals, agent.unwrap_or(signals), host.unwrap_or(signals)];
        let mut fds = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let [signals, from_agent, from_host] = fds.map(|fd| !fd.revents().is_empty());
        Ok(Ready {
            signals,
            agent: agent.is_some() && from_agent,
            host: host.is_some() && from_host,
        })
    }

    /// Whatever is no word, and the end of the connection, end the listening: the host has nothing more to say then.
    fn read_host(&mut self) {
        let word = self.host.as_mut().map(frame::read::<HostWord>);
        match word {
            Some(Ok(HostWord::Stop { grace_s })) => {
                let grace = Duration::from_secs(grace_s.into());
                self.queue.push_back(Event::Stop(grace));
            }
            _ => self.host = None,
        }
    }

    fn read_signals(&mut self) -> io::Result<()> {
        let mut info = [0_u8; SIGNAL_INFO_LEN];
        while let Ok(SIGNAL_INFO_LEN) = rustix::io::read(&self.signals, &mut info[..]) {
            let number = info.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes));
            if number.is_some_and(|number| STOP_SIGNALS.contains(&number)) {
                self.queue.push_back(Event::Stop(STOP_TIMEOUT));
            }
        }
        self.reap()
    }

    /// Reaps every child that has ended, adopted ones too.
    fn reap(&mut self) -> io::Result<()> {
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => self.queue.push_back(Event::Ended(pid, status)),
                Ok(None) | Err(Errno::CHILD) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn read_agent(&mut self) {
        let mut bytes = [0; 512];
        let read = self.agent.as_mut().map(|agent| agent.read(&mut bytes));
        match read {
            Some(Ok(len)) if len > 0 => self.take(bytes.get(..len).unwrap_or_default()),
            _ => self.agent = None,
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if *byte == b'\n' {
                let line = String::from_utf8_lossy(&std::mem::take(&mut self.line)).into_owned();
                self.queue.push_back(Event::Agent(line));
            } else if self.line.len() < MAX_LINE {
                self.line.push(*byte);
            }
        }
    }
}
