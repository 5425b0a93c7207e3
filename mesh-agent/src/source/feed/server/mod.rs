//! The feed's server, on managers. One task per connection, each with limits on what it accepts and how long
//! it waits.

mod announcing;
mod refusal;
mod session;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use mesh_support::watched::Watched as _;
use rustls::ServerConfig;
use tokio::{net::TcpListener, sync::watch, task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use self::{refusal::Refusal, session::session};
use super::{FeedError, tls};
use crate::{
    model::NodeId,
    serve::Open,
    source::{Announcements, HintHandle, NodeIdentity, Relay, SourceState},
};

/// Limits memory: two for each of more nodes than any Swarm has.
const MAX_CONNECTIONS: usize = 8192;
/// The same of one address: a node connects anew while its connections before have not ended.
const PER_ADDRESS: usize = 64;
/// Refusals that come faster are logged at debug level only.
const LOG_GAP: Duration = Duration::from_secs(1);

/// What a feed server needs.
#[derive(Clone, Debug)]
pub struct FeedServerOptions {
    /// The node's Swarm address and the feed port.
    pub listen: SocketAddr,
    /// This node's credentials, as they are renewed.
    pub identity: watch::Receiver<Arc<NodeIdentity>>,
    /// The snapshots to stream.
    pub state: watch::Receiver<SourceState>,
    /// Receives the peers' hints.
    pub hint: HintHandle,
    /// Receives the peers' announcements, which the publisher of the snapshot adds to it.
    pub announcements: Announcements,
    /// Brings the requests that the nodes' agents are sent.
    pub relay: Relay,
}

/// The connected peers, for `meshctl status` and the metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FeedServerStatus {
    /// The connected nodes' addresses, by node id.
    pub peers: BTreeMap<NodeId, SocketAddr>,
    /// Connections refused since the start, by reason.
    pub refused: BTreeMap<&'static str, u64>,
}

/// Serves snapshots to every node of the cluster.
#[derive(Debug)]
pub struct FeedServer {
    listener: TcpListener,
    address: SocketAddr,
    shared: Shared,
}

/// Shared by the connections' tasks.
#[derive(Clone, Debug)]
struct Shared {
    options: FeedServerOptions,
    status: watch::Sender<FeedServerStatus>,
    logged: Arc<Mutex<Option<Instant>>>,
}

impl FeedServer {
    /// Binds the port; serving begins with [`FeedServer::run`].
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn bind(
        options: FeedServerOptions,
    ) -> Result<(Self, watch::Receiver<FeedServerStatus>), FeedError> {
        let listen = |source| FeedError::Listen {
            address: options.listen,
            source,
        };
        let listener = TcpListener::bind(options.listen).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let (status, receiver) = watch::channel(FeedServerStatus::default());
        let shared = Shared {
            options,
            status,
            logged: Arc::default(),
        };
        let server = Self {
            listener,
            address,
            shared,
        };
        Ok((server, receiver))
    }

    /// The address that was bound.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until cancelled, then closes every connection.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut sessions = JoinSet::new();
        let mut config: Option<(Arc<NodeIdentity>, Arc<ServerConfig>)> = None;
        let open = Open::new(MAX_CONNECTIONS, PER_ADDRESS);
        info!(address = %self.address, "serving the feed to other nodes");
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                Some(_) = sessions.join_next() => continue,
                accepted = self.listener.accept() => accepted,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Most likely out of file descriptors: give other connections time to end.
                    warn!(%error, "cannot accept another node's connection");
                    sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let counted = match open.admit(peer.ip()) {
                Ok(counted) => counted,
                Err(why) => {
                    self.shared.refuse(peer, &Refusal::TooManyConnections(why));
                    continue;
                }
            };
            let identity = self.shared.options.identity.current();
            let current = config.take().filter(|(of, _)| Arc::ptr_eq(of, &identity));
            let settings = match current.map_or_else(|| tls::server(&identity), |(_, current)| Ok(current)) {
                Ok(settings) => settings,
                Err(error) => {
                    error!(
                        error = mesh_support::error_chain(&error),
                        "cannot serve other nodes"
                    );
                    continue;
                }
            };
            config = Some((Arc::clone(&identity), Arc::clone(&settings)));
            let shared = self.shared.clone();
            sessions.spawn(async move {
                if let Err(refusal) = session(stream, peer, settings, &identity, &shared).await {
                    shared.refuse(peer, &refusal);
                }
                drop(counted);
            });
        }
        sessions.shutdown().await;
        self.shared.status.send_modify(|status| status.peers.clear());
    }
}

impl Shared {
    fn refuse(&self, peer: SocketAddr, refusal: &Refusal) {
        self.status.send_modify(|status| {
            *status.refused.entry(refusal.name()).or_default() += 1;
        });
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.is_none_or(|logged| logged.elapsed() >= LOG_GAP) {
            *logged = Some(Instant::now());
            warn!(%peer, reason = mesh_support::error_chain(refusal), "connection refused");
        } else {
            debug!(%peer, reason = mesh_support::error_chain(refusal), "connection refused");
        }
    }
}
