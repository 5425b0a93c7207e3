//! A node of the cluster: what it is, what it has, and whether it may be given tasks.

use std::{collections::BTreeMap, fmt};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{NodeId, Timestamp};
use crate::spec::{Platform, Resources};

/// One machine of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Its name in the cluster.
    pub id: NodeId,
    /// Host name as the engine reports it.
    pub hostname: String,
    /// The address that other nodes reach it at.
    #[serde(default)]
    pub address: String,
    /// Manager or worker.
    #[serde(default)]
    pub role: NodeRole,
    /// What users have put on it (`node.labels.…`).
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What its engine was configured with (`engine.labels.…`).
    #[serde(default)]
    pub engine_labels: BTreeMap<String, String>,
    /// What it is.
    #[serde(default)]
    pub platform: Platform,
    /// All that it has.
    #[serde(default)]
    pub resources: Resources,
    /// What users allow.
    #[serde(default)]
    pub availability: Availability,
    /// Whether its agent is heard.
    #[serde(default)]
    pub status: NodeStatus,
    /// When `status` last changed.
    #[serde(default)]
    pub status_since: Timestamp,
    /// When it last joined a cluster at work, or came back to it (up again, or active again).
    #[serde(default)]
    pub returned_at: Option<Timestamp>,
}

impl Node {
    /// Whether it can be given new tasks.
    #[must_use]
    pub fn is_schedulable(&self) -> bool {
        self.status == NodeStatus::Ready && self.availability == Availability::Active
    }

    /// Whether the tasks that it has may stay.
    #[must_use]
    pub fn keeps_tasks(&self) -> bool {
        self.status != NodeStatus::Down && self.availability != Availability::Drain
    }

    /// What a constraint's or preference's key stands for here; empty if there is nothing of it.
    #[must_use]
    pub fn attribute(&self, key: &str) -> &str {
        match key {
            "node.id" => self.id.as_str(),
            "node.hostname" => &self.hostname,
            "node.ip" => &self.address,
            "node.role" => self.role.name(),
            "node.platform.os" => &self.platform.os,
            "node.platform.arch" => &self.platform.architecture,
            _ => {
                let found = if let Some(name) = key.strip_prefix("node.labels.") {
                    self.labels.get(name)
                } else if let Some(name) = key.strip_prefix("engine.labels.") {
                    self.engine_labels.get(name)
                } else {
                    None
                };
                found.map_or("", String::as_str)
            }
        }
    }
}

/// A node's part in the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NodeRole {
    /// May lead the cluster.
    Manager,
    /// Only runs tasks.
    #[default]
    Worker,
}

impl NodeRole {
    /// The name in constraints and columns.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Manager => "manager",
            Self::Worker => "worker",
        }
    }
}

/// What users allow on a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Availability {
    /// New tasks.
    #[default]
    Active,
    /// No new tasks; those that run stay.
    Pause,
    /// No tasks.
    Drain,
}

impl fmt::Display for Availability {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Active => "active",
            Self::Pause => "pause",
            Self::Drain => "drain",
        })
    }
}

/// Whether a node's agent is heard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NodeStatus {
    /// Not yet heard, or heard without its engine: nothing new there, nothing taken away.
    #[default]
    Unknown,
    /// Heard.
    Ready,
    /// Silent for too long.
    Down,
}

impl fmt::Display for NodeStatus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Unknown => "unknown",
            Self::Ready => "ready",
            Self::Down => "down",
        })
    }
}
