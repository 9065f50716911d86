//! What the parent says about itself, asked over vsock and kept for a short while.
//!
//! Credentials about to expire are asked for again every few seconds, so that the application never gets stale
//! ones while newer exist. What was asked last is kept when the parent does not answer. Nothing of it is
//! trusted: an EC2 parent could say anything too.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use enclos_api::frame::FrameError;
use enclos_api::guest::{FACTS_PORT, FactsReply, FactsRequest, InstanceFacts};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};
use zeroize::Zeroize;

use super::transport::Dial;
use super::wire;

/// How long facts are good for.
const FRESH: Duration = Duration::from_secs(60);

/// How long facts are good for when their credentials expire soon, or are missing.
const BRIEFLY: Duration = Duration::from_secs(5);

/// Credentials with less than this left are about to expire; SDKs refresh at about as much.
const EXPIRES_SOON: time::Duration = time::Duration::minutes(5);

/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(5);

/// Pauses between attempts: the gateway may be restarting.
const PAUSES: [Duration; 3] = [
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(800),
];

/// Why there are no facts.
#[derive(Debug, thiserror::Error)]
pub enum FactsError {
    /// The parent's facts service does not answer.
    #[error("the parent's facts service (vsock CID 3, port 9002) does not answer")]
    Parent(#[source] FrameError),
    /// The parent has none.
    #[error("the parent has no facts: {0}")]
    Refused(String),
}

/// Facts whose credentials are wiped when the last user is done with them.
#[derive(Debug)]
pub struct Held(InstanceFacts);

impl Deref for Held {
    type Target = InstanceFacts;

    fn deref(&self) -> &InstanceFacts {
        &self.0
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(role) = &mut self.0.role {
            role.secret_access_key.zeroize();
            role.session_token.zeroize();
        }
    }
}

#[derive(Debug)]
struct Cached {
    facts: Arc<Held>,
    asked: Instant,
}

impl Cached {
    fn is_fresh(&self) -> bool {
        let good_for = if expires_soon(&self.facts) {
            BRIEFLY
        } else {
            FRESH
        };
        self.asked.elapsed() < good_for
    }
}

fn expires_soon(facts: &InstanceFacts) -> bool {
    let expiry = facts
        .role
        .as_ref()
        .map(|role| OffsetDateTime::parse(&role.expiration, &Rfc3339));
    match expiry {
        Some(Ok(expiry)) => expiry - OffsetDateTime::now_utc() < EXPIRES_SOON,
        Some(Err(_)) | None => true,
    }
}

/// The source of facts.
#[derive(Debug)]
pub struct Facts {
    parent: Arc<dyn Dial>,
    cached: Mutex<Option<Cached>>,
}

impl Facts {
    /// Facts of the parent behind `parent`.
    pub fn new(parent: Arc<dyn Dial>) -> Self {
        Self {
            parent,
            cached: Mutex::new(None),
        }
    }

    /// The facts of the moment. Many who ask at once cause one question.
    ///
    /// # Errors
    /// See [`FactsError`]; only when there were never any.
    pub async fn get(&self) -> Result<Arc<Held>, FactsError> {
        let mut cached = self.cached.lock().await;
        if let Some(known) = cached.as_ref().filter(|known| known.is_fresh()) {
            return Ok(Arc::clone(&known.facts));
        }
        match (self.ask_patiently().await, cached.as_mut()) {
            (Ok(facts), _) => {
                let facts = Arc::new(Held(facts));
                *cached = Some(Cached {
                    facts: Arc::clone(&facts),
                    asked: Instant::now(),
                });
                Ok(facts)
            }
            (Err(error), Some(known)) => {
                let error = crate::log::chain(&error);
                crate::log::line("enclos-agent", format_args!("keeping old facts: {error}"));
                Ok(Arc::clone(&known.facts))
            }
            (Err(error), None) => Err(error),
        }
    }

    async fn ask_patiently(&self) -> Result<InstanceFacts, FactsError> {
        let mut pauses = PAUSES.iter();
        loop {
            let asked = timeout(ATTEMPT, self.ask()).await;
            let silent = FrameError::Io(std::io::ErrorKind::TimedOut.into());
            let error = match asked.unwrap_or(Err(FactsError::Parent(silent))) {
                Err(error @ FactsError::Parent(_)) => error,
                other => return other,
            };
            let Some(pause) = pauses.next() else {
                return Err(error);
            };
            sleep(*pause).await;
        }
    }

    async fn ask(&self) -> Result<InstanceFacts, FactsError> {
        let dialled = self.parent.dial(FACTS_PORT).await;
        let mut stream = dialled.map_err(|error| FactsError::Parent(error.into()))?;
        wire::write(&mut stream, &FactsRequest::Facts)
            .await
            .map_err(FactsError::Parent)?;
        match wire::read(&mut stream).await.map_err(FactsError::Parent)? {
            FactsReply::Ok(facts) => Ok(*facts),
            FactsReply::Error(reason) => Err(FactsError::Refused(reason)),
        }
    }
}
