//! The clock that flows are dated by.

use std::time::Instant;

/// The flows' clock, in seconds: continues from where the last agent left it.
pub(super) struct Clock {
    base: u32,
    since: Instant,
}

impl Clock {
    pub(super) fn starting_at(base: u32) -> Self {
        Self {
            base,
            since: Instant::now(),
        }
    }

    pub(super) fn now(&self) -> u32 {
        // Never 0, so that a zeroed entry is always old.
        let elapsed = u32::try_from(self.since.elapsed().as_secs()).unwrap_or(u32::MAX);
        self.base.saturating_add(elapsed).max(1)
    }
}
