//! What a node's agent says of itself as long as it is heard. Plain data.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A node's registration: there while its agent is heard, gone after three missed heartbeats.
///
/// What a newer release adds to it is ignored by an older one, and the other way round.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Registration {
    /// The address that other nodes reach it at.
    pub address: String,
    /// What the data path of the node is, in the agents' own words; means nothing here.
    pub datapath: String,
    /// `address:port` at which the agent serves the logs of its tasks, if it does.
    pub logs: Option<String>,
    /// Whether the node's container engine answers.
    pub engine: bool,
    /// The agent ends, and will be back soon: an upgrade or a restart.
    pub leaving: bool,
    /// The agent's release.
    pub release: String,
    /// The release of the node's container engine, as it said when the agent started.
    pub engine_version: String,
}
