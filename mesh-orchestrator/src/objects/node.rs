//! A node of the cluster: its attributes, its resources, and whether it can take tasks.

use std::{collections::BTreeMap, fmt};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{NodeId, Timestamp};
use crate::spec::{Platform, Resources};

/// One machine of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// The node's id.
    pub id: NodeId,
    /// Host name, as the engine reports it.
    pub hostname: String,
    /// The address at which other nodes reach it.
    #[serde(default)]
    pub address: String,
    /// Manager or worker.
    #[serde(default)]
    pub role: NodeRole,
    /// Labels that users have set (`node.labels.…`).
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Labels of its engine's configuration (`engine.labels.…`).
    #[serde(default)]
    pub engine_labels: BTreeMap<String, String>,
    /// Operating system and architecture.
    #[serde(default)]
    pub platform: Platform,
    /// Total CPU and memory.
    #[serde(default)]
    pub resources: Resources,
    /// Whether it takes new tasks and keeps those that it has, as set by users.
    #[serde(default)]
    pub availability: Availability,
    /// Whether it is ready, as the leader finds it.
    #[serde(default)]
    pub status: NodeStatus,
    /// When `status` last changed.
    #[serde(default)]
    pub status_since: Timestamp,
    /// When it last joined a cluster that has tasks, or became ready or active again.
    #[serde(default)]
    pub returned_at: Option<Timestamp>,
}

impl Node {
    /// Whether it can take new tasks.
    #[must_use]
    pub fn is_schedulable(&self) -> bool {
        self.status == NodeStatus::Ready && self.availability == Availability::Active
    }

    /// Whether it keeps the tasks that it has.
    #[must_use]
    pub fn keeps_tasks(&self) -> bool {
        self.status != NodeStatus::Down && self.availability != Availability::Drain
    }

    /// The value of a constraint's or preference's key on this node; empty if it has none.
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

/// A node's role in the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NodeRole {
    /// Can become the leader.
    Manager,
    /// Only runs tasks.
    #[default]
    Worker,
}

impl NodeRole {
    /// The role's name in constraints and columns.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Manager => "manager",
            Self::Worker => "worker",
        }
    }
}

/// Whether a node takes and keeps tasks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Availability {
    /// It takes new tasks.
    #[default]
    Active,
    /// It takes no new tasks; those that run stay.
    Pause,
    /// It takes no tasks; those that run move to other nodes.
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

/// Whether a node is ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NodeStatus {
    /// Its agent has not reported yet, or its engine does not answer: it gets no new tasks and keeps those
    /// that it has.
    #[default]
    Unknown,
    /// Its agent and its engine answer.
    Ready,
    /// Its agent has not reported, or its engine has not answered, for too long: its tasks run elsewhere.
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
