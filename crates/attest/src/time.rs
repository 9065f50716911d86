//! Time as documents carry it. It is always passed in: nothing in this crate reads a clock.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Milliseconds since the Unix epoch, UTC.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// From whole seconds; saturates at the end of the range.
    #[must_use]
    pub const fn from_secs(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1000))
    }

    /// Whole seconds, rounded down.
    #[must_use]
    pub const fn as_secs(self) -> u64 {
        self.0 / 1000
    }

    /// Later by `by`; saturates.
    #[must_use]
    pub fn plus(self, by: Duration) -> Self {
        Self(self.0.saturating_add(millis(by)))
    }

    /// Earlier by `by`; saturates at the epoch.
    #[must_use]
    pub fn minus(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(millis(by)))
    }

    /// How long `earlier` lies before `self`; `None` when it does not.
    #[must_use]
    pub fn since(self, earlier: Self) -> Option<Duration> {
        self.0.checked_sub(earlier.0).map(Duration::from_millis)
    }
}

/// A time before the epoch becomes the epoch.
impl From<SystemTime> for UnixMillis {
    fn from(time: SystemTime) -> Self {
        Self(time.duration_since(UNIX_EPOCH).map_or(0, millis))
    }
}

/// `2026-11-22T03:38:15.250Z`; beyond the year 9999, milliseconds and their unit.
impl fmt::Display for UnixMillis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match der::DateTime::from_unix_duration(Duration::from_secs(self.as_secs())) {
            Ok(date) => {
                let text = date.to_string();
                write!(f, "{}.{:03}Z", text.trim_end_matches('Z'), self.0 % 1000)
            }
            Err(_) => write!(f, "{} ms after 1970", self.0),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates() {
        assert_eq!(UnixMillis(5).minus(Duration::from_secs(1)), UnixMillis(0));
        assert_eq!(
            UnixMillis(u64::MAX).plus(Duration::from_secs(1)),
            UnixMillis(u64::MAX)
        );
        assert_eq!(UnixMillis::from_secs(u64::MAX), UnixMillis(u64::MAX));
        assert_eq!(UnixMillis(7).since(UnixMillis(8)), None);
        assert_eq!(
            UnixMillis(9).since(UnixMillis(8)),
            Some(Duration::from_millis(1))
        );
    }

    #[test]
    fn display_is_rfc_3339() {
        assert_eq!(
            UnixMillis(1_572_269_285_042).to_string(),
            "2019-10-28T13:28:05.042Z"
        );
        assert_eq!(
            UnixMillis(u64::MAX).to_string(),
            "18446744073709551615 ms after 1970"
        );
    }
}
