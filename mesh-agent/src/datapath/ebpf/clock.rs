//! The clock that flows are dated by.

use std::time::{Duration, Instant};

use mesh_ebpf::abi::span;
use nix::{
    sys::time::TimeSpec,
    time::{ClockId, clock_gettime},
};

/// The present span of the counts of new flows.
pub(super) fn present_span() -> u64 {
    span(kernel_clock())
}

/// The kernel's own clock, as the programs read it, in nanoseconds.
pub(super) fn kernel_clock() -> u64 {
    // It can always be read.
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap_or(TimeSpec::new(0, 0));
    u64::try_from(Duration::from(now).as_nanos()).unwrap_or(u64::MAX)
}

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
