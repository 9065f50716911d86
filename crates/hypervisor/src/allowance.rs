//! How much somebody else may do at once, and how fast that is restored.

use std::time::Instant;

/// A bucket that fills again by itself.
#[derive(Debug)]
pub(crate) struct Allowance {
    burst: u32,
    restored_per_second: f64,
    left: f64,
    at: Instant,
}

impl Allowance {
    /// A full one.
    pub(crate) fn new(burst: u32, restored_per_second: f64) -> Self {
        Self {
            burst,
            restored_per_second,
            left: f64::from(burst),
            at: Instant::now(),
        }
    }

    /// Takes so much, if there is so much.
    pub(crate) fn take(&mut self, amount: u32) -> bool {
        let restored = self.at.elapsed().as_secs_f64() * self.restored_per_second;
        self.at = Instant::now();
        self.left = (self.left + restored).min(f64::from(self.burst));
        let amount = f64::from(amount);
        if self.left < amount {
            return false;
        }
        self.left -= amount;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_restored_and_no_more_than_that() {
        let mut allowance = Allowance::new(100, 0.0);
        assert!((0..10).all(|_| allowance.take(10)));
        assert!(!allowance.take(1));
        assert!(allowance.take(0));
        let mut allowance = Allowance::new(100, 1e9);
        assert!(!allowance.take(101), "never more than the burst");
        assert!((0..1000).all(|_| {
            std::thread::sleep(std::time::Duration::from_micros(1));
            allowance.take(100)
        }));
    }
}
