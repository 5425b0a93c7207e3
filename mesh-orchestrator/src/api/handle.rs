//! The handle on the API of one node, through which handlers reach the cluster, the vault and the store.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
};

use axum::http::StatusCode;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    error::ApiError,
    event_log::EventLog,
    images::ImageResolver,
    limits::LookUps,
    log_sources::{Logs, Peers},
};
use crate::{cluster::Cluster, objects::NodeId, secrets::Vault, store::Store};

/// Maximum number of open streams of events and logs.
const STREAMS: usize = 64;

/// What the API works on.
#[derive(Debug)]
pub struct Parts {
    /// The cluster's objects.
    pub cluster: Cluster,
    /// Secrets, configs, credentials and webhooks.
    pub vault: Arc<Vault>,
    /// This node.
    pub node: NodeId,
    /// The directory of this node's backups.
    pub backups: PathBuf,
    /// The base of webhooks' URLs: `https://node1.example.com:9470`. Without it they are shown as paths.
    pub public_url: Option<String>,
    /// Reads the logs of this node's tasks.
    pub logs: Arc<dyn Logs>,
    /// Reads logs from other nodes.
    pub peers: Arc<dyn Peers>,
    /// Resolves tags to digests.
    pub images: Arc<dyn ImageResolver>,
}

/// The API of one node; clones share it.
#[derive(Clone)]
pub struct Api {
    inner: Arc<Inner>,
}

struct Inner {
    parts: Parts,
    event_log: EventLog,
    streams: Arc<Semaphore>,
    look_ups: LookUps,
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
    /// Creates the API and starts to collect events. Must be called inside a tokio runtime.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self {
            inner: Arc::new(Inner {
                event_log: EventLog::start(&parts.cluster),
                parts,
                streams: Arc::new(Semaphore::new(STREAMS)),
                look_ups: LookUps::default(),
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

    pub(super) fn look_ups(&self) -> &LookUps {
        &self.inner.look_ups
    }

    /// A permit for one more stream, to be held as long as the stream is open.
    pub(super) fn stream_permit(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        Arc::clone(&self.inner.streams).try_acquire_owned().map_err(|_| {
            ApiError::new(
                StatusCode::TOO_MANY_REQUESTS,
                format!("{STREAMS} streams of events and logs are already open on this node: close one"),
            )
            .retry_after(5)
        })
    }
}
