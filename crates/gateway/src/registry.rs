//! The enclaves that run, each with its sockets and published ports.
//!
//! An entry owns its tasks: when the enclave goes the entry is dropped, the tasks are aborted, and with them
//! go listeners, connections and socket names.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use enclos_api::config::HostConfig;
use enclos_api::control::{Enclave, Failure};
use enclos_api::gateway::Publication;
use enclos_api::guest::{FACTS_PORT, KMS_PORT};
use tokio::net::UnixStream;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::ledger::Ledger;
use crate::publish::{self, Published};
use crate::socket::Socket;
use crate::{facts, tunnel};

/// Connections at a time, enclave and service; an agent needs a handful.
const MAX_CONNECTIONS: usize = 256;

/// Pause after an accept that failed, for want of descriptors for example.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a publication waits for the hypervisor's word of an enclave that was just started.
const ARRIVAL: Duration = Duration::from_secs(3);

/// nitro-cli's code for a socket that cannot be used.
const E_SOCKET: u8 = 11;

/// Most ports of one enclave that are published at a time.
const MAX_PUBLICATIONS: usize = 32;
/// nitro-cli's code for an enclave id that nobody knows.
const E_UNKNOWN_ENCLAVE: u8 = 40;
/// nitro-cli's code for a wrong argument.
const E_ARGUMENT: u8 = 3;
/// nitro-cli's code for something that the caller may not do.
const E_PERMISSION: u8 = 18;

#[derive(Debug)]
struct Entry {
    vsock: PathBuf,
    owner_uid: u32,
    publications: Vec<Publication>,
    connections: Arc<Semaphore>,
    /// Dropped with the entry, which ends them.
    tasks: JoinSet<()>,
}

/// All enclaves.
#[derive(Debug)]
pub struct Registry {
    host: Arc<HostConfig>,
    entries: Mutex<HashMap<String, Entry>>,
    ledger: Mutex<Ledger>,
    arrived: Notify,
}

impl Registry {
    /// No enclaves yet. `ledger` is the file that tells what is published.
    #[must_use]
    pub fn new(host: HostConfig, ledger: PathBuf) -> Self {
        Self {
            host: Arc::new(host),
            entries: Mutex::default(),
            ledger: Mutex::new(Ledger::open(ledger)),
            arrived: Notify::new(),
        }
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves an enclave; one that is served already stays as it is.
    pub async fn add(&self, enclave: &Enclave) {
        if self.entries().contains_key(&enclave.id) {
            return;
        }
        let mut tasks = JoinSet::new();
        if let Err(error) = self.listen(&enclave.vsock, &mut tasks).await {
            tracing::error!(
                enclave = enclave.id,
                "cannot listen for the enclave: {error}"
            );
        }
        let mut entry = Entry {
            vsock: enclave.vsock.clone(),
            owner_uid: enclave.owner_uid,
            publications: Vec::new(),
            connections: Arc::new(Semaphore::new(publish::MAX_CONNECTIONS)),
            tasks,
        };
        self.publish_again(&enclave.id, &mut entry);
        self.entries().insert(enclave.id.clone(), entry);
        self.arrived.notify_waiters();
        tracing::info!(
            enclave = enclave.id,
            name = enclave.name,
            "enclave is served"
        );
    }

    /// Forgets an enclave and everything of it.
    pub fn remove(&self, id: &str) {
        if self.entries().remove(id).is_some() {
            tracing::info!(enclave = id, "enclave is gone");
        }
        self.ledger().retain(|entry| entry.enclave_id != id);
    }

    /// Forgets every enclave that is not among `ids`.
    pub fn retain(&self, ids: &[String]) {
        self.entries().retain(|id, _| ids.contains(id));
        self.ledger()
            .retain(|entry| ids.contains(&entry.enclave_id));
    }

    /// Serves nothing any more, and forgets nothing.
    pub fn close(&self) {
        self.entries().clear();
    }

    /// What an earlier gateway published for this enclave.
    fn publish_again(&self, id: &str, entry: &mut Entry) {
        for publication in self.ledger().of(id) {
            let listen = publication.listen;
            match Published::bind(publication) {
                Ok(published) => entry.serve(published),
                Err(error) => tracing::error!(
                    enclave = id,
                    %listen,
                    "cannot publish again what an earlier gateway published: {error}"
                ),
            }
        }
    }

    async fn listen(&self, vsock: &Path, tasks: &mut JoinSet<()>) -> io::Result<()> {
        let host = Arc::clone(&self.host);
        let socket = Socket::bind(&port_path(vsock, FACTS_PORT)).await?;
        tasks.spawn(serve(socket, move |stream| {
            let host = Arc::clone(&host);
            async move {
                if let Err(error) = facts::answer(stream, host).await {
                    tracing::debug!("facts: {error}");
                }
            }
        }));
        let Some(kms) = self.host.kms.as_ref().map(|kms| kms.address) else {
            return Ok(());
        };
        let socket = Socket::bind(&port_path(vsock, KMS_PORT)).await?;
        tasks.spawn(serve(socket, move |stream| async move {
            if let Err(error) = tunnel::carry(stream, kms).await {
                tracing::warn!(%kms, "tunnel to the KMS ended: {error}");
            }
        }));
        Ok(())
    }

    /// Publishes a port of an enclave on behalf of user `uid`.
    ///
    /// # Errors
    /// Unknown enclave, somebody else's enclave, port 0 in the guest, address in use.
    pub async fn publish(&self, wanted: Publication, uid: u32) -> Result<Publication, Failure> {
        if wanted.guest_port == 0 || wanted.guest_port > u32::from(u16::MAX) {
            let message = format!(
                "guest port {} is no TCP port; give one from 1 to 65535",
                wanted.guest_port
            );
            return Err(Failure {
                code: E_ARGUMENT,
                message,
            });
        }
        self.wait_for(&wanted.enclave_id).await;
        let mut entries = self.entries();
        let Some(entry) = entries.get_mut(&wanted.enclave_id) else {
            return Err(unknown(&wanted.enclave_id));
        };
        entry.check_owner(&wanted.enclave_id, uid)?;
        entry.check_room()?;
        let listen = wanted.listen;
        let published = Published::bind(wanted).map_err(|error| Failure {
            code: E_SOCKET,
            message: format!("cannot listen on {listen}: {error}; choose another address or port"),
        })?;
        let publication = published.publication.clone();
        entry.serve(published);
        drop(entries);
        self.ledger().add(publication.clone());
        Ok(publication)
    }

    /// All publications that user `uid` may see.
    #[must_use]
    pub fn list(&self, uid: u32) -> Vec<Publication> {
        let entries = self.entries();
        let visible = entries.values().filter(|entry| entry.belongs_to(uid));
        let mut all: Vec<Publication> = visible
            .flat_map(|entry| entry.publications.iter().cloned())
            .collect();
        all.sort_by_key(|publication| publication.listen);
        all
    }

    /// Returns once the enclave is known, or after [`ARRIVAL`].
    async fn wait_for(&self, id: &str) {
        let known = async {
            loop {
                let arrived = self.arrived.notified();
                if self.entries().contains_key(id) {
                    return;
                }
                // A notice between the look and the wait is not lost, only late.
                let _ = timeout(ACCEPT_PAUSE, arrived).await;
            }
        };
        let _ = timeout(ARRIVAL, known).await;
    }
}

impl Entry {
    fn serve(&mut self, published: Published) {
        let publication = published.publication.clone();
        tracing::info!(enclave = publication.enclave_id, listen = %publication.listen, "published");
        let connections = Arc::clone(&self.connections);
        self.tasks
            .spawn(published.serve(self.vsock.clone(), connections));
        self.publications.push(publication);
    }

    /// Root, the gateway's own user and whoever started the enclave.
    fn belongs_to(&self, uid: u32) -> bool {
        uid == 0 || uid == self.owner_uid || uid == rustix::process::geteuid().as_raw()
    }

    /// One user's ports must not take the descriptors that everybody's KMS needs.
    fn check_room(&self) -> Result<(), Failure> {
        if self.publications.len() < MAX_PUBLICATIONS {
            return Ok(());
        }
        let message = format!(
            "{MAX_PUBLICATIONS} ports of this enclave are published, and no more can be; a port range behind one \
             address needs a proxy inside the enclave"
        );
        Err(Failure {
            code: E_SOCKET,
            message,
        })
    }

    fn check_owner(&self, id: &str, uid: u32) -> Result<(), Failure> {
        if self.belongs_to(uid) {
            return Ok(());
        }
        let message = format!("enclave {id} belongs to another user; ask them, or root");
        Err(Failure {
            code: E_PERMISSION,
            message,
        })
    }
}

fn unknown(id: &str) -> Failure {
    let message =
        format!("no enclave {id} is running; `enclos describe-enclaves` lists those that are");
    Failure {
        code: E_UNKNOWN_ENCLAVE,
        message,
    }
}

/// `<vsock>_<port>`, where the enclave's connections to a port of the parent arrive.
#[must_use]
pub fn port_path(vsock: &Path, port: u32) -> PathBuf {
    let mut path = vsock.as_os_str().to_owned();
    path.push(format!("_{port}"));
    path.into()
}

/// Serves each connection with `answer`, so many at a time, for ever.
async fn serve<F, A>(socket: Socket, answer: F)
where
    F: Fn(UnixStream) -> A,
    A: Future<Output = ()> + Send + 'static,
{
    let limit = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(permit) = Arc::clone(&limit).acquire_owned().await else {
            return;
        };
        match socket.accept().await {
            Ok(stream) => {
                let answering = answer(stream);
                connections.spawn(async move {
                    answering.await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!("cannot accept: {error}");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
