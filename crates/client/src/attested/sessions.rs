//! Sessions, each beside the verdict under which it came to be.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rustls::NamedGroup;
use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::ServerName;

use super::judge::Judge;
use super::newest::Newest;
use super::{AttestedTls, Verdict};

/// Servers whose sessions are kept. When there are more, all are forgotten: that costs handshakes, nothing else.
const MAX_SERVERS: usize = 64;

/// Tickets for each server; each is used once.
const MAX_TICKETS: usize = 8;

type Tickets = Newest<Tls13ClientSessionValue, MAX_TICKETS>;

/// What is known of all servers.
#[derive(Default)]
pub(super) struct Sessions(Mutex<HashMap<String, Server>>);

/// The last verdict about a server, and the tickets that it gave under this verdict.
struct Server {
    verdict: Arc<Verdict>,
    tickets: Tickets,
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Server>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn verdict(&self, server: &str) -> Option<Arc<Verdict>> {
        let servers = self.lock();
        servers.get(server).map(|known| Arc::clone(&known.verdict))
    }

    /// A ticket with its verdict, if that holds. If it does not, everything about the server is forgotten.
    fn take(&self, server: &str, judge: &Judge) -> Option<(Tls13ClientSessionValue, Arc<Verdict>)> {
        let mut servers = self.lock();
        let known = servers.get_mut(server)?;
        if !judge.holds(&known.verdict) {
            servers.remove(server);
            return None;
        }
        let ticket = known.tickets.take()?;
        Some((ticket, Arc::clone(&known.verdict)))
    }

    /// Notes the verdict of a connection. Tickets of another verdict are forgotten.
    fn settle(&self, server: &str, verdict: &Arc<Verdict>) {
        let mut servers = self.lock();
        if servers.len() >= MAX_SERVERS && !servers.contains_key(server) {
            servers.clear();
        }
        let known = servers.get(server);
        if known.is_none_or(|known| !Arc::ptr_eq(&known.verdict, verdict)) {
            let fresh = Server {
                verdict: Arc::clone(verdict),
                tickets: Tickets::default(),
            };
            servers.insert(server.to_owned(), fresh);
        }
    }

    /// Keeps a ticket, if its verdict is still the last one about the server.
    fn keep(&self, server: &str, verdict: &Arc<Verdict>, ticket: Tls13ClientSessionValue) {
        let mut servers = self.lock();
        let known = servers.get_mut(server);
        if let Some(known) = known.filter(|known| Arc::ptr_eq(&known.verdict, verdict)) {
            known.tickets.keep(ticket);
        }
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let servers = self.lock();
        f.debug_set().entries(servers.keys()).finish()
    }
}

/// What one connection needs of the store. The TLS library knows connections by their server's name alone, which says
/// neither the port nor the verdict.
#[derive(Debug)]
pub(super) struct Connection {
    sessions: Arc<Sessions>,
    judge: Arc<Judge>,
    server: String,
    offered: OnceLock<Arc<Verdict>>,
    progress: Mutex<Progress>,
}

/// Whether it is known yet what a connection's tickets are worth.
enum Progress {
    /// Not yet: tickets wait.
    Open(Tickets),
    /// They belong to this verdict.
    Settled(Arc<Verdict>),
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open(_) => "Open",
            Self::Settled(_) => "Settled",
        })
    }
}

impl Connection {
    pub(super) fn new(tls: &AttestedTls, server: &str) -> Self {
        Self {
            sessions: Arc::clone(&tls.sessions),
            judge: Arc::clone(&tls.judge),
            server: server.to_owned(),
            offered: OnceLock::new(),
            progress: Mutex::new(Progress::Open(Tickets::default())),
        }
    }

    /// The verdict of the session that was offered to the server.
    pub(super) fn offered(&self) -> Option<Arc<Verdict>> {
        self.offered.get().cloned()
    }

    /// There is a verdict: tickets that came, and those that will come, belong to it.
    pub(super) fn settle(&self, verdict: &Arc<Verdict>) {
        self.sessions.settle(&self.server, verdict);
        let settled = Progress::Settled(Arc::clone(verdict));
        if let Progress::Open(tickets) = std::mem::replace(&mut *self.progress(), settled) {
            for ticket in tickets.into_oldest_first() {
                self.sessions.keep(&self.server, verdict, ticket);
            }
        }
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientSessionStore for Connection {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    /// A connection that ends without a verdict takes its tickets with it.
    fn insert_tls13_ticket(&self, _: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        match &mut *self.progress() {
            Progress::Settled(verdict) => self.sessions.keep(&self.server, verdict, ticket),
            Progress::Open(tickets) => tickets.keep(ticket),
        }
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let (ticket, verdict) = self.sessions.take(&self.server, &self.judge)?;
        // The library asks once for each connection; were it to ask again, the second ticket is not used.
        self.offered.set(verdict).is_ok().then_some(ticket)
    }
}
