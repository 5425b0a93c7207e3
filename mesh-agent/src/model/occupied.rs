//! Published ports that other sockets of a node are bound to.

use serde::{Deserialize, Serialize};

use super::ServiceKey;

/// A published port that something else of the node serves as well.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct OccupiedPort {
    /// The published port.
    pub service: ServiceKey,
    /// Who serves it, as far as that is known: `process 812 (sshd)`, `container db`.
    pub owner: String,
}
