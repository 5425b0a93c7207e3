//! Where the cluster's picture comes from: Swarm itself on managers, a manager's feed on workers.
//! Imports the model only; whoever reads the picture cannot tell the sources apart.

mod backoff;
pub mod certificates;
pub mod docker;
pub mod feed;
pub mod hint;
pub(crate) mod labels;
pub mod presence;
pub mod swarm;
#[cfg(test)]
pub(crate) mod test_authority;

use std::{sync::Arc, time::SystemTime};

use crate::model::Cluster;

pub(crate) use backoff::Backoff;
pub use certificates::{CertificateError, CertificateWatcher, NodeIdentity, Subject, SubjectError};
pub use docker::{Docker, DockerError, EngineInfo};
pub use feed::{
    Announcer, AnnouncerOptions, FeedClient, FeedClientOptions, FeedError, FeedServer, FeedServerOptions,
    FeedServerStatus, Told,
};
pub use hint::HintHandle;
pub use presence::Presence;
pub use swarm::SwarmSource;

/// The latest picture of the cluster, as published on a `tokio::sync::watch` channel.
///
/// Receivers are woken when the picture, its origin or its trouble changes. `confirmed` moves on
/// several times a second without waking anybody: borrow the channel's value to read it.
#[derive(Clone, Debug, Default)]
pub struct SourceState {
    /// The picture; empty until the first one arrives.
    pub cluster: Arc<Cluster>,
    /// Counts the changes of the picture at its origin. Worker and manager agree on it.
    pub revision: u64,
    /// When the picture was last confirmed to be current (a poll of the manager, or a heartbeat of the
    /// feed); `None` before the first.
    pub confirmed: Option<SystemTime>,
    /// When the event that led to this revision was first seen by the origin.
    pub changed: Option<SystemTime>,
    /// Where it comes from, for people: `this manager's engine`, or `manager 192.168.0.1:7946`.
    pub origin: String,
    /// What is wrong with the source just now; `None` while it works. The last picture stays in force.
    pub trouble: Option<String>,
}
