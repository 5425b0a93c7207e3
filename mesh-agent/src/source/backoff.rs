//! Waiting times between attempts to reach something that is away: doubling, bounded, with jitter so
//! that the nodes of a cluster do not all come back in the same instant. Depends on nothing of ours.

use std::time::Duration;

/// The first waiting time, before jitter.
const FIRST: Duration = Duration::from_millis(100);
/// The longest waiting time, before jitter.
const LONGEST: Duration = Duration::from_secs(2);

/// How long to wait before the next attempt.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The waiting time after one more failure: between half of it and all of it, evenly.
    pub(crate) fn next(&mut self) -> Duration {
        let full = FIRST.saturating_mul(1 << self.failures.min(16)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        full.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// Something worked: begin again at the shortest time.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_grows_to_a_bound_and_starts_over_after_success() {
        let mut backoff = Backoff::default();
        for _ in 0..100 {
            assert!(backoff.next() <= LONGEST);
        }
        assert!(backoff.next() >= LONGEST / 2);
        backoff.reset();
        assert!(backoff.next() <= FIRST);
    }
}
