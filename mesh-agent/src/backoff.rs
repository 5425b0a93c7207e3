//! Delays between attempts to reach something that does not answer: doubling, bounded, and with jitter so
//! that the nodes of a cluster do not all retry at once. Imports nothing.

use std::time::Duration;

/// The first delay, before jitter.
const FIRST: Duration = Duration::from_millis(100);
/// The longest delay, before jitter.
const LONGEST: Duration = Duration::from_secs(2);

/// The delay before the next attempt.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The delay after one more failure, uniform between half of it and all of it.
    pub(crate) fn next(&mut self) -> Duration {
        let full = FIRST.saturating_mul(1 << self.failures.min(16)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        full.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// After a success: start again with the shortest delay.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_a_bound_and_start_over_after_a_success() {
        let mut backoff = Backoff::default();
        for _ in 0..100 {
            assert!(backoff.next() <= LONGEST);
        }
        assert!(backoff.next() >= LONGEST / 2);
        backoff.reset();
        assert!(backoff.next() <= FIRST);
    }
}
