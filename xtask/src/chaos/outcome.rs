//! What a scenario cost its clients, and whether that is within what it requires. No I/O.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddrV4,
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// What the load generator reports; see `tests/src/load/report.rs`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Report {
    /// When it began, in milliseconds since 1970.
    began: u64,
    attempts: u64,
    failures: BTreeMap<String, u64>,
    /// The first failures in detail, in the order in which they were sent.
    pub(super) failed: Vec<Failure>,
    pub(super) kept: Kept,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Failure {
    /// Since the load began.
    pub(super) at_millis: u64,
    pub(super) url: String,
    /// The client's own address and port.
    #[serde(default)]
    pub(super) own: Option<SocketAddrV4>,
    pub(super) kind: String,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Kept {
    connections: usize,
    pub(super) broken: Vec<Failure>,
}

/// What a scenario may cost.
#[derive(Debug)]
pub(super) struct Requirement {
    /// The same as a sentence.
    pub(super) text: &'static str,
    /// For so long after each event requests may fail.
    pub(super) grace: Duration,
    /// How many may fail within that time through each entry node; without it any number.
    pub(super) failures_per_entry: Option<u64>,
    /// Whether connections that were open may break.
    pub(super) kept_may_break: bool,
    /// How long after the last event all may take to be as before, where that is required.
    pub(super) back_within: Option<Duration>,
}

/// What happened when.
#[derive(Debug, Default)]
pub(super) struct Events {
    /// When something went wrong, or was put right, in milliseconds since 1970: failures are allowed for a
    /// while after each.
    pub(super) moments: Vec<u64>,
    /// From the first moment until new connections avoid what is lost.
    pub(super) out: Option<Duration>,
    /// From the last moment until it has its share again.
    pub(super) back: Option<Duration>,
}

/// A row.
#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    scenario: &'static str,
    required: &'static str,
    /// Requests on new connections.
    requests: u64,
    failed: u64,
    /// Those of them that were sent later than the scenario allows, or are more than it allows.
    too_late: u64,
    /// When the last failed request was sent, after the event before it, in milliseconds.
    last_failure_millis: Option<u64>,
    kept: usize,
    kept_broken: usize,
    out_millis: Option<u64>,
    back_millis: Option<u64>,
    /// How many failures each kind has: refused, reset, timeout, error.
    failures: BTreeMap<String, u64>,
    /// The same for each entry node's URL, of those that are listed.
    failures_by_entry: BTreeMap<String, BTreeMap<String, u64>>,
    /// Why there are no figures.
    error: Option<String>,
    ok: bool,
}

impl Outcome {
    /// The outcome of a scenario that ran to its end.
    pub(super) fn of(
        scenario: &'static str,
        required: &'static Requirement,
        report: Report,
        events: &Events,
    ) -> Self {
        let failed: u64 = report.failures.values().sum();
        let since = |failure: &Failure| {
            let at = report.began + failure.at_millis;
            let before = events.moments.iter().filter(|moment| **moment <= at);
            before.max().map(|moment| at - moment)
        };
        let late = |failure: &&Failure| since(failure).is_none_or(|after| after > millis(required.grace));
        let listed = report.failed.len() as u64;
        // Those that are not listed came after those that are.
        let mut too_late = report.failed.iter().filter(late).count() as u64 + failed.saturating_sub(listed);
        if let Some(most) = required.failures_per_entry {
            let most = most * entries(&report.failed);
            let in_time = failed - too_late;
            too_late += in_time.saturating_sub(most);
        }
        let kept_broken = report.kept.broken.len();
        let is_back = match (required.back_within, events.back) {
            (Some(limit), Some(back)) => back <= limit,
            (Some(_), None) => false,
            (None, _) => true,
        };
        let ok = too_late == 0 && is_back && (required.kept_may_break || kept_broken == 0);
        Self {
            scenario,
            required: required.text,
            requests: report.attempts,
            failed,
            too_late,
            last_failure_millis: report.failed.iter().filter_map(since).max(),
            kept: report.kept.connections,
            kept_broken,
            out_millis: events.out.map(millis),
            back_millis: events.back.map(millis),
            failures: report.failures,
            failures_by_entry: by_entry(report.failed),
            error: None,
            ok,
        }
    }

    /// The outcome of one that could not be played.
    pub(super) fn not_played(
        scenario: &'static str,
        required: &'static Requirement,
        error: &anyhow::Error,
    ) -> Self {
        Self {
            scenario,
            required: required.text,
            requests: 0,
            failed: 0,
            too_late: 0,
            last_failure_millis: None,
            kept: 0,
            kept_broken: 0,
            out_millis: None,
            back_millis: None,
            failures: BTreeMap::new(),
            failures_by_entry: BTreeMap::new(),
            error: Some(format!("{error:#}")),
            ok: false,
        }
    }

    /// Whether it met its requirement.
    pub(super) fn holds(&self) -> bool {
        self.ok
    }

    /// The row's cells.
    pub(super) fn cells(&self) -> [String; 10] {
        let time = |millis: Option<u64>| millis.map_or("-".to_owned(), |millis| format!("{millis} ms"));
        [
            self.scenario.to_owned(),
            self.requests.to_string(),
            self.failed.to_string(),
            self.too_late.to_string(),
            time(self.last_failure_millis),
            self.kept.to_string(),
            self.kept_broken.to_string(),
            time(self.out_millis),
            time(self.back_millis),
            if self.ok { "yes" } else { "NO" }.to_owned(),
        ]
    }

    /// The outcome in a sentence, as it is known.
    pub(super) fn sentence(&self) -> String {
        if let Some(error) = &self.error {
            return format!("could not be played: {error}");
        }
        format!(
            "{} of {} requests failed {:?}, {} of them too late; {} of {} kept connections broke{}{}",
            self.failed,
            self.requests,
            self.failures,
            self.too_late,
            self.kept_broken,
            self.kept,
            self.back_millis.map_or(String::new(), |millis| format!(
                "; all was as before after {millis} ms"
            )),
            if self.ok {
                String::new()
            } else {
                format!(": NOT as required ({})", self.required)
            }
        )
    }
}

/// Through how many entry nodes requests failed.
fn entries(failed: &[Failure]) -> u64 {
    let entries: BTreeSet<&str> = failed.iter().map(|failure| host(&failure.url)).collect();
    entries.len() as u64
}

/// The node's address in a URL, whatever the protocol and the port.
pub(super) fn host(url: &str) -> &str {
    let address = url.split_once("://").map_or(url, |(_, address)| address);
    address.split([':', '/']).next().unwrap_or(address)
}

fn by_entry(failed: Vec<Failure>) -> BTreeMap<String, BTreeMap<String, u64>> {
    let mut by_entry: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
    for failure in failed {
        *by_entry
            .entry(failure.url)
            .or_default()
            .entry(failure.kind)
            .or_default() += 1;
    }
    by_entry
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A_SECOND: Requirement = Requirement {
        text: "nothing lost later than a second",
        grace: Duration::from_secs(1),
        failures_per_entry: None,
        kept_may_break: false,
        back_within: None,
    };
    const THREE_EACH: Requirement = Requirement {
        text: "at most three each",
        failures_per_entry: Some(3),
        ..A_SECOND
    };

    fn outcome(required: &'static Requirement, report: Report, moments: &[u64]) -> Outcome {
        let events = Events {
            moments: moments.to_vec(),
            ..Events::default()
        };
        Outcome::of("some", required, report, &events)
    }

    fn report(at_millis: &[u64]) -> Report {
        let failed = at_millis.iter().map(|at| Failure {
            at_millis: *at,
            url: "http://a/".to_owned(),
            own: None,
            kind: "timeout".to_owned(),
        });
        Report {
            began: 0,
            attempts: 100,
            failures: [("timeout".to_owned(), at_millis.len() as u64)].into(),
            failed: failed.collect(),
            kept: Kept::default(),
        }
    }

    #[test]
    fn failures_within_the_grace_of_an_event_are_allowed() {
        let outcome = outcome(&A_SECOND, report(&[1000, 1900, 5100]), &[1000, 5000]);
        assert!(outcome.holds(), "{outcome:?}");
        assert_eq!(outcome.last_failure_millis, Some(900));
    }

    #[test]
    fn failures_before_an_event_or_after_its_grace_are_not() {
        for at in [999, 2001, 4999] {
            let outcome = outcome(&A_SECOND, report(&[at]), &[1000, 5000]);
            assert_eq!((outcome.holds(), outcome.too_late), (false, 1), "{at}");
        }
    }

    #[test]
    fn failures_that_are_only_counted_are_too_late() {
        let mut report = report(&[1000]);
        report.failures.insert("refused".to_owned(), 300);
        let outcome = outcome(&A_SECOND, report, &[1000]);
        assert_eq!((outcome.holds(), outcome.too_late), (false, 300));
    }

    #[test]
    fn what_must_be_back_in_time_is() {
        const BACK: Requirement = Requirement {
            back_within: Some(Duration::from_secs(2)),
            ..A_SECOND
        };
        for (back, holds) in [(Some(2000), true), (Some(2001), false), (None, false)] {
            let events = Events {
                back: back.map(Duration::from_millis),
                ..Events::default()
            };
            let outcome = Outcome::of("some", &BACK, report(&[]), &events);
            assert_eq!(outcome.holds(), holds, "{back:?}");
        }
    }

    #[test]
    fn a_bound_on_failures_holds_for_each_entry_node() {
        let three = outcome(&THREE_EACH, report(&[1000, 1000, 1000]), &[1000]);
        assert!(three.holds(), "{three:?}");
        let four = outcome(&THREE_EACH, report(&[1000; 4]), &[1000]);
        assert_eq!((four.holds(), four.too_late), (false, 1));
    }
}
