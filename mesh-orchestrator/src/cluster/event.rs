//! What is told of each change of the cluster. Plain data; imports `objects`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{objects::Timestamp, store::Revision};

/// Of what kind the changed object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A service.
    Service,
    /// A task.
    Task,
    /// A node.
    Node,
    /// A node's agent: whether it is heard, and what it says of itself.
    Registration,
}

/// What became of the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventAction {
    /// It is new.
    Create,
    /// It is another.
    Update,
    /// It is gone.
    Remove,
}

/// One object has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// Of which kind it is.
    pub kind: EventKind,
    /// Its identifier.
    pub id: String,
    /// What people call it: a service's or task's name, a node's host name.
    pub name: String,
    /// What became of it.
    pub action: EventAction,
    /// The store's revision that made it so.
    pub revision: Revision,
    /// When it was seen here.
    pub time: Timestamp,
}
