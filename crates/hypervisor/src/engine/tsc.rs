//! Frequency of the time stamp counter.
//!
//! A `microvm` has no timer that the guest's kernel could calibrate the TSC against on a busy host, and a
//! kernel that fails to calibrate hangs. Under TCG the guest reads the host's counter, so the host measures
//! it and the command line tells the guest (`tsc_early_khz`).

use std::io;
use std::thread;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::sys;

/// Time between the two readings: over 50 ms a bracket of 2 µs is an error of 40 ppm.
const SPAN: Duration = Duration::from_millis(50);

/// Attempts at one reading; the tightest wins. A descheduled attempt merely loses.
const ATTEMPTS: usize = 64;

/// A counter value and the time it belongs to.
#[derive(Debug, Clone, Copy)]
struct Reading {
    cycles: u64,
    nanoseconds: u64,
}

/// Measures the counter against `CLOCK_MONOTONIC_RAW`, in kHz. Takes 50 ms.
///
/// # Errors
/// When the counter does not advance as a clock does: the host's TSC is not invariant then.
pub fn measure_khz() -> io::Result<u64> {
    let first = read();
    thread::sleep(SPAN);
    khz(first, read()).ok_or_else(|| {
        io::Error::other(
            "the time stamp counter does not advance steadily; an invariant TSC is needed",
        )
    })
}

/// The reading with the tightest bracket of clock calls around it.
fn read() -> Reading {
    let mut best = attempt();
    for _ in 1..ATTEMPTS {
        let next = attempt();
        if next.1 < best.1 {
            best = next;
        }
    }
    best.0
}

fn attempt() -> (Reading, u64) {
    let before = monotonic_raw();
    let cycles = sys::cycles();
    let gap = monotonic_raw().saturating_sub(before);
    (
        Reading {
            cycles,
            nanoseconds: before.saturating_add(gap / 2),
        },
        gap,
    )
}

fn monotonic_raw() -> u64 {
    let time = clock_gettime(ClockId::MonotonicRaw);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    seconds.saturating_mul(1_000_000_000) + u64::try_from(time.tv_nsec).unwrap_or_default()
}

/// Between 100 MHz and 20 GHz, or nothing.
fn khz(first: Reading, last: Reading) -> Option<u64> {
    let cycles = u128::from(last.cycles.checked_sub(first.cycles)?);
    let nanoseconds = u128::from(last.nanoseconds.checked_sub(first.nanoseconds)?);
    let khz = (cycles * 1_000_000).checked_div(nanoseconds)?;
    u64::try_from(khz)
        .ok()
        .filter(|khz| (100_000..20_000_000).contains(khz))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree_within_a_thousandth() {
        let (first, second) = (measure_khz().unwrap(), measure_khz().unwrap());
        assert!(
            first.abs_diff(second) < first / 1000,
            "{first} kHz and {second} kHz"
        );
    }

    #[test]
    fn a_counter_that_stands_still_or_runs_backwards_is_refused() {
        let start = Reading {
            cycles: 1_000_000_000,
            nanoseconds: 0,
        };
        let after = |cycles| Reading {
            cycles,
            nanoseconds: 50_000_000,
        };
        assert_eq!(khz(start, after(1_000_000_000)), None);
        assert_eq!(khz(start, after(999_999_999)), None);
        assert_eq!(khz(start, after(1_122_271_500)), Some(2_445_430));
    }
}
