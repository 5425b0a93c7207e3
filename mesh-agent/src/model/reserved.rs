//! Ports of a node that the cluster itself needs.

use serde::{Deserialize, Serialize};

use super::Protocol;

/// A port that is never a frontend, whatever publishes it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ReservedPort {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Host byte order.
    pub port: u16,
    /// What it is, with the flag that sets it: `the mesh's feed (--feed-port)`.
    pub purpose: String,
}
