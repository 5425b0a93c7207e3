//! The report of a load: one line of JSON that says what failed, how and when.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use anyhow::Result;
use hyper::Uri;
use serde::{Deserialize, Serialize};

use crate::client::outcome_of;

/// How many failures are reported in detail; the rest are counted only.
const MOST_FAILURES: usize = 200;
/// The outcome of a load.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// When it began, in milliseconds since 1970.
    pub began: u64,
    /// Requests on new connections.
    pub attempts: u64,
    /// How many were answered.
    pub answered: u64,
    /// How many failed, by kind: `refused`, `reset`, `timeout` or `error`.
    pub failures: BTreeMap<String, u64>,
    /// The first failures in detail, in the order in which they were sent.
    pub failed: Vec<Failure>,
    /// How long the answered ones took.
    pub latency: Latency,
    /// How many each task answered.
    pub tasks: BTreeMap<String, u64>,
    /// TCP segments that were retransmitted in this network namespace meanwhile: lost, but not for good.
    pub retransmitted: u64,
    /// The SYNs among them: lost ones after a second, and at once those whose port had an earlier connection
    /// that is still closing at the replica.
    pub syn_retransmitted: u64,
    /// The connections that stayed open.
    pub kept: Kept,
}

/// A failed request, or a broken connection.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// When it was sent, in milliseconds since the beginning.
    pub at_millis: u64,
    /// The address.
    pub url: String,
    /// The client's own address and port; `None` if it got none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own: Option<SocketAddr>,
    /// `refused`, `reset`, `timeout` or `error`.
    pub kind: String,
    /// The error.
    pub error: String,
}

/// Milliseconds that requests took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// The median.
    pub p50: f64,
    /// The 90th percentile.
    pub p90: f64,
    /// The 99th percentile.
    pub p99: f64,
    /// The slowest.
    pub max: f64,
}

/// The outcome of the connections that stay open.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// How many.
    pub connections: usize,
    /// Answered requests on them.
    pub requests: u64,
    /// Each time that one broke, or could not be opened again.
    pub broken: Vec<Failure>,
    /// How long the answered requests took.
    pub latency: Latency,
}

impl Report {
    /// All requests on new connections that failed.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures.values().sum()
    }
}

/// A request that has ended, and the task that answered.
pub(super) struct Ended {
    /// Since the load began.
    pub(super) sent: Duration,
    pub(super) url: Uri,
    /// The client's own address, where it is known.
    pub(super) own: Option<SocketAddr>,
    pub(super) took: Duration,
    pub(super) outcome: Result<String>,
}

pub(super) fn report(mut ended: Vec<Ended>) -> Report {
    ended.sort_by_key(|one| one.sent);
    let mut report = Report {
        attempts: ended.len() as u64,
        latency: latency(&ended),
        ..Report::default()
    };
    for one in ended {
        match &one.outcome {
            Ok(task) => {
                report.answered += 1;
                *report.tasks.entry(task.clone()).or_default() += 1;
            }
            Err(error) => {
                *report.failures.entry(outcome_of(error).to_owned()).or_default() += 1;
                if report.failed.len() < MOST_FAILURES {
                    report.failed.push(failure(&one, error));
                }
            }
        }
    }
    report
}

pub(super) fn kept_report(connections: Vec<Vec<Ended>>) -> Kept {
    let count = connections.len();
    let ended: Vec<Ended> = connections.into_iter().flatten().collect();
    let broken = ended
        .iter()
        .filter_map(|one| Some(failure(one, one.outcome.as_ref().err()?)))
        .collect();
    Kept {
        connections: count,
        requests: ended.iter().filter(|one| one.outcome.is_ok()).count() as u64,
        broken,
        latency: latency(&ended),
    }
}

fn failure(one: &Ended, error: &anyhow::Error) -> Failure {
    Failure {
        at_millis: u64::try_from(one.sent.as_millis()).unwrap_or(u64::MAX),
        url: one.url.to_string(),
        own: one.own,
        kind: outcome_of(error).to_owned(),
        error: format!("{error:#}"),
    }
}

fn latency(ended: &[Ended]) -> Latency {
    let answered = ended.iter().filter(|one| one.outcome.is_ok());
    let mut millis: Vec<f64> = answered.map(|one| one.took.as_secs_f64() * 1000.0).collect();
    millis.sort_by(f64::total_cmp);
    let Some(last) = millis.len().checked_sub(1) else {
        return Latency::default();
    };
    let of = |percent: usize| millis[last * percent / 100];
    Latency {
        p50: of(50),
        p90: of(90),
        p99: of(99),
        max: millis[last],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_answered_requests() {
        let ended: Vec<Ended> = (0..=100)
            .map(|millis| Ended {
                sent: Duration::ZERO,
                url: Uri::default(),
                own: None,
                took: Duration::from_millis(millis),
                outcome: if millis == 100 {
                    Err(anyhow::anyhow!("lost"))
                } else {
                    Ok("web.1".into())
                },
            })
            .collect();
        let latency = latency(&ended);
        assert_eq!((latency.p50, latency.p99, latency.max), (49.0, 98.0, 99.0));
    }
}
