//! What a host's own rules for IPv6 mean for published ports.

use std::sync::Arc;

/// Whether the rules restrict what comes in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ipv6Rules {
    /// They refuse nothing.
    Open,
    /// They may, or cannot be read: a sentence says which chain does, or why.
    Restricted(Arc<str>),
}
