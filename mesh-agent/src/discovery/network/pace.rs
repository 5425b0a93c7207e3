//! When routes are looked up: at once after a quiet time, and otherwise no more often than their number
//! allows. No I/O; the clock is an argument.

use std::time::Duration;

use tokio::time::Instant;

/// The shortest time between two look-ups.
const SHORTEST: Duration = Duration::from_millis(100);
/// The longest: a change of a route must be followed within a second.
const LONGEST: Duration = Duration::from_millis(500);
/// After a look-up, this many times its own duration passes before the next one.
const REST: u32 = 20;

/// What to look up, in ascending order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lookup {
    /// The routes to peers.
    Peers,
    /// The default routes as well, for which the kernel lists its whole table.
    DefaultRoutes,
    /// Everything, since messages were lost.
    All,
}

/// The look-up that is due, and when.
#[derive(Debug, Default)]
pub(super) struct Pace {
    pending: Option<Lookup>,
    not_before: Option<Instant>,
}

impl Pace {
    /// Asks for a look-up. It happens, however often it is asked for until then.
    pub(super) fn ask(&mut self, lookup: Lookup) {
        self.pending = self.pending.max(Some(lookup));
    }

    /// When [`Self::take`] has something to do; `None` if nothing is asked for.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        self.pending.map(|_| self.not_before.unwrap_or(now))
    }

    /// What to look up now, if anything.
    pub(super) fn take(&mut self, now: Instant) -> Option<Lookup> {
        if self.due(now)? > now {
            return None;
        }
        self.pending.take()
    }

    /// Notes how long a look-up took.
    pub(super) fn took(&mut self, begin: Instant, end: Instant) {
        self.not_before = Some(end + ((end - begin) * REST).clamp(SHORTEST, LONGEST));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_event_of_a_storm_is_looked_up_and_few_before_it() {
        let begin = Instant::now();
        let mut pace = Pace::default();
        let cost = Duration::from_millis(20);
        let (mut looked_up, mut last_seen) = (0, None);
        // An event every millisecond for ten seconds.
        for event in 0..10_000 {
            let now = begin + Duration::from_millis(event);
            pace.ask(Lookup::Peers);
            if pace.take(now).is_some() {
                pace.took(now, now + cost);
                (looked_up, last_seen) = (looked_up + 1, Some(now));
            }
        }
        assert!((10..=30).contains(&looked_up), "{looked_up} look-ups");
        let last = begin + Duration::from_secs(10);
        let due = pace.due(last).unwrap();
        assert!(last_seen < Some(last) && due - last < Duration::from_secs(1));
        assert_eq!(pace.take(due), Some(Lookup::Peers));
        assert_eq!(pace.due(due), None);
    }

    #[test]
    fn a_single_event_after_a_quiet_time_is_looked_up_at_once_and_the_larger_look_up_wins() {
        let now = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(pace.take(now), None);
        pace.ask(Lookup::DefaultRoutes);
        pace.ask(Lookup::Peers);
        assert_eq!(pace.take(now), Some(Lookup::DefaultRoutes));
        pace.took(now, now);
        pace.ask(Lookup::Peers);
        assert_eq!(pace.take(now), None, "too soon");
        assert_eq!(pace.take(now + SHORTEST), Some(Lookup::Peers));
    }
}
