//! Where the cluster's state comes from: Swarm on managers, a manager's feed on workers. Imports the model
//! only; readers of the snapshot cannot tell the sources apart.

pub mod announcements;
pub mod certificates;
pub mod feed;
pub mod hint;
pub(crate) mod labels;
pub mod relay;
#[cfg(test)]
pub(crate) mod scenario;
pub mod swarm;
#[cfg(test)]
pub(crate) mod test_authority;

use std::{sync::Arc, time::SystemTime};

use crate::model::{Cluster, Replicas, TunnelKey};

pub use announcements::Announcements;
pub use certificates::{
    CertificateError, CertificateWatcher, NodeIdentity, Subject, SubjectError, UnlockError,
};
pub use feed::{
    Acknowledged, Announcer, AnnouncerOptions, CheckError, FeedClient, FeedClientOptions, FeedError,
    FeedServer, FeedServerOptions, FeedServerStatus, Served, check,
};
pub use hint::HintHandle;
pub use relay::{Relay, RelayError, RelayedRequest};
pub use swarm::SwarmSource;

/// The latest snapshot of the cluster, published on a `tokio::sync::watch` channel.
///
/// Receivers are woken when the snapshot, its origin or its trouble changes. `confirmed` advances several
/// times a second without waking them: borrow the channel's value to read it.
#[derive(Clone, Debug, Default)]
pub struct SourceState {
    /// The snapshot; empty until the first one arrives.
    pub cluster: Arc<Cluster>,
    /// Counts the changes at the snapshot's origin. Worker and manager agree on it.
    pub revision: u64,
    /// The version of the newest object in the snapshot, by which managers' snapshots can be compared; 0
    /// where the source has none. It advances without waking receivers, like `confirmed`.
    pub epoch: u64,
    /// When the snapshot was last confirmed to be current (by a poll of the engine or a heartbeat of the
    /// feed); `None` before the first.
    pub confirmed: Option<SystemTime>,
    /// When the event that led to this revision was first seen by the origin.
    pub changed: Option<SystemTime>,
    /// The replicas of all services; empty where the source does not know them (a worker of a Swarm). Not
    /// part of the snapshot, which has published services only. They change without waking receivers.
    pub replicas: Arc<Vec<Replicas>>,
    /// The key of packets between nodes; `None` while it is not known. Not part of the snapshot, which is
    /// shown and logged.
    pub key: Option<TunnelKey>,
    /// Where it comes from, for display: `this manager's engine`, or `manager 192.168.0.1:7946`.
    pub origin: String,
    /// What is wrong with the source; `None` while it works. The last snapshot stays in use.
    pub trouble: Option<String>,
    /// Whether no manager's agent can be reached at all: nothing accepts connections there. What this node's
    /// agent is like cannot be the reason.
    pub no_manager: bool,
}

impl SourceState {
    /// Takes the cluster's key over; what is not known replaces none. True if receivers must be notified.
    pub(crate) fn take_key(&mut self, key: Option<TunnelKey>) -> bool {
        let changed = key.is_some() && self.key != key;
        self.key = key.or(self.key);
        changed && self.revision > 0
    }
}
