//! The health checks that services' labels ask for, and the replicas that fail them. Plain data.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// How a service's replicas are checked (labels `mesh.health` and `mesh.health-…`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// What is asked of a replica.
    pub probe: HealthProbe,
    /// The port inside the container, host byte order.
    pub port: u16,
    /// From the beginning of a check to that of the next.
    pub interval: Duration,
    /// A check that takes longer has failed.
    pub timeout: Duration,
    /// So many failures in a row take a replica out of rotation.
    pub fall: u32,
    /// So many successes in a row bring it back.
    pub rise: u32,
}

/// What a check asks of a replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthProbe {
    /// To accept a TCP connection.
    Tcp,
    /// To answer an HTTP request for a path with a status from 200 to 399.
    Http {
        /// The path, with its query.
        path: String,
    },
}

/// The reason of replicas that the mesh cannot reach on their own node.
const OUT_OF_REACH: &str = "no bridge of its node leads to its container";

/// The replicas of one node that fail their check, by the ids of their tasks, and why. Among them are those
/// that the mesh cannot reach there, whether or not they are checked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FailedChecks(BTreeMap<String, String>);

impl FailedChecks {
    /// So many replicas of a node can be out of rotation: what a node announces is limited.
    pub const MAX_TASKS: usize = 128;
    /// Characters of a reason.
    pub const MAX_REASON: usize = 60;

    /// Whether no replica fails.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Why a task of the node fails its check; `None` while it passes, or is not checked.
    #[must_use]
    pub fn reason(&self, task: &str) -> Option<&str> {
        self.0.get(task).map(String::as_str)
    }

    /// Adds a replica; false if there are too many already.
    pub fn insert(&mut self, task: String, reason: &str) -> bool {
        if self.0.len() >= Self::MAX_TASKS && !self.0.contains_key(&task) {
            return false;
        }
        let plain = reason.chars().filter(|character| {
            // What JSON has to escape would make the announcement longer than it may be.
            character.is_ascii_graphic() && !matches!(character, '"' | '\\') || *character == ' '
        });
        self.0.insert(task, plain.take(Self::MAX_REASON).collect());
        true
    }

    /// Adds a replica that the mesh cannot reach on this node; false if there are too many already.
    pub fn insert_out_of_reach(&mut self, task: String) -> bool {
        self.insert(task, OUT_OF_REACH)
    }

    /// Whether the mesh cannot reach a replica on this node.
    #[must_use]
    pub fn is_out_of_reach(&self, task: &str) -> bool {
        self.reason(task) == Some(OUT_OF_REACH)
    }

    /// Removes a replica; true if it was there.
    pub fn remove(&mut self, task: &str) -> bool {
        self.0.remove(task).is_some()
    }

    /// The replicas and the reasons.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(task, reason)| (task.as_str(), reason.as_str()))
    }
}

impl fmt::Display for HealthCheck {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.probe {
            HealthProbe::Tcp => write!(formatter, "tcp port {}", self.port),
            HealthProbe::Http { path } => write!(formatter, "http port {} {path}", self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_announced_stays_within_its_bounds() {
        let mut failed = FailedChecks::default();
        let reason = "\"\\\n\u{e9}".repeat(20) + &"x".repeat(200);
        for number in 0..FailedChecks::MAX_TASKS {
            assert!(failed.insert(format!("{number:025}"), &reason));
        }
        assert!(!failed.insert("one too many".to_owned(), "refused"));
        assert!(
            failed.insert(format!("{:025}", 0), "refused"),
            "it is known already"
        );
        assert_eq!(failed.reason(&format!("{:025}", 1)), Some(&*"x".repeat(60)));
        let bytes = serde_json::to_vec(&failed).unwrap().len();
        assert!(bytes < 12 * 1024, "{bytes} bytes");
    }
}
