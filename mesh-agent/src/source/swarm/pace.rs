//! When the tasks are listed next: often while something moves, seldom while nothing does. Pure; the
//! clock is an argument.

use std::time::{Duration, Instant};

/// Between two lists while something moves. Swarm waits 2 s between taking a task out of service and
/// stopping it: that must be seen with time to spare.
const FAST: Duration = Duration::from_millis(150);
/// Between two lists while something has been on its way for long (an image that cannot be pulled, a
/// task that no node can take).
const STUCK: Duration = Duration::from_millis(500);
/// Between two lists while nothing moves.
const SLOW: Duration = Duration::from_secs(2);
/// The least time between two lists, however many hints come.
const GAP: Duration = Duration::from_millis(40);
/// How long after a hint the tasks may still change without another.
const AFTER_HINT: Duration = Duration::from_secs(5);
/// How long something may be on its way before it counts as stuck.
const PATIENCE: Duration = Duration::from_secs(60);
/// The engine gets at least this many times the time a list takes to do its own work.
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
    /// Begins as after a hint.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            hinted: now,
            moved: now,
            started: now,
            cost: Duration::ZERO,
            converging: false,
        }
    }

    /// An event or a hint came.
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

    /// When to list next if nothing happens until then.
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

    /// When to list next because of a hint.
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
    fn lists_often_after_a_hint_and_seldom_later() {
        assert_eq!(interval_after(1, false, Duration::ZERO), FAST);
        assert_eq!(interval_after(10, false, Duration::ZERO), SLOW);
    }

    #[test]
    fn lists_often_while_converging_until_it_counts_as_stuck() {
        assert_eq!(interval_after(30, true, Duration::ZERO), FAST);
        assert_eq!(interval_after(90, true, Duration::ZERO), STUCK);
    }

    #[test]
    fn slow_engine_is_given_time() {
        let cost = Duration::from_millis(100);
        assert_eq!(interval_after(1, true, cost), cost * REST);
    }

    #[test]
    fn hint_is_followed_almost_at_once() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        pace.listed(start, start, false, false);
        assert_eq!(pace.next_hinted() - start, GAP);
    }
}
