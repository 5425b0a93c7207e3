//! What a node's agent publishes about its node. Plain data.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A node's registration: removed after three missed heartbeats of its agent.
///
/// Releases ignore the fields that they do not know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Registration {
    /// The address at which other nodes reach it.
    pub address: String,
    /// The state of the node's data path, as agents encode it; opaque here.
    pub datapath: String,
    /// `address:port` at which the agent serves the logs of its tasks, if it does.
    pub logs: Option<String>,
    /// Whether the node's container engine answers.
    pub engine: bool,
    /// Whether the agent is stopping and will soon be back: an upgrade or a restart.
    pub leaving: bool,
    /// Whether another program replaces the agent: it is back once that has checked and loaded the data path.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub replaced: bool,
    /// The agent's release.
    pub release: String,
    /// The release of the node's container engine when the agent started.
    pub engine_version: String,
    /// The ids of the keys that the node's data path takes in other nodes' packets; `None` from an agent that
    /// knows no keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys: Option<Vec<u32>>,
    /// Whether an operator drains every replica of the node: the mesh sends them no new connections.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub drains_node: bool,
    /// The ids of the tasks that an operator drains on the node.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub drained_tasks: Vec<String>,
}
