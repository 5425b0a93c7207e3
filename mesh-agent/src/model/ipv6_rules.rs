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

impl Ipv6Rules {
    /// Why IPv6 is left to whatever else serves it; `None` if it is not.
    #[must_use]
    pub fn reason_to_leave(&self) -> Option<String> {
        match self {
            Self::Open => None,
            Self::Restricted(why) => Some(format!(
                "the mesh would open what the host's own rules may close: {why} (`--ipv6 on` serves it all the same)"
            )),
        }
    }
}
