//! What the limits of new connections do to services at this node, as a data path reports it.

use std::collections::BTreeMap;

use crate::model::ServiceKey;

/// The services that have had more new connections than one of their limits; others are not listed.
pub type LimitedServices = BTreeMap<ServiceKey, Limited>;

/// What a service's limits of new connections have done at this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limited {
    /// Whether it has had more new flows in the last second than its flood limit.
    pub is_flooded: bool,
    /// First packets past the service's limit (label `mesh.max-new-connections`).
    pub max_new: Dropped,
    /// First packets past the limit of one client (label `mesh.max-new-connections-per-source`).
    pub max_new_per_source: Dropped,
}

/// First packets of connections that were dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// In about the last minute, as far as the agent was running.
    pub last_minute: u64,
    /// Since the data path has the service.
    pub total: u64,
}
