//! Why a command is refused.

use crate::{
    objects::{NodeId, ServiceId},
    spec::SpecError,
};

/// Why a command is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The specification is invalid, or does not fit the cluster.
    #[error("invalid service specification")]
    Spec(#[from] SpecError),
    /// The name belongs to another service.
    #[error("a service named {0} already exists: choose another name, or update that service")]
    NameTaken(String),
    /// There is no such service.
    #[error("no such service: {0}")]
    UnknownService(ServiceId),
    /// There is no such node.
    #[error("no such node: {0}")]
    UnknownNode(NodeId),
    /// The service has changed since it was read.
    #[error("service {name} is at version {found}, not {expected}: read it again and repeat the change")]
    OutOfDate {
        /// The service's name.
        name: String,
        /// The version that the command was made from.
        expected: u64,
        /// The current version.
        found: u64,
    },
    /// The specification has never changed.
    #[error("service {0} has no previous specification to roll back to")]
    NothingToRollBack(String),
    /// A service cannot change its mode.
    #[error("service {name} is {from} and cannot become {to}: remove it and create it again")]
    ModeChange {
        /// The service's name.
        name: String,
        /// Its mode.
        from: &'static str,
        /// The requested mode.
        to: &'static str,
    },
    /// The service has no number of replicas.
    #[error("service {0} is not replicated: only replicated services can be scaled or rebalanced")]
    NotReplicated(String),
    /// No node can have the name.
    #[error("{0:?} is not a node's name: that has 1 to 63 letters, digits, '-', '_' and '.'")]
    NodeName(String),
    /// A node has the name already.
    #[error("there is a node {0} already: remove that first, or use another name")]
    NodeExists(String),
    /// The node is still ready.
    #[error("node {0} is not down: drain it and stop its agent first")]
    NodeNotDown(String),
    /// The same of a worker without access to the store.
    #[error("worker {0} is not down: drain it and stop its agent first, or revoke it at once with --force")]
    WorkerNotDown(String),
    /// Nothing is known of the node.
    #[error(
        "the status of node {0} is unknown, so that its tasks may run: wait until it is down, or use --force if it is switched off"
    )]
    NodeUnknown(String),
}
