//! How often one client may call.
//!
//! A token bucket for each access key: it holds one second's worth of calls and fills at the rate. A client
//! that stays below the rate never notices; one above it gets `ThrottlingException`, which SDKs answer by waiting.

use std::time::Instant;

use dashmap::DashMap;

use crate::error::{ApiError, ErrorKind};

/// Most remembered clients; beyond it those whose bucket is full again are forgotten.
const REMEMBER: usize = 100_000;

struct Bucket {
    calls: f64,
    at: Instant,
}

/// The limit on every client, or none.
#[derive(Default)]
pub struct Limits {
    /// Calls in a second.
    rate: Option<u32>,
    buckets: DashMap<String, Bucket>,
}

impl std::fmt::Debug for Limits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Limits")
            .field("rate", &self.rate)
            .finish_non_exhaustive()
    }
}

impl Limits {
    /// At most so many calls in a second from one access key; `None` for no limit.
    #[must_use]
    pub fn new(rate: Option<u32>) -> Self {
        Self {
            rate,
            buckets: DashMap::new(),
        }
    }

    /// Counts a call.
    ///
    /// # Errors
    /// `ThrottlingException` if there were too many.
    pub fn admit(&self, client: &str, now: Instant) -> Result<(), ApiError> {
        let Some(rate) = self.rate.map(f64::from) else {
            return Ok(());
        };
        if self.buckets.len() >= REMEMBER {
            self.buckets
                .retain(|_, bucket| filled(bucket, now, rate) < rate);
        }
        let mut bucket = self
            .buckets
            .entry(client.to_owned())
            .or_insert_with(|| Bucket {
                calls: rate,
                at: now,
            });
        bucket.calls = filled(&bucket, now, rate);
        bucket.at = now;
        if bucket.calls < 1.0 {
            return Err(ApiError::new(
                ErrorKind::Throttling,
                "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls.",
            ));
        }
        bucket.calls -= 1.0;
        Ok(())
    }
}

fn filled(bucket: &Bucket, now: Instant, rate: f64) -> f64 {
    let passed = now.saturating_duration_since(bucket.at).as_secs_f64();
    (bucket.calls + passed * rate).min(rate)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_second_has_so_many_calls() {
        let limits = Limits::new(Some(10));
        let start = Instant::now();
        let admitted = |at: u64| {
            let now = start + Duration::from_millis(at);
            (0..20).filter(|_| limits.admit("a", now).is_ok()).count()
        };
        assert_eq!(admitted(0), 10);
        assert_eq!(admitted(100), 1);
        assert_eq!(admitted(600), 5);
        assert_eq!(admitted(60_000), 10);
        // Each client has its own bucket.
        assert!(limits.admit("b", start).is_ok());
        let error = limits.admit("a", start).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Throttling);
    }

    #[test]
    fn without_a_rate_there_is_no_limit() {
        let limits = Limits::default();
        let now = Instant::now();
        assert!((0..1000).all(|_| limits.admit("a", now).is_ok()));
        assert!(limits.buckets.is_empty());
    }
}
