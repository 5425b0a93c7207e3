//! The API of one node: what its handlers work on.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::Duration,
};

use axum::http::StatusCode;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    error::ApiError,
    event_log::EventLog,
    images::ImageResolver,
    limits::RateLimit,
    log_sources::{Logs, Peers},
};
use crate::{cluster::Cluster, objects::NodeId, secrets::Vault, store::Store};

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
    /// The folder of this node's backups.
    pub backups: PathBuf,
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
    event_log: EventLog,
    streams: Arc<Semaphore>,
    webhook_limit: RateLimit,
}

/// A handle that does not keep the API alive.
pub(super) struct WeakApi(Weak<Inner>);

impl WeakApi {
    pub(super) fn upgrade(&self) -> Option<Api> {
        Some(Api {
            inner: self.0.upgrade()?,
        })
    }
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
                event_log: EventLog::start(&parts.cluster),
                parts,
                streams: Arc::new(Semaphore::new(STREAMS)),
                webhook_limit: RateLimit::new(WEBHOOK_BURST, WEBHOOK_INTERVAL),
            }),
        }
    }

    /// A handle that does not keep the API alive.
    pub(super) fn downgrade(&self) -> WeakApi {
        WeakApi(Arc::downgrade(&self.inner))
    }

    pub(super) fn cluster(&self) -> &Cluster {
        &self.inner.parts.cluster
    }

    pub(super) fn store(&self) -> &Arc<dyn Store> {
        self.inner.parts.cluster.store()
    }

    pub(super) fn vault(&self) -> &Vault {
        &self.inner.parts.vault
    }

    pub(super) fn node(&self) -> &NodeId {
        &self.inner.parts.node
    }

    pub(super) fn backup_folder(&self) -> &Path {
        &self.inner.parts.backups
    }

    pub(super) fn public_url(&self) -> Option<&str> {
        self.inner.parts.public_url.as_deref()
    }

    pub(super) fn logs(&self) -> &dyn Logs {
        self.inner.parts.logs.as_ref()
    }

    pub(super) fn peers(&self) -> &dyn Peers {
        self.inner.parts.peers.as_ref()
    }

    pub(super) fn images(&self) -> &dyn ImageResolver {
        self.inner.parts.images.as_ref()
    }

    pub(super) fn event_log(&self) -> &EventLog {
        &self.inner.event_log
    }

    pub(super) fn webhook_limit(&self) -> &RateLimit {
        &self.inner.webhook_limit
    }

    /// Room for one more stream, as long as it is kept.
    pub(super) fn stream_permit(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        Arc::clone(&self.inner.streams).try_acquire_owned().map_err(|_| {
            ApiError::new(
                StatusCode::TOO_MANY_REQUESTS,
                format!("{STREAMS} streams of events and logs are open on this node already: close one"),
            )
            .retry_after(5)
        })
    }
}
