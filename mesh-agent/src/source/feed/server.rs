//! The manager's end of the feed: accepts nodes of the cluster, tells each the whole snapshot and then
//! what changes. One task per connection, each bounded in what it accepts and how long it waits.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::{
    FeedError,
    delta::Delta,
    tls,
    wire::{self, FromManager, FromNode, Purpose, Reader, VERSION, WireError, Writer},
};
use crate::{
    model::{NodeDatapath, NodeId},
    source::{Announcements, HintHandle, NodeIdentity, SourceState, Subject, SubjectError},
};

/// Two for each of more nodes than any Swarm has; what it bounds is memory.
const MAX_CONNECTIONS: usize = 8192;
/// For TLS and the first message.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
/// A node that has just joined may dial before the managers' list shows it.
const JOIN_LIMIT: Duration = Duration::from_secs(1);
/// A peer that takes longer to read a message is left.
const SEND_LIMIT: Duration = Duration::from_secs(10);
/// Hints of one peer that come faster are dropped: the tasks are listed often after each anyway.
const HINT_GAP: Duration = Duration::from_millis(50);
/// A peer that wants whole snapshots faster is left.
const FULL_GAP: Duration = Duration::from_millis(500);
/// Announcements of one node that come faster wait: each is news to the whole cluster.
const ANNOUNCE_GAP: Duration = Duration::from_millis(50);
/// A node that misses three of its announcements is taken for away.
const ANNOUNCE_SILENCE: Duration =
    Duration::from_millis(3 * wire::ANNOUNCE_INTERVAL.as_millis() as u64 + 500);
/// For an announcement to get into the published snapshot.
const PUBLISH_LIMIT: Duration = Duration::from_secs(2);
/// Refusals that come faster are logged at debug level only.
const LOG_GAP: Duration = Duration::from_secs(1);

/// What a feed server needs.
#[derive(Clone, Debug)]
pub struct FeedServerOptions {
    /// The node's Swarm address and the feed port.
    pub listen: SocketAddr,
    /// This node's credentials, as they are renewed.
    pub identity: watch::Receiver<Arc<NodeIdentity>>,
    /// The snapshot to stream.
    pub state: watch::Receiver<SourceState>,
    /// Where the peers' hints go.
    pub hint: HintHandle,
    /// Where the peers' announcements go; whoever publishes the snapshot puts them into it.
    pub announcements: Announcements,
}

/// Who follows the snapshot, for `meshctl status` and the metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FeedServerStatus {
    /// The connected nodes' addresses, by node id.
    pub peers: BTreeMap<NodeId, SocketAddr>,
    /// Connections refused since the start, by reason.
    pub refused: BTreeMap<&'static str, u64>,
}

/// Serves the snapshot to every node of the cluster.
#[derive(Debug)]
pub struct FeedServer {
    listener: TcpListener,
    address: SocketAddr,
    shared: Shared,
}

/// What every connection's task needs.
#[derive(Clone, Debug)]
struct Shared {
    options: FeedServerOptions,
    status: watch::Sender<FeedServerStatus>,
    logged: Arc<Mutex<Option<Instant>>>,
}

/// Why a connection was not served, or is no longer.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("there are {MAX_CONNECTIONS} connections already")]
    TooManyConnections,
    #[error("it did not finish the TLS handshake")]
    Handshake(#[source] io::Error),
    #[error("it has shown no certificate")]
    NoCertificate,
    #[error("its certificate is not of this cluster's authority")]
    Untrusted(#[source] io::Error),
    #[error("its certificate is not of a Swarm node")]
    Subject(#[from] SubjectError),
    #[error("its certificate is of another cluster, '{0}'")]
    OtherCluster(String),
    #[error("'{0}' is no node of this cluster (any more)")]
    UnknownNode(NodeId),
    #[error("it speaks version {0} of the feed, this agent {VERSION}; run the same release on every node")]
    Version(u32),
    #[error("it does not keep to the feed's rules: {0}")]
    Misbehaved(&'static str),
    #[error("it does not keep to the feed's rules")]
    Protocol(#[source] WireError),
}

impl Refusal {
    /// The name in the metrics.
    fn name(&self) -> &'static str {
        match self {
            Self::TooManyConnections => "too_many_connections",
            Self::Handshake(_) => "handshake",
            Self::NoCertificate => "no_certificate",
            Self::Untrusted(_) => "untrusted_certificate",
            Self::Subject(_) => "no_node_certificate",
            Self::OtherCluster(_) => "other_cluster",
            Self::UnknownNode(_) => "unknown_node",
            Self::Version(_) => "version",
            Self::Misbehaved(_) | Self::Protocol(_) => "protocol",
        }
    }
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
        info!(address = %self.address, "serving the cluster's snapshot to other nodes");
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                Some(_) = sessions.join_next() => continue,
                accepted = self.listener.accept() => accepted,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, most likely: others are given time to end.
                    warn!(%error, "cannot accept another node's connection");
                    sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            if sessions.len() >= MAX_CONNECTIONS {
                self.shared.refuse(peer, &Refusal::TooManyConnections);
                continue;
            }
            let identity = Arc::clone(&self.shared.options.identity.borrow());
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

async fn session(
    stream: TcpStream,
    peer: SocketAddr,
    config: Arc<ServerConfig>,
    identity: &NodeIdentity,
    shared: &Shared,
) -> Result<(), Refusal> {
    // Deltas are small and urgent. Where it cannot be set, they are merely slower.
    let _ = stream.set_nodelay(true);
    let stream = timeout(HANDSHAKE_LIMIT, TlsAcceptor::from(config).accept(stream))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(handshake_refusal)?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let subject = Subject::of(certificate.ok_or(Refusal::NoCertificate)?);
    let (reader, writer) = tokio::io::split(stream);
    let mut reader = Reader::new(reader, wire::MAX_FROM_NODE);
    let mut writer = Writer::new(writer, wire::MAX_FROM_MANAGER);

    let result = match admit(subject, identity, shared, &mut reader).await {
        Ok((node, Purpose::Follow)) => follow(&node, peer, shared, &mut reader, &mut writer).await,
        Ok((node, Purpose::Announce)) => {
            unless_ended(&node, hear(&node, shared, &mut reader, &mut writer).await)
        }
        Err(refusal) => Err(refusal),
    };
    if let Err(refusal) = &result {
        let reason = refusal.to_string();
        // Whoever is refused may not listen any more.
        let _ = writer.send(&FromManager::Refused { reason }, SEND_LIMIT).await;
    }
    result
}

fn handshake_refusal(error: io::Error) -> Refusal {
    let cause = error
        .get_ref()
        .and_then(|error| error.downcast_ref::<rustls::Error>());
    match cause {
        Some(rustls::Error::NoCertificatesPresented) => Refusal::NoCertificate,
        Some(rustls::Error::InvalidCertificate(_)) => Refusal::Untrusted(error),
        _ => Refusal::Handshake(error),
    }
}

/// Serves the snapshot, and shows the node as connected meanwhile.
async fn follow<R, W>(
    node: &NodeId,
    peer: SocketAddr,
    shared: &Shared,
    reader: &mut Reader<R>,
    writer: &mut Writer<W>,
) -> Result<(), Refusal>
where
    R: tokio::io::AsyncRead + Unpin,
    W: tokio::io::AsyncWrite + Unpin,
{
    info!(node, %peer, "node connected");
    shared.status.send_modify(|status| {
        status.peers.insert(node.clone(), peer);
    });
    let result = unless_ended(node, stream_snapshot(node, shared, reader, writer).await);
    shared.status.send_modify(|status| {
        // A newer connection of the same node keeps its entry.
        if status.peers.get(node) == Some(&peer) {
            status.peers.remove(node);
        }
    });
    info!(node, %peer, "node disconnected");
    result
}

/// A connection that breaks is no misbehaviour.
fn unless_ended(node: &NodeId, result: Result<(), Refusal>) -> Result<(), Refusal> {
    match result {
        Err(Refusal::Protocol(error @ (WireError::Io(_) | WireError::Closed | WireError::Silent(_)))) => {
            debug!(
                node,
                error = mesh_support::error_chain(&error),
                "the connection ended"
            );
            Ok(())
        }
        result => result,
    }
}

/// Decides whether a peer whose certificate TLS believes is served; its node id and what it wants if so.
async fn admit<R: tokio::io::AsyncRead + Unpin>(
    subject: Result<Subject, SubjectError>,
    identity: &NodeIdentity,
    shared: &Shared,
    reader: &mut Reader<R>,
) -> Result<(NodeId, Purpose), Refusal> {
    let subject = subject?;
    if subject.cluster_id != identity.subject.cluster_id {
        return Err(Refusal::OtherCluster(subject.cluster_id));
    }
    let greeting = reader.next_within(HANDSHAKE_LIMIT).await;
    let purpose = match greeting.map_err(Refusal::Protocol)? {
        FromNode::Hello {
            version: VERSION,
            purpose,
        } => purpose,
        FromNode::Hello { version, .. } => return Err(Refusal::Version(version)),
        FromNode::Announce { .. } | FromNode::Hint | FromNode::NeedFull => {
            return Err(Refusal::Misbehaved("no greeting"));
        }
    };
    let mut state = shared.options.state.clone();
    let knows = |state: &SourceState| state.cluster.nodes.contains_key(&subject.node);
    if !knows(&state.borrow()) {
        shared.options.hint.hint();
        let listed = timeout(JOIN_LIMIT, state.wait_for(knows)).await;
        if !matches!(listed, Ok(Ok(_))) {
            // A certificate outlives its node's membership: the list decides.
            return Err(Refusal::UnknownNode(subject.node));
        }
    }
    Ok((subject.node, purpose))
}

async fn stream_snapshot<R, W>(
    node: &NodeId,
    shared: &Shared,
    reader: &mut Reader<R>,
    writer: &mut Writer<W>,
) -> Result<(), Refusal>
where
    R: tokio::io::AsyncRead + Unpin,
    W: tokio::io::AsyncWrite + Unpin,
{
    let mut state = shared.options.state.clone();
    let mut heartbeat = interval(wire::HEARTBEAT);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut hinted: Option<Instant> = None;

    send(writer, &FromManager::Hello { version: VERSION }).await?;
    let mut sent = state.borrow_and_update().clone();
    send(writer, &full(&sent)).await?;
    let mut sent_full = Instant::now();
    loop {
        tokio::select! {
            changed = state.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                let now = state.borrow_and_update().clone();
                if !now.cluster.nodes.contains_key(node) {
                    return Err(Refusal::UnknownNode(node.clone()));
                }
                if now.revision != sent.revision {
                    send(writer, &delta(&sent, &now)).await?;
                }
                if now.revision == sent.revision || now.trouble != sent.trouble {
                    send(writer, &heartbeat_message(&now)).await?;
                }
                sent = now;
            }
            _ = heartbeat.tick() => {
                let message = heartbeat_message(&SourceState { revision: sent.revision, ..state.borrow().clone() });
                send(writer, &message).await?;
            }
            message = reader.next() => match message.map_err(Refusal::Protocol)? {
                FromNode::Hint => {
                    if hinted.is_none_or(|hinted| hinted.elapsed() >= HINT_GAP) {
                        hinted = Some(Instant::now());
                        shared.options.hint.hint();
                    }
                }
                FromNode::NeedFull if sent_full.elapsed() < FULL_GAP => {
                    return Err(Refusal::Misbehaved("it wants the whole snapshot too often"));
                }
                FromNode::NeedFull => {
                    sent = state.borrow_and_update().clone();
                    send(writer, &full(&sent)).await?;
                    sent_full = Instant::now();
                }
                FromNode::Hello { .. } => return Err(Refusal::Misbehaved("a second greeting")),
                FromNode::Announce { .. } => {
                    return Err(Refusal::Misbehaved("an announcement on a connection to follow"));
                }
            }
        }
    }
}

/// Hears what a node announces, and answers when it is in the published snapshot.
async fn hear<R, W>(
    node: &NodeId,
    shared: &Shared,
    reader: &mut Reader<R>,
    writer: &mut Writer<W>,
) -> Result<(), Refusal>
where
    R: tokio::io::AsyncRead + Unpin,
    W: tokio::io::AsyncWrite + Unpin,
{
    let mut state = shared.options.state.clone();
    let session = shared.options.announcements.open(node);
    let mut last = None;
    send(writer, &FromManager::Hello { version: VERSION }).await?;
    loop {
        let message = reader.next_within(ANNOUNCE_SILENCE).await;
        let datapath = match message.map_err(Refusal::Protocol)? {
            FromNode::Announce {
                datapath: NodeDatapath::Unknown,
            } => return Err(Refusal::Misbehaved("it announces nothing")),
            FromNode::Announce { datapath } => datapath,
            FromNode::Hello { .. } => return Err(Refusal::Misbehaved("a second greeting")),
            FromNode::Hint | FromNode::NeedFull => {
                return Err(Refusal::Misbehaved("a request on a connection to announce"));
            }
        };
        if !session.announce(datapath) {
            debug!(node, "a newer connection speaks for the node");
            return Ok(());
        }
        if last.replace(datapath) != Some(datapath) {
            info!(
                node,
                datapath = datapath.name(),
                "a node has announced its data path"
            );
        }
        let listed = |state: &SourceState| state.cluster.nodes.get(node).map(|node| node.datapath);
        let published = |state: &SourceState| listed(state).is_none_or(|listed| listed == datapath);
        match timeout(PUBLISH_LIMIT, state.wait_for(published)).await {
            Ok(Ok(now)) if listed(&now).is_none() => return Err(Refusal::UnknownNode(node.clone())),
            Ok(Ok(_)) => {}
            // Nobody publishes any more, or a newer connection has said something else.
            Ok(Err(_)) | Err(_) => return Ok(()),
        }
        send(writer, &FromManager::Acknowledged { datapath }).await?;
        sleep(ANNOUNCE_GAP).await;
    }
}

async fn send<W: tokio::io::AsyncWrite + Unpin>(
    writer: &mut Writer<W>,
    message: &FromManager,
) -> Result<(), Refusal> {
    writer.send(message, SEND_LIMIT).await.map_err(Refusal::Protocol)
}

fn full(state: &SourceState) -> FromManager {
    FromManager::Full {
        revision: state.revision,
        changed_age: wire::age(state.changed),
        cluster: Arc::clone(&state.cluster),
    }
}

fn delta(old: &SourceState, new: &SourceState) -> FromManager {
    FromManager::Delta {
        from: old.revision,
        to: new.revision,
        changed_age: wire::age(new.changed),
        delta: Delta::between(&old.cluster, &new.cluster),
    }
}

fn heartbeat_message(state: &SourceState) -> FromManager {
    FromManager::Heartbeat {
        revision: state.revision,
        confirmed_age: wire::age(state.confirmed),
        trouble: state.trouble.clone(),
    }
}
