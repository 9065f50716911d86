//! Whether the store can be written, as far as is known, and until when it is tried.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// A transaction that takes longer counts as a disk that hangs.
const LONG: Duration = Duration::from_secs(5);

/// What the writer knows, for those who ask.
#[derive(Debug)]
pub(super) struct Health {
    /// Whether the last transaction succeeded.
    writable: AtomicBool,
    /// When the one that is under way was begun.
    begun: Mutex<Option<Instant>>,
    /// When nothing is tried any more, once that is known.
    end: watch::Sender<Option<Instant>>,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            writable: AtomicBool::new(true),
            begun: Mutex::default(),
            end: watch::Sender::new(None),
        }
    }
}

impl Health {
    /// Whether the last transaction succeeded and the one that is under way does not hang.
    pub(super) fn is_good(&self) -> bool {
        self.is_good_at(Instant::now())
    }

    fn is_good_at(&self, now: Instant) -> bool {
        let hangs = |begun: Instant| now.saturating_duration_since(begun) > LONG;
        self.is_writable() && !self.begun().is_some_and(hangs)
    }

    /// Whether the last transaction succeeded.
    pub(super) fn is_writable(&self) -> bool {
        self.writable.load(Ordering::Relaxed)
    }

    /// Notes that it is not; whether that is news.
    pub(super) fn suspect(&self) -> bool {
        self.writable.swap(false, Ordering::Relaxed)
    }

    /// A transaction begins.
    pub(super) fn begin(&self) {
        *self.begun() = Some(Instant::now());
    }

    /// It is over.
    pub(super) fn end(&self, succeeded: bool) {
        *self.begun() = None;
        self.writable.store(succeeded, Ordering::Relaxed);
    }

    fn begun(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From that moment on nothing is tried any more.
    pub(super) fn end_at(&self, end: Instant) {
        self.end.send_replace(Some(end));
    }

    /// Waits until `deadline`, or until nothing is tried any more.
    pub(super) fn until(&self, deadline: Instant) -> impl Future<Output = ()> + use<> {
        let mut told = self.end.subscribe();
        let end = async move {
            let end = told
                .wait_for(Option::is_some)
                .await
                .ok()
                .and_then(|end| *end);
            match end {
                Some(end) => sleep_until(end).await,
                None => std::future::pending().await,
            }
        };
        async move {
            tokio::select! {
                () = sleep_until(deadline) => {}
                () = end => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_that_takes_long_is_told_before_it_fails() {
        let health = Health::default();
        health.begin();
        let begun = Instant::now();
        assert!(health.is_good_at(begun + LONG / 2));
        let later = begun + LONG * 2;
        assert!(!health.is_good_at(later) && health.is_writable());
        health.end(true);
        assert!(health.is_good_at(later));
        health.begin();
        health.end(false);
        assert!(!health.is_good_at(begun) && !health.is_writable());
    }

    #[tokio::test]
    async fn what_waits_for_longer_than_the_end_is_cut_short() {
        let health = Health::default();
        let tomorrow = Instant::now() + Duration::from_secs(86_400);
        let waiting = health.until(tomorrow);
        health.end_at(Instant::now() + Duration::from_millis(10));
        waiting.await;
        health.until(tomorrow).await;
        let health = Health::default();
        health.until(Instant::now()).await;
    }
}
