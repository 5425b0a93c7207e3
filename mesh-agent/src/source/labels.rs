//! The mesh's labels on services and nodes. Pure.

mod clients;
mod health;
mod idle_limits;
mod limits;
mod node_condition;
mod publish_on;
mod weights;

use std::{ops::RangeInclusive, time::Duration};

use mesh_support::duration;

use crate::{
    docker::api::Labels,
    model::{
        Algorithm, Balance, Clients, HealthCheck, IdleLimits, Limits, PublishOn, PublishedPort, Weights,
    },
};

/// On a service: the balancing algorithm.
const SCHEDULER: &str = "mesh.scheduler";
/// On a service: for how many seconds a client stays with its replica.
const AFFINITY: &str = "mesh.affinity";
/// On a service: whether each node chooses its own replicas first.
const PREFER_LOCAL: &str = "mesh.prefer-local";
/// On a service: over what time a new replica's share grows.
const SLOW_START: &str = "mesh.slow-start";
/// The times that may be.
const SLOW_STARTS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(60 * 60);
/// On a node: the share of new connections that each of its tasks gets.
const WEIGHT: &str = "mesh.weight";
/// The longest affinity, seconds: a day.
const MAX_AFFINITY: u32 = 24 * 60 * 60;
/// The largest weight.
const MAX_WEIGHT: u32 = 100;

/// A label has an invalid value; the default applies.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("label {label}={value} of {whose}: expected {expected}; using {instead}")]
pub(crate) struct LabelError {
    /// Whose label, e.g. `service web`.
    whose: String,
    label: String,
    value: String,
    expected: String,
    instead: String,
}

impl LabelError {
    /// Of a label, or a part of its value, on the service of this name.
    fn of_service(
        name: &str,
        label: &str,
        value: &str,
        expected: impl Into<String>,
        instead: impl Into<String>,
    ) -> Self {
        Self {
            whose: format!("service {name}"),
            label: shown(label),
            value: shown(value),
            expected: expected.into(),
            instead: instead.into(),
        }
    }
}

/// What a service's labels ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ServiceLabels {
    pub(crate) balance: Balance,
    pub(crate) weights: Weights,
    pub(crate) health: Option<HealthCheck>,
    pub(crate) clients: Clients,
    pub(crate) idle: IdleLimits,
    pub(crate) publish_on: PublishOn,
    pub(crate) limits: Limits,
    pub(crate) drain_timeout: Option<u32>,
    /// The invalid ones.
    pub(crate) errors: Vec<LabelError>,
}

/// What the labels of a service with these published ports ask for.
pub(crate) fn service(name: &str, labels: &Labels, ports: &[PublishedPort]) -> ServiceLabels {
    let (health, errors) = health::health(name, labels, ports);
    ServiceLabels {
        health,
        ..of_data_path(name, labels, errors)
    }
}

/// What the labels of a service ask for whose replicas the orchestrator checks itself.
#[cfg_attr(
    not(feature = "orchestrator"),
    expect(dead_code, reason = "for the orchestrator")
)]
pub(crate) fn orchestrated(name: &str, labels: &Labels) -> ServiceLabels {
    of_data_path(name, labels, health::refused(name, labels))
}

/// What the labels ask of the data path. `errors` are those of the other labels.
fn of_data_path(name: &str, labels: &Labels, errors: Vec<LabelError>) -> ServiceLabels {
    let (balance, of_balance) = balance(name, labels);
    let (weights, of_weights) = weights::weights(name, labels);
    let (clients, of_clients) = clients::clients(name, labels);
    let (idle, of_idle) = idle_limits::idle_limits(name, labels);
    let (drain_timeout, of_drain_timeout) = idle_limits::drain_timeout(name, labels);
    let (publish_on, of_publish_on) = publish_on::publish_on(name, labels);
    let (limits, of_limits) = limits::limits(name, labels);
    ServiceLabels {
        balance,
        weights,
        health: None,
        clients,
        idle,
        publish_on,
        limits,
        drain_timeout,
        errors: [
            of_balance,
            of_weights,
            errors,
            of_clients,
            of_idle,
            of_drain_timeout,
            of_publish_on,
            of_limits,
        ]
        .concat(),
    }
}

/// How a service is balanced, and the labels of it that are invalid.
fn balance(name: &str, labels: &Labels) -> (Balance, Vec<LabelError>) {
    let mut errors = Vec::new();
    let mut balance = Balance::default();
    if let Some(value) = labels.get(SCHEDULER) {
        match Algorithm::ALL
            .into_iter()
            .find(|known| known.name() == value.trim())
        {
            Some(algorithm) => balance.algorithm = algorithm,
            None => {
                let expected = format!("one of {}", Algorithm::ALL.map(Algorithm::name).join(", "));
                errors.push(LabelError::of_service(name, SCHEDULER, value, expected, "rr"));
            }
        }
    }
    if let Some(value) = labels.get(AFFINITY) {
        match within(value, MAX_AFFINITY) {
            Some(seconds) => balance.affinity = Some(seconds),
            None => {
                let expected = format!("seconds from 1 to {MAX_AFFINITY}");
                errors.push(LabelError::of_service(
                    name,
                    AFFINITY,
                    value,
                    expected,
                    "no affinity",
                ));
            }
        }
    }
    if let Some(value) = labels.get(PREFER_LOCAL) {
        match value.trim().parse() {
            Ok(prefer_local) => balance.prefer_local = prefer_local,
            Err(_) => errors.push(LabelError::of_service(
                name,
                PREFER_LOCAL,
                value,
                "true or false",
                "false",
            )),
        }
    }
    if let Some(value) = labels.get(SLOW_START) {
        let time = duration::parse(value.trim()).ok();
        match time.filter(|time| SLOW_STARTS.contains(time)) {
            Some(time) => balance.slow_start = Some(time.as_millis().div_ceil(1000) as u32),
            None => errors.push(LabelError::of_service(
                name,
                SLOW_START,
                value,
                "a time from 1s to 1h, like 30s",
                "no slow start",
            )),
        }
    }
    (balance, errors)
}

/// The weight of a node's tasks.
pub(crate) fn weight(name: &str, labels: &Labels) -> (u32, Option<LabelError>) {
    let Some(value) = labels.get(WEIGHT) else {
        return (1, None);
    };
    match within(value, MAX_WEIGHT) {
        Some(weight) => (weight, None),
        None => {
            let error = LabelError {
                whose: format!("node {name}"),
                label: WEIGHT.to_owned(),
                value: shown(value),
                expected: format!("a number from 1 to {MAX_WEIGHT}"),
                instead: "1".to_owned(),
            };
            (1, Some(error))
        }
    }
}

fn within(value: &str, largest: u32) -> Option<u32> {
    let value = value.trim().parse().ok()?;
    (1..=largest).contains(&value).then_some(value)
}

/// The beginning of a value, for a message.
fn shown(value: &str) -> String {
    value.chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn a_service_without_labels_is_balanced_by_rotation() {
        assert_eq!(balance("web", &Labels::new()), (Balance::default(), vec![]));
    }

    #[test]
    fn every_algorithm_is_known_by_its_name() {
        for algorithm in Algorithm::ALL {
            let (balance, errors) = balance("web", &labels(&[("mesh.scheduler", algorithm.name())]));
            assert_eq!((balance.algorithm, errors), (algorithm, vec![]));
        }
    }

    #[test]
    fn affinity_is_in_seconds() {
        let (balance, errors) = balance("web", &labels(&[("mesh.affinity", "300")]));
        assert_eq!((balance.affinity, errors), (Some(300), vec![]));
    }

    #[test]
    fn a_node_prefers_its_own_replicas_if_a_label_says_so() {
        for (value, expected, invalid) in [
            ("true", true, false),
            (" true ", true, false),
            ("false", false, false),
            ("yes", false, true),
            ("", false, true),
        ] {
            let (balance, errors) = balance("web", &labels(&[("mesh.prefer-local", value)]));
            assert_eq!(balance.prefer_local, expected, "{value}");
            let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
            let line = format!(
                "label mesh.prefer-local={value} of service web: expected true or false; using false"
            );
            assert_eq!(errors, if invalid { vec![line] } else { vec![] });
        }
    }

    #[test]
    fn a_slow_start_is_a_time_in_seconds_rounded_up() {
        for (value, expected) in [("30s", 30), ("1500ms", 2), (" 1h ", 3600)] {
            let (balance, errors) = balance("web", &labels(&[("mesh.slow-start", value)]));
            assert_eq!((balance.slow_start, errors), (Some(expected), vec![]));
        }
        for value in ["", "0s", "30", "2h", "slowly"] {
            let (balance, errors) = balance("web", &labels(&[("mesh.slow-start", value)]));
            assert_eq!(balance.slow_start, None, "{value}");
            let line = format!(
                "label mesh.slow-start={value} of service web: expected a time from 1s to 1h, like 30s; using no \
                 slow start"
            );
            assert_eq!(errors.iter().map(ToString::to_string).collect::<Vec<_>>(), [line]);
        }
    }

    #[test]
    fn an_invalid_label_is_reported_and_the_default_applies() {
        let (balance, errors) = balance(
            "web",
            &labels(&[("mesh.scheduler", "fastest"), ("mesh.affinity", "0")]),
        );
        assert_eq!(balance, Balance::default());
        assert_eq!(
            errors.iter().map(ToString::to_string).collect::<Vec<_>>(),
            [
                "label mesh.scheduler=fastest of service web: expected one of rr, wrr, random, mh, lc, wlc; using \
                 rr",
                "label mesh.affinity=0 of service web: expected seconds from 1 to 86400; using no \
                 affinity",
            ]
        );
    }

    #[test]
    fn a_nodes_weight_is_bounded() {
        assert_eq!(weight("n", &labels(&[("mesh.weight", "3")])), (3, None));
        for value in ["0", "101", "-1", "many", ""] {
            let (weight, error) = weight("n", &labels(&[("mesh.weight", value)]));
            assert_eq!(weight, 1, "{value}");
            assert!(error.is_some(), "{value}");
        }
    }
}
