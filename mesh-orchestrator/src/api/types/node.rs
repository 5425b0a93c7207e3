//! Nodes, and what users may change of them.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    cluster::Registration,
    objects::{Availability, Node},
    spec::Resources,
};

/// A node, and what runs on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeView {
    /// Whether its agent runs the control loops.
    pub leader: bool,
    /// What its agent says of itself; `null` while the agent is not heard.
    #[serde(default)]
    pub registration: Option<Registration>,
    /// Tasks that run there.
    pub running: u32,
    /// What its tasks have reserved.
    #[serde(default)]
    pub reserved: Resources,
    /// The node.
    #[serde(flatten)]
    pub node: Node,
}

/// What to change of a node; what is left out stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NodePatch {
    /// What it may be given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub availability: Option<Availability>,
    /// Labels to set; `null` removes one.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, Option<String>>,
}
