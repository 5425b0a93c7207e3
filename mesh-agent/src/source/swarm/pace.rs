//! When to list the tasks next: often while something is changing, rarely otherwise. Pure; the clock is an
//! argument.

use std::time::{Duration, Instant};

/// The interval while something is changing. Swarm waits 2 s between taking a task out of service and
/// stopping it, which must be noticed well before.
const FAST: Duration = Duration::from_millis(150);
/// The interval when a change has been pending for long (an image that cannot be pulled, a task that no node
/// can run).
const STUCK: Duration = Duration::from_millis(500);
/// The interval while nothing is changing.
const SLOW: Duration = Duration::from_secs(2);
/// The minimum interval, however many hints arrive.
const GAP: Duration = Duration::from_millis(40);
/// How long after a hint the tasks may still change without another one.
const AFTER_HINT: Duration = Duration::from_secs(5);
/// How long a change may be pending before it counts as stuck.
const PATIENCE: Duration = Duration::from_secs(60);
/// The engine is left alone for at least this many times the duration of a list.
const REST: u32 = 4;

/// Decides when to list next.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    hinted: Instant,
    moved: Instant,
    started: Instant,
    cost: Duration,
    converging: bool,
}

impl Pace {
    /// Starts as after a hint.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            hinted: now,
            moved: now,
            started: now,
            cost: Duration::ZERO,
            converging: false,
        }
    }

    /// An event or a hint arrived.
    pub(super) fn hint(&mut self, now: Instant) {
        self.hinted = now;
    }

    /// The tasks were listed between `started` and `now`.
    pub(super) fn listed(&mut self, started: Instant, now: Instant, changed: bool, converging: bool) {
        self.started = started;
        self.cost = now.saturating_duration_since(started);
        self.converging = converging;
        if changed {
            self.moved = now;
        }
    }

    /// When to list next without an event or hint.
    pub(super) fn next(&self, now: Instant) -> Instant {
        let interval = if now.saturating_duration_since(self.hinted) < AFTER_HINT {
            FAST
        } else if self.converging {
            let moved = now.saturating_duration_since(self.moved.max(self.hinted));
            if moved < PATIENCE { FAST } else { STUCK }
        } else {
            SLOW
        };
        self.started + self.cost + interval.max(self.cost * REST)
    }

    /// When to list next after a hint.
    pub(super) fn next_hinted(&self) -> Instant {
        self.started + self.cost + GAP.max(self.cost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interval_after(seconds: u64, converging: bool, cost: Duration) -> Duration {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let now = start + Duration::from_secs(seconds);
        pace.listed(now, now + cost, false, converging);
        pace.next(now + cost) - (now + cost)
    }

    #[test]
    fn lists_often_after_a_hint_and_rarely_later() {
        assert_eq!(interval_after(1, false, Duration::ZERO), FAST);
        assert_eq!(interval_after(10, false, Duration::ZERO), SLOW);
    }

    #[test]
    fn lists_often_while_converging_until_it_counts_as_stuck() {
        assert_eq!(interval_after(30, true, Duration::ZERO), FAST);
        assert_eq!(interval_after(90, true, Duration::ZERO), STUCK);
    }

    #[test]
    fn a_slow_engine_is_listed_less_often() {
        let cost = Duration::from_millis(100);
        assert_eq!(interval_after(1, true, cost), cost * REST);
    }

    #[test]
    fn a_hint_is_followed_almost_at_once() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        pace.listed(start, start, false, false);
        assert_eq!(pace.next_hinted() - start, GAP);
    }
}
