//! Both ends of the feed over real TLS on loopback.

mod announcements;
mod checks;
mod freshness;
mod keys;
mod no_manager;
mod previous_version;
mod requests;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, SystemTime},
};

use mesh_support::watched::Watched as _;
use tokio::{net::TcpStream, sync::watch, task::JoinHandle, time::timeout};
use tokio_rustls::TlsConnector;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    FeedClient, FeedClientOptions, FeedServer, FeedServerOptions, FeedServerStatus, tls,
    wire::{self, FromManager, FromNode, Purpose, Reader, VERSION, Writer},
};
use crate::{
    model::{Balance, Cluster, Node, NodeDatapath, NodeRole, Protocol, PublishedPort, Service},
    source::{Announcements, HintHandle, NodeIdentity, Relay, SourceState, test_authority::Authority},
};

const LIMIT: Duration = Duration::from_secs(10);
const WORKER: &str = "swarm-worker";

struct Server {
    address: SocketAddr,
    state: watch::Sender<SourceState>,
    status: watch::Receiver<FeedServerStatus>,
    hint: HintHandle,
    relay: Relay,
    running: JoinHandle<()>,
    shutdown: CancellationToken,
    _guard: DropGuard,
    _identity: watch::Sender<Arc<NodeIdentity>>,
}

fn snapshot(nodes: &[&str], services: u16) -> Cluster {
    let node = |name: &&str| {
        let node = Node::new((*name).to_owned(), Ipv4Addr::new(192, 0, 2, 1), NodeRole::Worker);
        ((*name).to_owned(), node)
    };
    let service = |number: u16| {
        let port = PublishedPort {
            protocol: Protocol::Tcp,
            published: 9000 + number,
            target: 80,
        };
        let service = Service {
            name: format!("web{number}"),
            ports: vec![port],
            balance: Balance::default(),
            health: None,
            clients: crate::model::Clients::default(),
            idle: crate::model::IdleLimits::default(),
            publish_on: crate::model::PublishOn::default(),
            limits: crate::model::Limits::default(),
            weights: crate::model::Weights::default(),
            drain_timeout: None,
            invalid_labels: Vec::new(),
        };
        (format!("service-{number}"), service)
    };
    Cluster {
        cluster_id: "cluster-1".to_owned(),
        nodes: nodes.iter().map(node).collect(),
        services: (0..services).map(service).collect(),
        ..Cluster::default()
    }
}

fn state(revision: u64, cluster: Cluster) -> SourceState {
    SourceState {
        cluster: Arc::new(cluster),
        revision,
        confirmed: Some(SystemTime::now()),
        changed: Some(SystemTime::now()),
        ..SourceState::default()
    }
}

async fn serve(authority: &Authority) -> Server {
    serve_at((Ipv4Addr::LOCALHOST, 0).into(), authority).await
}

async fn serve_at(listen: SocketAddr, authority: &Authority) -> Server {
    let (identity_sender, identity) =
        watch::channel(Arc::new(authority.identity("manager-1", "swarm-manager")));
    let (state, receiver) = watch::channel(state(7, snapshot(&["manager-1", "worker-1"], 1)));
    let hint = HintHandle::new();
    let announcements = Announcements::new();
    let relay = Relay::default();
    let (server, status) = FeedServer::bind(FeedServerOptions {
        listen,
        identity,
        state: receiver,
        hint: hint.clone(),
        announcements: announcements.clone(),
        relay: relay.clone(),
    })
    .await
    .unwrap();
    let shutdown = CancellationToken::new();
    let (publisher, stop) = (state.clone(), shutdown.clone());
    tokio::spawn(async move {
        stop.run_until_cancelled(announcements.publish_to(&publisher))
            .await
    });
    Server {
        address: server.address(),
        state,
        status,
        hint,
        relay,
        running: tokio::spawn(server.run(shutdown.clone())),
        _guard: shutdown.clone().drop_guard(),
        shutdown,
        _identity: identity_sender,
    }
}

struct Client {
    state: watch::Receiver<SourceState>,
    hint: HintHandle,
    identity: watch::Sender<Arc<NodeIdentity>>,
    managers: watch::Sender<Vec<SocketAddr>>,
    _guard: DropGuard,
}

fn follow(managers: &[SocketAddr], identity: NodeIdentity) -> Client {
    follow_after(SourceState::default(), managers, identity)
}

/// Follows managers where another source has run before.
fn follow_after(last: SourceState, managers: &[SocketAddr], identity: NodeIdentity) -> Client {
    let (identity_sender, identity) = watch::channel(Arc::new(identity));
    let (managers_sender, managers) = watch::channel(managers.to_vec());
    let (client, state, hint) = FeedClient::new(FeedClientOptions {
        managers,
        identity,
        last,
    });
    let shutdown = CancellationToken::new();
    tokio::spawn(client.run(shutdown.clone()));
    Client {
        state,
        hint,
        identity: identity_sender,
        managers: managers_sender,
        _guard: shutdown.drop_guard(),
    }
}

impl Client {
    async fn until(&mut self, what: &str, condition: impl FnMut(&SourceState) -> bool) -> SourceState {
        let result = timeout(LIMIT, self.state.wait_for(condition)).await;
        if let Ok(state) = result {
            return state.unwrap().clone();
        }
        drop(result);
        panic!("never happened: {what}; the state is {:?}", self.state.current());
    }
}

impl Server {
    async fn until_refused(&mut self, reason: &str) {
        let refused = self.status.wait_for(|status| status.refused.contains_key(reason));
        if timeout(LIMIT, refused).await.is_err() {
            panic!("no peer was refused for '{reason}': {:?}", self.status.current());
        }
        assert!(self.status.current().peers.is_empty());
    }
}

#[tokio::test]
async fn worker_gets_the_whole_snapshot_and_then_every_change() {
    let authority = Authority::new("cluster-1");
    let mut server = serve(&authority).await;
    let mut client = follow(&[server.address], authority.identity("worker-1", WORKER));
    let first = client.until("first snapshot", |state| state.revision == 7).await;
    assert_eq!(first.cluster, server.state.current().cluster);
    assert!(
        first.trouble.is_none() && first.origin.contains(&server.address.to_string()),
        "{first:?}"
    );
    timeout(
        LIMIT,
        server
            .status
            .wait_for(|status| status.peers.contains_key("worker-1")),
    )
    .await
    .unwrap()
    .unwrap();
    for (revision, services) in [(8, 3), (9, 2), (10, 0), (11, 5)] {
        let cluster = snapshot(&["manager-1", "worker-1"], services);
        server.state.send_replace(state(revision, cluster.clone()));
        let seen = client.until("change", |state| state.revision == revision).await;
        assert_eq!(*seen.cluster, cluster);
    }
}

#[tokio::test]
async fn hint_of_a_worker_reaches_the_manager() {
    let authority = Authority::new("cluster-1");
    let server = serve(&authority).await;
    let client = follow(&[server.address], authority.identity("worker-1", WORKER));
    client.hint.hint();
    timeout(LIMIT, server.hint.hinted()).await.expect("no hint came");
}

#[tokio::test]
async fn a_managers_trouble_is_passed_on_and_the_snapshot_stays() {
    let authority = Authority::new("cluster-1");
    let server = serve(&authority).await;
    let mut client = follow(&[server.address], authority.identity("worker-1", WORKER));
    client.until("first snapshot", |state| state.revision == 7).await;
    server
        .state
        .send_modify(|state| state.trouble = Some("no quorum".to_owned()));
    let seen = client.until("trouble", |state| state.trouble.is_some()).await;
    assert!(seen.trouble.unwrap().contains("no quorum"));
    assert_eq!(seen.cluster.services.len(), 1);
}

#[tokio::test]
async fn a_worker_switches_to_another_manager_and_keeps_the_snapshot_meanwhile() {
    let authority = Authority::new("cluster-1");
    let (one, two) = (serve(&authority).await, serve(&authority).await);
    let mut client = follow(
        &[one.address, two.address],
        authority.identity("worker-1", WORKER),
    );
    let first = client.until("first snapshot", |state| state.revision == 7).await;
    let (followed, other) = if first.origin.contains(&one.address.to_string()) {
        (one, two)
    } else {
        (two, one)
    };
    followed.shutdown.cancel();
    followed.running.await.unwrap();
    other
        .state
        .send_modify(|state| state.confirmed = Some(SystemTime::now()));
    let name = other.address.to_string();
    let seen = client
        .until("fail-over", |state| {
            assert_eq!(state.cluster.services.len(), 1, "the snapshot was lost");
            state.origin.contains(&name)
        })
        .await;
    assert!(seen.trouble.is_none());
}

#[tokio::test]
async fn a_worker_without_any_manager_keeps_its_snapshot() {
    let authority = Authority::new("cluster-1");
    let server = serve(&authority).await;
    let mut client = follow(&[server.address], authority.identity("worker-1", WORKER));
    client.until("first snapshot", |state| state.revision == 7).await;
    server.shutdown.cancel();
    server.running.await.unwrap();
    let seen = client.until("trouble", |state| state.trouble.is_some()).await;
    assert_eq!((seen.revision, seen.cluster.services.len()), (7, 1));
}

#[tokio::test]
async fn worker_connects_again_with_a_renewed_certificate() {
    let authority = Authority::new("cluster-1");
    let mut server = serve(&authority).await;
    let mut client = follow(&[server.address], authority.identity("worker-1", WORKER));
    client.until("first snapshot", |state| state.revision == 7).await;
    let peer = |status: &FeedServerStatus| status.peers.get("worker-1").copied();
    let wait = timeout(LIMIT, server.status.wait_for(|status| peer(status).is_some())).await;
    let before = peer(&wait.unwrap().unwrap());
    client
        .identity
        .send_replace(Arc::new(authority.identity("worker-1", WORKER)));
    let again = server
        .status
        .wait_for(|status| peer(status).is_some_and(|now| Some(now) != before));
    timeout(LIMIT, again)
        .await
        .expect("it did not connect again")
        .unwrap();
}

#[tokio::test]
async fn peer_without_a_certificate_is_refused() {
    let authority = Authority::new("cluster-1");
    let mut server = serve(&authority).await;
    let identity = authority.identity("worker-1", WORKER);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(identity.roots())
        .with_no_client_auth();
    let stream = TcpStream::connect(server.address).await.unwrap();
    let name = "swarm-manager".try_into().unwrap();
    // In TLS 1.3 a client learns of the refusal only when it reads.
    let _stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    server.until_refused("no_certificate").await;
}

#[tokio::test]
async fn peer_of_a_foreign_authority_is_refused() {
    let authority = Authority::new("cluster-1");
    let mut server = serve(&authority).await;
    // It knows our authority, as anyone can, but cannot sign with it.
    let ours = tls::client(&authority.identity("worker-1", WORKER)).unwrap();
    let foreign = Authority::new("cluster-1").identity("worker-1", WORKER);
    let mut config = (*ours).clone();
    config.client_auth_cert_resolver = tls::client(&foreign).unwrap().client_auth_cert_resolver.clone();
    let stream = TcpStream::connect(server.address).await.unwrap();
    let name = "swarm-manager".try_into().unwrap();
    let _stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    server.until_refused("untrusted_certificate").await;
}

#[tokio::test]
async fn a_worker_does_not_trust_a_manager_of_a_foreign_authority() {
    let mut server = serve(&Authority::new("cluster-1")).await;
    let mut client = follow(
        &[server.address],
        Authority::new("cluster-1").identity("worker-1", WORKER),
    );
    let seen = client.until("trouble", |state| state.trouble.is_some()).await;
    assert!(seen.trouble.unwrap().contains("TLS handshake failed"));
    assert_eq!(seen.revision, 0);
    server.until_refused("handshake").await;
}

#[tokio::test]
async fn a_peer_of_another_cluster_is_refused_with_the_reason() {
    let authority = Authority::new("cluster-1");
    let mut server = serve(&authority).await;
    let other = authority.for_cluster("cluster-2").identity("worker-1", WORKER);
    let mut reply = send_one(&server, &other, &hello(VERSION)).await;
    let FromManager::Refused { reason } = reply.remove(0) else {
        panic!("not refused: {reply:?}");
    };
    assert!(reason.contains("another cluster, 'cluster-2'"), "{reason}");
    server.until_refused("other_cluster").await;
}

#[tokio::test]
async fn a_peer_without_a_nodes_role_is_refused() {
    let authority = Authority::new("cluster-1");
    let mut server = serve(&authority).await;
    let visitor = authority.identity_of_any_role("worker-1", "swarm-visitor");
    let config = tls::client(&visitor).unwrap();
    let stream = TcpStream::connect(server.address).await.unwrap();
    let name = "swarm-manager".try_into().unwrap();
    let _stream = TlsConnector::from(config).connect(name, stream).await;
    server.until_refused("no_node_certificate").await;
}

#[tokio::test]
async fn certificate_of_a_removed_node_is_refused() {
    let authority = Authority::new("cluster-1");
    let mut server = serve(&authority).await;
    let mut client = follow(&[server.address], authority.identity("worker-9", WORKER));
    let refused = |state: &SourceState| {
        state
            .trouble
            .as_ref()
            .is_some_and(|why| why.contains("a node of this cluster"))
    };
    client.until("refusal", refused).await;
    server.until_refused("unknown_node").await;
}

#[tokio::test]
async fn node_that_is_removed_while_connected_is_dropped() {
    let authority = Authority::new("cluster-1");
    let mut server = serve(&authority).await;
    let mut client = follow(&[server.address], authority.identity("worker-1", WORKER));
    client.until("first snapshot", |state| state.revision == 7).await;
    server.state.send_replace(state(8, snapshot(&["manager-1"], 2)));
    server.until_refused("unknown_node").await;
    assert_eq!(client.state.current().revision, 7, "it received the new snapshot");
}

#[tokio::test]
async fn a_snapshot_of_no_cluster_cuts_no_follower_off() {
    let authority = Authority::new("cluster-1");
    let server = serve(&authority).await;
    let mut client = follow(&[server.address], authority.identity("worker-1", WORKER));
    client.until("first snapshot", |state| state.revision == 7).await;
    server.state.send_replace(state(8, Cluster::default()));
    let cluster = snapshot(&["manager-1", "worker-1"], 4);
    server.state.send_replace(state(9, cluster.clone()));
    let seen = client
        .until("the next snapshot", |state| {
            assert_ne!(state.revision, 8, "it was sent a snapshot of no cluster");
            assert!(state.trouble.is_none(), "{state:?}");
            state.revision == 9
        })
        .await;
    assert_eq!(*seen.cluster, cluster);
    assert_eq!(server.status.current().refused.len(), 0);
}

#[tokio::test]
async fn a_peer_of_another_version_is_refused_with_the_reason() {
    let authority = Authority::new("cluster-1");
    let mut server = serve(&authority).await;
    let identity = authority.identity("worker-1", WORKER);
    let reply = send_one(&server, &identity, &hello(99)).await;
    assert!(
        matches!(&reply[0], FromManager::Refused { reason } if reason.contains("99")),
        "{reply:?}"
    );
    server.until_refused("version").await;
}

#[tokio::test]
async fn peer_that_sends_too_much_is_refused() {
    let authority = Authority::new("cluster-1");
    let mut server = serve(&authority).await;
    let identity = authority.identity("worker-1", WORKER);
    let reason = "x".repeat(2 * wire::MAX_FROM_NODE);
    send_one(&server, &identity, &FromManager::Refused { reason }).await;
    server.until_refused("protocol").await;
}

fn hello(version: u32) -> FromNode {
    FromNode::Hello {
        version,
        newest: version,
        purpose: Purpose::Follow,
        takes_requests: false,
        takes_reads: false,
    }
}

/// Connects as `identity`, sends one message, and returns everything that is received until the end.
async fn send_one(
    server: &Server,
    identity: &NodeIdentity,
    message: &impl serde::Serialize,
) -> Vec<FromManager> {
    let stream = TcpStream::connect(server.address).await.unwrap();
    let name = "swarm-manager".try_into().unwrap();
    let config = tls::client(identity).unwrap();
    let stream = TlsConnector::from(config).connect(name, stream).await.unwrap();
    let (reader, writer) = tokio::io::split(stream);
    let mut reader = Reader::new(reader, wire::MAX_FROM_MANAGER);
    let mut writer = Writer::new(writer, wire::MAX_FROM_MANAGER);
    writer.send(message, LIMIT).await.unwrap();
    let mut messages = Vec::new();
    while let Ok(message) = reader.next_within(LIMIT).await {
        messages.push(message);
    }
    messages
}
