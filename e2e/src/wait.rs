//! Waiting with a limit.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

const PAUSE: Duration = Duration::from_millis(10);

/// Calls `attempt` until it returns something. The last error, if there was one, explains the limit's passing.
///
/// # Errors
/// `limit` has passed.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut attempt: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        let outcome = attempt();
        if let Ok(Some(value)) = outcome {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            outcome.with_context(|| format!("{what}: not within {} s", limit.as_secs()))?;
            bail!("{what}: not within {} s", limit.as_secs());
        }
        sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_returns_what_comes_in_time() {
        let mut left = 3;
        let value = until("three", Duration::from_secs(5), || {
            left -= 1;
            Ok((left == 0).then_some(7))
        });
        assert_eq!(value.unwrap(), 7);
    }

    #[test]
    fn it_says_what_it_waited_for_and_why_it_did_not_come() {
        let never = until::<()>("the moon", Duration::ZERO, || Ok(None));
        assert!(never.unwrap_err().to_string().contains("the moon"));
        let broken = until::<()>("the moon", Duration::ZERO, || bail!("clouds"));
        assert!(format!("{:#}", broken.unwrap_err()).contains("clouds"));
    }
}
