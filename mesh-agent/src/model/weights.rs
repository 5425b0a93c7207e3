//! The weights of a service's replicas by the nodes that they run on, as its label says. Pure.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::NodeCondition;

/// Weights by conditions on nodes. The first condition that holds decides; where none does, the node's own
/// weight.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Weights(pub Vec<NodeWeight>);

/// The weight of replicas on certain nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeWeight {
    /// Which nodes.
    pub condition: NodeCondition,
    /// The weight.
    pub weight: u32,
}

impl Weights {
    /// Whether the nodes' own weights hold everywhere.
    #[must_use]
    pub fn are_the_nodes(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Weights {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, NodeWeight { condition, weight }) in self.0.iter().enumerate() {
            let before = if number == 0 { "" } else { "," };
            write!(formatter, "{before}{condition}:{weight}")?;
        }
        Ok(())
    }
}
