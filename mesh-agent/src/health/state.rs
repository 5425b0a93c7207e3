//! Decides from the results of its checks whether a replica fails. Pure: results and the time go in.
//!
//! A replica passes until its first check is done. That one decides at once, so that a replica that has yet
//! to get ready gets no connections. Then `fall` failures in a row take it out, and `rise` successes in a row
//! bring it back, but not before its hold-down has passed, which doubles for a replica that fails again soon.

use std::time::Duration;

use super::attempt::Failure;
use crate::model::HealthCheck;

/// How long a replica stays out at least: doubled for each time that it fails soon after its return.
const HOLD_DOWN: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];
/// What soon means.
const STEADY: Duration = Duration::from_secs(60);
/// The first pause, doubled until the replica has passed once: most are ready within a second.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// One replica. Times are since any fixed moment.
#[derive(Clone, Debug)]
pub(super) struct Health {
    state: State,
    /// Results in a row that speak against the state.
    against: u32,
    checks: u32,
    hold_down: Duration,
    back_at: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It was not checked yet.
    New,
    /// It has never passed.
    Starting {
        since: Duration,
    },
    Passing,
    Failing {
        since: Duration,
    },
}

/// A replica's change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// It is to get no new connections.
    Out,
    /// It passes, after so long.
    Back(Duration),
}

impl Health {
    pub(super) fn new() -> Self {
        Self {
            state: State::New,
            against: 0,
            checks: 0,
            hold_down: HOLD_DOWN[0],
            back_at: None,
        }
    }

    /// Takes the result of a check.
    pub(super) fn add(
        &mut self,
        check: &HealthCheck,
        result: &Result<(), Failure>,
        now: Duration,
    ) -> Option<Change> {
        // What this node did late says nothing of the replica.
        if *result == Err(Failure::Late) {
            return None;
        }
        self.checks = self.checks.saturating_add(1);
        match (self.state, result) {
            (State::New, Ok(())) => {
                self.state = State::Passing;
                None
            }
            (State::New, Err(_)) => {
                self.state = State::Starting { since: now };
                Some(Change::Out)
            }
            (State::Starting { since }, Ok(())) => {
                self.state = State::Passing;
                Some(Change::Back(now.saturating_sub(since)))
            }
            (State::Starting { .. }, Err(_)) => None,
            (State::Passing, Ok(())) | (State::Failing { .. }, Err(_)) => {
                self.against = 0;
                None
            }
            (State::Passing, Err(_)) => {
                self.against += 1;
                if self.against < check.fall {
                    return None;
                }
                let soon = self.back_at.is_some_and(|back| now < back + STEADY);
                self.hold_down = if soon {
                    (self.hold_down * 2).min(HOLD_DOWN[1])
                } else {
                    HOLD_DOWN[0]
                };
                self.against = 0;
                self.state = State::Failing { since: now };
                Some(Change::Out)
            }
            (State::Failing { since }, Ok(())) => {
                self.against = self.against.saturating_add(1);
                if self.against < check.rise || now < since + self.hold_down {
                    return None;
                }
                self.against = 0;
                self.state = State::Passing;
                self.back_at = Some(now);
                Some(Change::Back(now.saturating_sub(since)))
            }
        }
    }

    /// From the beginning of the last check to that of the next.
    pub(super) fn pause(&self, check: &HealthCheck) -> Duration {
        match self.state {
            State::Passing | State::Failing { .. } => check.interval,
            State::New | State::Starting { .. } => {
                let doubled = self.checks.saturating_sub(1).min(8);
                FIRST_PAUSE.saturating_mul(1 << doubled).min(check.interval)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::HealthProbe;

    fn check() -> HealthCheck {
        HealthCheck {
            probe: HealthProbe::Tcp,
            port: 80,
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            fall: 3,
            rise: 2,
        }
    }

    fn failed() -> Result<(), Failure> {
        Err(Failure::Status(500))
    }

    /// Adds one result each two seconds, `+` a success; returns what changed, with the time.
    fn run(health: &mut Health, from: u64, results: &str) -> Vec<(u64, Change)> {
        let times = (from..).step_by(2);
        times
            .zip(results.chars())
            .filter_map(|(second, result)| {
                let result = if result == '+' { Ok(()) } else { failed() };
                let change = health.add(&check(), &result, Duration::from_secs(second))?;
                Some((second, change))
            })
            .collect()
    }

    #[test]
    fn failures_in_a_row_take_it_out_and_successes_in_a_row_bring_it_back() {
        let mut health = Health::new();
        assert_eq!(run(&mut health, 0, "+--+--+"), []);
        assert_eq!(run(&mut health, 20, "---"), [(24, Change::Out)]);
        let back = Change::Back(Duration::from_secs(12));
        assert_eq!(run(&mut health, 26, "--+-++"), [(36, back)]);
    }

    #[test]
    fn a_new_replica_is_out_at_its_first_failure_and_in_at_its_first_success() {
        let mut health = Health::new();
        let back = Change::Back(Duration::from_secs(6));
        assert_eq!(run(&mut health, 0, "---+"), [(0, Change::Out), (6, back)]);
        assert_eq!(run(&mut health, 8, "--+"), [], "from now on its thresholds apply");
    }

    #[test]
    fn the_first_checks_are_close_together_until_it_passes() {
        let mut health = Health::new();
        let mut pauses = Vec::new();
        for _ in 0..5 {
            health.add(&check(), &failed(), Duration::ZERO);
            pauses.push(health.pause(&check()).as_millis());
        }
        assert_eq!(pauses, [250, 500, 1000, 2000, 2000]);
        health.add(&check(), &Ok(()), Duration::ZERO);
        assert_eq!(health.pause(&check()), check().interval);
    }

    #[test]
    fn one_that_fails_again_and_again_stays_out_longer_each_time_up_to_a_minute() {
        let mut health = Health::new();
        let mut now = 0;
        assert_eq!(run(&mut health, now, "+"), []);
        let mut times = Vec::new();
        for _ in 0..9 {
            let changes = run(&mut health, now + 2, &("---".to_owned() + &"+".repeat(40)));
            let [(_, Change::Out), (back, Change::Back(time))] = changes[..] else {
                panic!("{changes:?}");
            };
            times.push(time.as_secs());
            // The rest of the successes come after its return.
            now = back;
        }
        assert_eq!(times, [4, 4, 4, 8, 16, 32, 60, 60, 60]);

        // One that was steady for a minute begins again with the shortest.
        assert_eq!(run(&mut health, now + 200, "---++").len(), 2);
    }

    #[test]
    fn what_this_node_saw_too_late_does_not_count() {
        let mut health = Health::new();
        run(&mut health, 0, "+--");
        let late = Err(Failure::Late);
        assert_eq!(health.add(&check(), &late, Duration::from_secs(6)), None);
        assert_eq!(run(&mut health, 8, "-"), [(8, Change::Out)]);
    }
}
