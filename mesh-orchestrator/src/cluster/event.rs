//! Events about the cluster's objects. Plain data; imports `objects`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{objects::Timestamp, store::Revision};

/// The kind of the changed object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A service.
    Service,
    /// A task.
    Task,
    /// A node.
    Node,
    /// A node's registration by its agent.
    Registration,
}

/// What happened to the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventAction {
    /// It was created.
    Create,
    /// It was changed.
    Update,
    /// It was removed.
    Remove,
}

/// A change of one object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// Its kind.
    pub kind: EventKind,
    /// Its identifier.
    pub id: String,
    /// A service's or task's name, a node's host name.
    pub name: String,
    /// What happened to it.
    pub action: EventAction,
    /// The store's revision of the change.
    pub revision: Revision,
    /// When this node saw it.
    pub time: Timestamp,
}
