//! One thread per connection to the control socket: one request, one answer or one stream.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use enclos_api::control::{Enclave, Failure, Host, MAX_GRACE_S, Reply, Request, Selector, Success};
use enclos_api::frame::FrameError;

use crate::daemon::cgroup::{self, Groups};
use crate::daemon::registry::Caller;
use crate::daemon::run;
use crate::daemon::serve::Hypervisor;
use crate::failure::Code;
use crate::log;
use crate::wire;

/// Time for a client to send its request, and to take an answer.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections at once, watchers and waiters included.
const MAX_SESSIONS: usize = 256;

/// Connections at once of one user other than root and the hypervisor's own.
const MAX_SESSIONS_PER_USER: usize = 48;

/// Enclaves in one frame of the list: the metadata of each has at most [`MAX_METADATA`](crate::daemon::image::MAX_METADATA) bytes, the rest some hundred.
const ENCLAVES_PER_FRAME: usize = 8;

/// How often a stream without news looks whether its client is still there.
const STREAM_TICK: Duration = Duration::from_secs(2);

/// Time for an enclave to go after a word, before it is killed.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// Time for a killed enclave to go.
const KILL_GRACE: Duration = Duration::from_secs(40);

/// Who is connected now.
#[derive(Debug, Clone, Default)]
pub(crate) struct Admission(Arc<Mutex<BTreeMap<u32, usize>>>);

/// A place in the house; given back when dropped.
struct Permit {
    admission: Admission,
    uid: u32,
}

impl Admission {
    fn admit(&self, caller: Caller) -> Result<Permit, Failure> {
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let total: usize = sessions.values().sum();
        let own = sessions.entry(caller.uid).or_default();
        let full = total >= MAX_SESSIONS || (!caller.privileged && *own >= MAX_SESSIONS_PER_USER);
        if full {
            return Err(Code::InvalidCommand.because(format!(
                "too many connections: {total} in all (limit {MAX_SESSIONS}), {own} of this user (limit \
                 {MAX_SESSIONS_PER_USER}); close some"
            )));
        }
        *own += 1;
        Ok(Permit {
            admission: self.clone(),
            uid: caller.uid,
        })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut sessions = self
            .admission
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = sessions.get_mut(&self.uid) {
            *own -= 1;
            if *own == 0 {
                sessions.remove(&self.uid);
            }
        }
    }
}

/// Starts a session for a new connection. Called by the main thread: never blocks.
pub(crate) fn begin(hypervisor: &Arc<Hypervisor>, admission: &Admission, stream: UnixStream) {
    let Ok(caller) = identify(&stream) else {
        return;
    };
    let permit = match admission.admit(caller) {
        Ok(permit) => permit,
        Err(failure) => {
            // What does not fit into an empty socket buffer is not waited for.
            let _ = wire::send(
                &stream,
                &Reply::Error(failure),
                None,
                Duration::from_millis(1),
            );
            return;
        }
    };
    let hypervisor = Arc::clone(hypervisor);
    let thread = thread::Builder::new().name("session".into());
    let spawned = thread.spawn(move || {
        let _permit = permit;
        Session {
            hypervisor,
            caller,
            stream,
        }
        .serve();
    });
    if let Err(error) = spawned {
        log::error(format_args!("cannot start a thread for a client: {error}"));
    }
}

/// Who is at the other end, by the kernel's word.
fn identify(stream: &UnixStream) -> rustix::io::Result<Caller> {
    let peer = rustix::net::sockopt::socket_peercred(stream)?;
    let (uid, gid) = (peer.uid.as_raw(), peer.gid.as_raw());
    let own = rustix::process::geteuid().as_raw();
    Ok(Caller {
        uid,
        gid,
        privileged: uid == 0 || uid == own,
    })
}

struct Session {
    hypervisor: Arc<Hypervisor>,
    caller: Caller,
    stream: UnixStream,
}

impl Session {
    fn serve(self) {
        let request = wire::receive::<Request>(&self.stream, CLIENT_TIMEOUT);
        let arrival = Instant::now();
        let answer = match request {
            Ok((request, descriptor)) => self.answer(request, descriptor, arrival),
            // Nobody there to answer.
            Err(FrameError::Closed) => return,
            Err(error @ FrameError::Io(_)) => Err(Code::InvalidCommand.because(log::chain(&error))),
            Err(error) => Err(Code::Serde.because(log::chain(&error))),
        };
        match answer {
            Ok(Some(success)) => drop(self.reply(&Reply::Ok(success))),
            Ok(None) => {}
            Err(failure) => drop(self.reply(&Reply::Error(failure))),
        }
    }

    /// `None`, and a line in the log, when the client does not take it.
    fn reply(&self, reply: &Reply) -> Option<()> {
        let sent = wire::send(&self.stream, reply, None, CLIENT_TIMEOUT);
        sent.inspect_err(|error| {
            log::warn(format_args!(
                "cannot answer a client: {}",
                log::chain(error)
            ));
        })
        .ok()
    }

    /// The answer, or nothing when it was a stream that is over.
    fn answer(
        &self,
        request: Request,
        descriptor: Option<OwnedFd>,
        arrival: Instant,
    ) -> Result<Option<Success>, Failure> {
        match request {
            Request::Run(request) => {
                let image = descriptor.ok_or_else(|| {
                    Code::InvalidCommand.because(
                        "the run request came without the image's descriptor; use a client of this release",
                    )
                })?;
                run::run(&self.hypervisor, self.caller, &request, image, arrival).map(Some)
            }
            Request::Describe => {
                self.list();
                Ok(None)
            }
            Request::Terminate { enclave, grace_s } => {
                self.terminate(&enclave, grace_s.min(MAX_GRACE_S)).map(Some)
            }
            Request::Console { enclave } => self.console(&enclave).map(|()| None),
            Request::Wait { enclave } => self.wait(&enclave),
            Request::Watch => {
                self.watch();
                Ok(None)
            }
            Request::Host => Ok(Some(Success::Host(Box::new(self.host())))),
        }
    }

    /// The enclave, if it exists and the caller may control it.
    fn own(&self, selector: &Selector) -> Result<Enclave, Failure> {
        let enclave = self.hypervisor.registry.find(selector)?;
        if self.caller.may_control(enclave.owner_uid) {
            return Ok(enclave);
        }
        Err(Code::InvalidCommand.because(format!(
            "enclave {} belongs to user {}; only that user and root may do this, and the caller is user {}",
            enclave.id, enclave.owner_uid, self.caller.uid
        )))
    }

    fn terminate(&self, selector: &Selector, grace_s: u32) -> Result<Success, Failure> {
        let Enclave { id, name, .. } = self.own(selector)?;
        let registry = &self.hypervisor.registry;
        registry.stop_within(&id, "terminated by request", grace_s);
        let grace = Duration::from_secs(grace_s.into());
        if !registry.wait_gone(&id, grace + STOP_GRACE) {
            registry.kill(&id);
            if !registry.wait_gone(&id, KILL_GRACE) {
                return Err(Code::Boot.because(format!(
                    "enclave {id} was killed and is not gone yet; its processes may be stuck in the kernel"
                )));
            }
        }
        Ok(Success::Terminated { id, name })
    }

    fn console(&self, selector: &Selector) -> Result<(), Failure> {
        let enclave = self.own(selector)?;
        if !enclave.debug {
            return Err(Code::Console.because(format!(
                "enclave {} has no console: it was not started with --debug-mode",
                enclave.id
            )));
        }
        // Ours first, so that the vmm's bytes come behind it. From then on nothing but the console's bytes may come: one that is
        // over already is an end of stream.
        if self.reply(&Reply::Ok(Success::Streaming)).is_some() {
            let registry = &self.hypervisor.registry;
            registry.console(&enclave.id, self.stream.as_fd());
        }
        Ok(())
    }

    fn wait(&self, selector: &Selector) -> Result<Option<Success>, Failure> {
        let gone = || wire::hung_up(&self.stream);
        let exit = self.hypervisor.registry.wait_exit(selector, gone)?;
        Ok(exit.map(Success::Exited))
    }

    /// The list in pieces, each well within a frame, and its end.
    fn list(&self) {
        let enclaves = self.hypervisor.registry.list();
        let mut pieces = enclaves.chunks(ENCLAVES_PER_FRAME).chain([&[][..]]);
        pieces.try_for_each(|piece| self.reply(&Reply::Ok(Success::Enclaves(piece.to_vec()))));
    }

    fn watch(&self) {
        // Before the answer: who has that looks for what runs, and must hear of every end from then on.
        let watch = self.hypervisor.registry.watch();
        if self.reply(&Reply::Ok(Success::Streaming)).is_none() {
            return;
        }
        loop {
            match watch.events.recv_timeout(STREAM_TICK) {
                Ok(event) => {
                    if wire::send(&self.stream, &event, None, CLIENT_TIMEOUT).is_err() {
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) if wire::hung_up(&self.stream) => return,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn host(&self) -> Host {
        let Hypervisor {
            config,
            capacity,
            engine,
            authority,
            registry,
            groups,
            ..
        } = &*self.hypervisor;
        Host {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            engine: "qemu".to_owned(),
            engine_version: engine.version.clone(),
            instance_id: config.instance.id.clone(),
            role_arn: config.role.as_ref().map(|role| role.arn.clone()),
            region: config.instance.region.clone(),
            root_certificate: authority.root_certificate(),
            memory_total_mib: capacity.memory_mib,
            memory_free_mib: registry.free_memory(capacity.memory_mib),
            cpu_ids: capacity.cpus.ids.clone(),
            cgroup: cgroup::describe(groups.as_ref().map(Groups::controllers)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_cannot_take_all_places() {
        let admission = Admission::default();
        let user = Caller {
            uid: 1000,
            gid: 1000,
            privileged: false,
        };
        let root = Caller {
            uid: 0,
            gid: 0,
            privileged: true,
        };
        let mut permits: Vec<Permit> = (0..MAX_SESSIONS_PER_USER)
            .map(|_| admission.admit(user).unwrap_or_else(|_| panic!()))
            .collect();
        assert!(admission.admit(user).is_err());
        assert!(admission.admit(root).is_ok());
        permits.pop();
        assert!(admission.admit(user).is_ok());
        drop(permits);
        assert!(admission.0.lock().unwrap().is_empty());
    }
}
