//! Conditions on nodes, as services' labels state them. Pure.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A condition on a node, as Swarm's placement constraints are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeCondition {
    /// What is compared.
    pub subject: NodeSubject,
    /// Whether it must be equal, rather than different.
    pub equal: bool,
    /// With what; case does not matter.
    pub value: String,
}

/// What a condition on a node is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeSubject {
    /// `node.id`
    Id,
    /// `node.hostname`
    Hostname,
    /// `node.role`
    Role,
    /// `node.labels.NAME`; a label that the node does not have is empty.
    Label(String),
}

impl fmt::Display for NodeCondition {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let operator = if self.equal { "==" } else { "!=" };
        let value = &self.value;
        match &self.subject {
            NodeSubject::Id => write!(formatter, "node.id{operator}{value}"),
            NodeSubject::Hostname => write!(formatter, "node.hostname{operator}{value}"),
            NodeSubject::Role => write!(formatter, "node.role{operator}{value}"),
            NodeSubject::Label(label) => write!(formatter, "node.labels.{label}{operator}{value}"),
        }
    }
}
