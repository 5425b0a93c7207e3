//! Where the cluster's state comes from. The rest of the agent knows the [`Source`] trait only.

mod hints;
#[cfg(feature = "orchestrator")]
mod orchestrator;
mod relay;
mod swarm;

use std::sync::Arc;

use async_trait::async_trait;
use axum::Router;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

pub(super) use self::hints::SourceHints;
use self::swarm::Swarm;
use super::{
    AgentError,
    membership::{EngineReport, Member},
};
use crate::{
    config::RunOptions,
    discovery::{ContainerState, Scheduler},
    docker::Docker,
    doctor::WorkerChecks,
    model::{Drained, FailedChecks, KeyId, NodeDatapath},
    process::Ended,
    source::{Acknowledged, FeedServerStatus, Relay, RelayedRequest, SourceState},
};

/// An error of any source.
pub(super) type SourceError = Box<dyn std::error::Error + Send + Sync>;

/// Where the cluster's state comes from: Swarm (its API on a manager, a manager's feed on a worker) or the
/// orchestrator.
#[async_trait]
pub(super) trait Source: Send {
    /// What places the tasks that the mesh serves.
    fn scheduler(&self) -> Scheduler;

    /// This node's membership, where the source determines it; otherwise the engine reports it.
    fn member(&self) -> Option<Member> {
        None
    }

    /// What the admin socket serves in addition to the agent's own API.
    fn routes(&self) -> Router {
        Router::new()
    }

    /// Publishes snapshots of the cluster and announces this node's data path, until `shutdown` is cancelled
    /// or another program is to replace this one.
    async fn run(
        self: Box<Self>,
        channels: Channels,
        shutdown: CancellationToken,
    ) -> Result<Ended, SourceError>;
}

/// A source's channels to the rest of the agent.
#[cfg_attr(
    not(feature = "orchestrator"),
    expect(dead_code, reason = "Swarm does not need all of them")
)]
pub(super) struct Channels {
    /// The snapshots of the cluster.
    pub(super) state: watch::Sender<SourceState>,
    /// This node's data path.
    pub(super) announcement: watch::Receiver<NodeDatapath>,
    /// The ids of the keys that it takes.
    pub(super) keys: watch::Receiver<Vec<KeyId>>,
    /// The replicas that are drained on this node.
    pub(super) drained: watch::Receiver<Drained>,
    /// The replicas on this node that fail their check.
    pub(super) failed: watch::Receiver<FailedChecks>,
    /// On managers: asks other nodes' agents.
    pub(super) relay: Relay,
    /// Carries out what managers ask of this node.
    pub(super) relayed: mpsc::Sender<RelayedRequest>,
    /// Who has acknowledged the data path.
    pub(super) acknowledged: watch::Sender<Acknowledged>,
    /// Whether the data path is up.
    pub(super) is_up: watch::Receiver<bool>,
    /// What the engine reports of this node.
    pub(super) engine: watch::Receiver<EngineReport>,
    /// This node's containers.
    pub(super) containers: watch::Receiver<ContainerState>,
    /// Who is connected to this manager's feed; empty on workers.
    pub(super) workers: watch::Sender<FeedServerStatus>,
    pub(super) hints: SourceHints,
}

/// Opens the source that the options ask for. May wait for the engine or a store, and says in `waits` what
/// for: cancel it by dropping.
///
/// # Errors
/// When waiting would not help.
pub(super) async fn open(
    options: &RunOptions,
    docker: Docker,
    waits: &watch::Sender<Option<String>>,
) -> Result<Box<dyn Source>, AgentError> {
    if options.wants_orchestrator() {
        open_orchestrator(options, docker, waits).await
    } else {
        Ok(Box::new(Swarm::new(options.clone(), docker)))
    }
}

#[cfg(feature = "orchestrator")]
async fn open_orchestrator(
    options: &RunOptions,
    docker: Docker,
    waits: &watch::Sender<Option<String>>,
) -> Result<Box<dyn Source>, AgentError> {
    let opened = crate::orchestrator::open(&options.orchestrator, options.feed_port, docker, waits).await?;
    Ok(Box::new(orchestrator::Orchestrator::new(opened)))
}

#[cfg(not(feature = "orchestrator"))]
async fn open_orchestrator(
    _: &RunOptions,
    _: Docker,
    _: &watch::Sender<Option<String>>,
) -> Result<Box<dyn Source>, AgentError> {
    Err(AgentError::WithoutOrchestrator)
}

/// What the doctor checks on a node without access to the orchestrator's store.
#[cfg(feature = "orchestrator")]
pub(super) fn worker_checks(options: &RunOptions) -> Option<Arc<dyn WorkerChecks>> {
    crate::orchestrator::worker_checks(&options.orchestrator)
}

#[cfg(not(feature = "orchestrator"))]
pub(super) fn worker_checks(_: &RunOptions) -> Option<Arc<dyn WorkerChecks>> {
    None
}
