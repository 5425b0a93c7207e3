//! Nodes, and changes of them by users.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    cluster::Registration,
    objects::{Availability, Node},
    spec::Resources,
};

/// A node and what runs on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeView {
    /// Whether its agent is the leader, which runs the control loops.
    pub leader: bool,
    /// Its agent's registration; `null` while the agent is not registered.
    #[serde(default)]
    pub registration: Option<Registration>,
    /// Number of tasks that run on it.
    pub running: u32,
    /// What its tasks reserve.
    #[serde(default)]
    pub reserved: Resources,
    /// The node.
    #[serde(flatten)]
    pub node: Node,
}

/// A worker without access to the store, to be admitted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WorkerAdmission {
    /// The name in its certificate (the subject's common name), which is the node's name.
    pub name: String,
    /// Its labels; it cannot set them itself.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// Changes of a node; fields that are left out stay.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NodePatch {
    /// Whether it takes and keeps tasks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub availability: Option<Availability>,
    /// Labels to set; `null` removes one.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, Option<String>>,
}
