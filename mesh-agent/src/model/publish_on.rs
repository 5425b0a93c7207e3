//! Where a service's ports are published, as its labels say. Pure.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{NodeCondition, Prefix};

/// The nodes, and on them the addresses and interfaces, where a service is published. A list without entries
/// limits nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishOn {
    /// The addresses that clients may dial.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<Prefix>,
    /// The interfaces by which clients of the network may come in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<String>,
    /// What a node must be: all of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<NodeCondition>,
}

impl PublishOn {
    /// Whether it is everywhere.
    #[must_use]
    pub fn is_everywhere(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for PublishOn {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses = self.addresses.iter().map(Prefix::to_string);
        let interfaces = self.interfaces.iter().cloned();
        let nodes = self.nodes.iter().map(NodeCondition::to_string);
        let entries: Vec<_> = addresses.chain(interfaces).chain(nodes).collect();
        formatter.write_str(&entries.join(","))
    }
}
