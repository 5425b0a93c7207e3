//! The orchestrator's HTTP API, version 1: JSON over a Unix socket or TLS. Depends on the cluster, the vault
//! and the snapshots; nothing of ours depends on it. [`types`] is what goes over the wire, for servers and
//! clients alike.
//!
//! ```text
//! request ─► router ─► admit (scope) ─► Call (path, query, body: bounded) ─► handler ─► cluster, vault, store
//!              ▲
//!         table of operations ─► OpenAPI document
//! ```
//!
//! Invariants:
//! - Every operation is in the table, with the scope it needs; there is no other way to the handlers.
//! - What callers send is bounded: bytes, arguments, streams at a time, calls of a webhook.
//! - Objects change by `commands` through the cluster, under the revision that the caller has read.
//! - No secret is in an answer, but for what is answered once when it is made, and webhooks' URLs.

mod access;
mod call;
mod error;
mod events;
mod files;
mod history;
mod images;
mod limits;
mod logs;
mod nodes;
mod openapi;
mod operation;
mod patch;
mod records;
mod reference;
mod registries;
mod router;
mod services;
mod snapshots;
mod table;
mod tasks;
mod tokens;
pub mod types;
mod views;
mod webhooks;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::{http::StatusCode, response::Response};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub use self::{
    access::Access,
    images::{ImageResolver, ResolveError},
    logs::{LogOptions, LogTarget, Logs, LogsError, Peers, TaskLine},
};
use self::{call::Call, error::ApiError, events::Events, limits::RateLimit, types::OrchestratorView};
use crate::{cluster::Cluster, objects::NodeId, objects::Task, secrets::Vault, store::Store};

/// Calls of one webhook that are let through at once.
const WEBHOOK_BURST: u32 = 6;

/// The time after which a webhook may be called once more.
const WEBHOOK_INTERVAL: Duration = Duration::from_secs(10);

/// Streams of events and logs at a time.
const STREAMS: usize = 64;

/// What the API is made of.
#[derive(Debug)]
pub struct Parts {
    /// The cluster's objects.
    pub cluster: Cluster,
    /// What is kept encrypted.
    pub vault: Arc<Vault>,
    /// This node.
    pub node: NodeId,
    /// The folder of this node's snapshots.
    pub snapshots: PathBuf,
    /// What webhooks' URLs begin with: `https://node1.example.com:9470`. They are paths without it.
    pub public_url: Option<String>,
    /// This node's logs.
    pub logs: Arc<dyn Logs>,
    /// The other nodes' logs.
    pub peers: Arc<dyn Peers>,
    /// What tags mean.
    pub images: Arc<dyn ImageResolver>,
}

/// The API of one node; clones are handles on the same one.
#[derive(Clone)]
pub struct Api {
    inner: Arc<Inner>,
}

struct Inner {
    parts: Parts,
    events: Events,
    streams: Arc<Semaphore>,
    webhook_limit: RateLimit,
}

impl fmt::Debug for Api {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Api")
            .field("node", &self.inner.parts.node)
            .finish_non_exhaustive()
    }
}

impl Api {
    /// Puts the API together; begins to remember events. Call it inside a tokio runtime.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self {
            inner: Arc::new(Inner {
                events: Events::start(&parts.cluster),
                parts,
                streams: Arc::new(Semaphore::new(STREAMS)),
                webhook_limit: RateLimit::new(WEBHOOK_BURST, WEBHOOK_INTERVAL),
            }),
        }
    }

    fn cluster(&self) -> &Cluster {
        &self.inner.parts.cluster
    }

    fn store(&self) -> &Arc<dyn Store> {
        self.inner.parts.cluster.store()
    }

    fn vault(&self) -> &Vault {
        &self.inner.parts.vault
    }

    fn node(&self) -> &NodeId {
        &self.inner.parts.node
    }

    fn snapshot_folder(&self) -> &Path {
        &self.inner.parts.snapshots
    }

    fn public_url(&self) -> Option<&str> {
        self.inner.parts.public_url.as_deref()
    }

    fn logs(&self) -> &dyn Logs {
        self.inner.parts.logs.as_ref()
    }

    fn peers(&self) -> &dyn Peers {
        self.inner.parts.peers.as_ref()
    }

    fn images(&self) -> &dyn ImageResolver {
        self.inner.parts.images.as_ref()
    }

    fn events(&self) -> &Events {
        &self.inner.events
    }

    fn webhook_limit(&self) -> &RateLimit {
        &self.inner.webhook_limit
    }

    /// Room for one more stream, as long as it is kept.
    fn stream_permit(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        Arc::clone(&self.inner.streams).try_acquire_owned().map_err(|_| {
            ApiError::new(
                StatusCode::TOO_MANY_REQUESTS,
                format!("{STREAMS} streams of events and logs are open on this node already: close one"),
            )
            .retry_after(5)
        })
    }
}

/// The orchestrator, as this node sees it.
async fn orchestrator(call: Call) -> Result<Response, ApiError> {
    let cluster = call.api.cluster();
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let leader = cluster.leader().map(|leader| leader.to_string());
    let revision = cluster.revision();
    let (nodes, services, tasks) = cluster.read(|state| {
        (
            state.nodes().len(),
            state.services().len(),
            state
                .tasks()
                .values()
                .filter(|task| Task::is_running(task))
                .count(),
        )
    });
    call::ok(&OrchestratorView {
        release: env!("CARGO_PKG_VERSION").to_owned(),
        node: call.api.node().to_string(),
        leader,
        store: cluster.store().describe(),
        available: *cluster.available().borrow(),
        revision,
        nodes: count(nodes),
        services: count(services),
        tasks: count(tasks),
    })
}
