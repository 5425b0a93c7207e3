//! What nodes announce to managers, over real TLS on loopback.

use tokio::sync::mpsc;

use super::*;
use crate::{
    model::{Drained, FailedChecks, KeyId},
    source::{Acknowledged, Announcer, AnnouncerOptions, RelayedRequest},
};

/// Where announcing nodes want their packets.
const DATA_PATH: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 1);

pub(super) struct Announcing {
    announcement: watch::Sender<NodeDatapath>,
    pub(super) keys: watch::Sender<Vec<KeyId>>,
    acknowledged: watch::Receiver<Acknowledged>,
    pub(super) drained: watch::Sender<Drained>,
    pub(super) failed: watch::Sender<FailedChecks>,
    pub(super) asked: mpsc::Receiver<RelayedRequest>,
    identity: watch::Sender<Arc<NodeIdentity>>,
    managers: watch::Sender<Vec<SocketAddr>>,
    shutdown: CancellationToken,
    running: JoinHandle<()>,
    _guard: DropGuard,
}

pub(super) fn announce_to(
    managers: &[SocketAddr],
    identity: NodeIdentity,
    announcement: NodeDatapath,
) -> Announcing {
    let (identity_sender, identity) = watch::channel(Arc::new(identity));
    let (managers_sender, managers) = watch::channel(managers.to_vec());
    let (announcement, announcement_receiver) = watch::channel(announcement);
    let (keys, keys_receiver) = watch::channel(Vec::new());
    let (drained, drained_receiver) = watch::channel(Drained::default());
    let (failed, failed_receiver) = watch::channel(FailedChecks::default());
    let (acknowledged_sender, acknowledged) = watch::channel(Acknowledged::default());
    let (relayed, asked) = mpsc::channel(4);
    let announcer = Announcer::new(AnnouncerOptions {
        managers,
        identity,
        address: Some(DATA_PATH),
        announcement: announcement_receiver,
        keys: keys_receiver,
        drained: drained_receiver,
        failed: failed_receiver,
        acknowledged: acknowledged_sender,
        relayed,
    });
    let shutdown = CancellationToken::new();
    Announcing {
        announcement,
        keys,
        drained,
        failed,
        asked,
        acknowledged,
        identity: identity_sender,
        managers: managers_sender,
        running: tokio::spawn(announcer.run(shutdown.clone())),
        _guard: shutdown.clone().drop_guard(),
        shutdown,
    }
}

impl Announcing {
    async fn until_acknowledged(&mut self, announcement: NodeDatapath, managers: usize) {
        let condition = |acknowledged: &Acknowledged| {
            acknowledged.managers() == managers && acknowledged.by_all(announcement)
        };
        let acknowledged = timeout(LIMIT, self.acknowledged.wait_for(condition)).await;
        assert!(
            acknowledged.is_ok(),
            "not every manager acknowledged {announcement:?}"
        );
    }
}

impl Server {
    fn kind(&self) -> NodeDatapath {
        self.state.current().cluster.nodes["worker-1"].datapath
    }

    async fn until_kind(&self, kind: NodeDatapath) {
        let mut state = self.state.subscribe();
        let published = state.wait_for(|state| state.cluster.nodes["worker-1"].datapath == kind);
        if timeout(LIMIT, published).await.is_err() {
            panic!("{kind:?} was not published; the snapshot says {:?}", self.kind());
        }
    }
}

pub(super) fn announce(datapath: NodeDatapath) -> FromNode {
    FromNode::Announce {
        datapath,
        address: None,
        release: "1.2.3".to_owned(),
        keys: None,
        drained: None,
        failed: None,
    }
}

/// Sends these messages on a connection of its own, and returns the replies.
async fn converse(server: &Server, identity: &NodeIdentity, messages: &[FromNode]) -> Vec<FromManager> {
    let stream = TcpStream::connect(server.address).await.unwrap();
    let name = "swarm-manager".try_into().unwrap();
    let config = tls::client(identity).unwrap();
    let stream = TlsConnector::from(config).connect(name, stream).await.unwrap();
    let (reader, writer) = tokio::io::split(stream);
    let mut reader = Reader::new(reader, wire::MAX_FROM_MANAGER);
    let mut writer = Writer::new(writer, wire::MAX_FROM_NODE);
    for message in messages {
        writer.send(message, LIMIT).await.unwrap();
    }
    let mut replies = Vec::new();
    while let Ok(reply) = reader.next_within(LIMIT).await {
        let last = matches!(reply, FromManager::Refused { .. });
        replies.push(reply);
        if last {
            break;
        }
    }
    replies
}

pub(super) fn greeting() -> FromNode {
    FromNode::Hello {
        version: VERSION,
        newest: VERSION,
        purpose: Purpose::Announce,
        takes_requests: false,
        takes_reads: false,
    }
}

#[tokio::test]
async fn announcement_is_published_before_it_is_acknowledged_and_followers_get_it() {
    let authority = Authority::new("cluster-1");
    let server = serve(&authority).await;
    let mut client = follow(
        &[server.address],
        authority.identity("manager-1", "swarm-manager"),
    );
    client.until("first snapshot", |state| state.revision == 7).await;
    let identity = authority.identity("worker-1", WORKER);
    let mut announcing = announce_to(&[server.address], identity, NodeDatapath::None);
    for announcement in [
        NodeDatapath::None,
        NodeDatapath::Ebpf,
        NodeDatapath::Leaving,
        NodeDatapath::Ipvs,
    ] {
        announcing.announcement.send_replace(announcement);
        announcing.until_acknowledged(announcement, 1).await;
        assert_eq!(server.kind(), announcement, "acknowledged and not published");
        let seen = client
            .until("the announcement", |state| {
                state.cluster.nodes["worker-1"].datapath == announcement
            })
            .await;
        assert_eq!(seen.cluster.nodes["worker-1"].address, DATA_PATH);
        assert_eq!(seen.revision, server.state.current().revision);
        assert_eq!(
            seen.cluster.nodes["manager-1"].datapath,
            NodeDatapath::Unknown,
            "a node announces only itself"
        );
    }
}

#[tokio::test]
async fn every_manager_gets_the_announcement_also_one_that_comes_later() {
    let authority = Authority::new("cluster-1");
    let (one, two, three) = (
        serve(&authority).await,
        serve(&authority).await,
        serve(&authority).await,
    );
    let identity = authority.identity("worker-1", WORKER);
    let mut announcing = announce_to(&[one.address, two.address], identity, NodeDatapath::Ebpf);
    announcing.until_acknowledged(NodeDatapath::Ebpf, 2).await;
    announcing.managers.send_replace(vec![two.address, three.address]);
    announcing.until_acknowledged(NodeDatapath::Ebpf, 2).await;
    three.until_kind(NodeDatapath::Ebpf).await;
    announcing.announcement.send_replace(NodeDatapath::None);
    announcing.until_acknowledged(NodeDatapath::None, 2).await;
    assert_eq!(
        (two.kind(), three.kind()),
        (NodeDatapath::None, NodeDatapath::None)
    );
    assert_eq!(
        one.kind(),
        NodeDatapath::Ebpf,
        "a former manager gets no announcements"
    );
}

#[tokio::test]
async fn a_lost_connection_does_not_change_the_announcement() {
    let authority = Authority::new("cluster-1");
    let server = serve(&authority).await;
    let identity = authority.identity("worker-1", WORKER);
    let mut announcing = announce_to(&[server.address], identity, NodeDatapath::Ebpf);
    announcing.until_acknowledged(NodeDatapath::Ebpf, 1).await;
    announcing.shutdown.cancel();
    announcing.running.await.unwrap();
    // The next agent of the node connects: what it finds is the announcement of the one before.
    let messages = [greeting(), announce(NodeDatapath::Unknown)];
    converse(&server, &authority.identity("worker-1", WORKER), &messages).await;
    assert_eq!(server.kind(), NodeDatapath::Ebpf);
}

#[tokio::test]
async fn a_manager_that_comes_back_gets_the_announcement_again() {
    let authority = Authority::new("cluster-1");
    let server = serve(&authority).await;
    let address = server.address;
    let identity = authority.identity("worker-1", WORKER);
    let mut announcing = announce_to(&[address], identity, NodeDatapath::Ebpf);
    announcing.until_acknowledged(NodeDatapath::Ebpf, 1).await;
    server.shutdown.cancel();
    server.running.await.unwrap();
    let again = serve_at(address, &authority).await;
    assert_eq!(again.kind(), NodeDatapath::Unknown);
    again.until_kind(NodeDatapath::Ebpf).await;
}

#[tokio::test]
async fn renewed_certificate_is_announced_with() {
    let authority = Authority::new("cluster-1");
    let server = serve(&authority).await;
    let identity = authority.identity("worker-1", WORKER);
    let mut announcing = announce_to(&[server.address], identity, NodeDatapath::Ebpf);
    announcing.until_acknowledged(NodeDatapath::Ebpf, 1).await;
    // Another node's certificate: which node announces shows that the connection is a new one.
    let renewed = Arc::new(authority.identity("manager-1", WORKER));
    announcing.identity.send_replace(renewed);
    let mut state = server.state.subscribe();
    let announced = state.wait_for(|state| state.cluster.nodes["manager-1"].datapath == NodeDatapath::Ebpf);
    let announced = timeout(LIMIT, announced).await;
    assert!(announced.is_ok(), "it did not connect again");
}

#[tokio::test]
async fn removed_nodes_announcement_is_refused() {
    let authority = Authority::new("cluster-1");
    let mut server = serve(&authority).await;
    let _speaker = announce_to(
        &[server.address],
        authority.identity("worker-9", WORKER),
        NodeDatapath::Ebpf,
    );
    server.until_refused("unknown_node").await;
}

#[tokio::test]
async fn node_that_is_removed_while_it_announces_is_dropped() {
    let authority = Authority::new("cluster-1");
    let mut server = serve(&authority).await;
    let identity = authority.identity("worker-1", WORKER);
    let mut announcing = announce_to(&[server.address], identity, NodeDatapath::Ebpf);
    announcing.until_acknowledged(NodeDatapath::Ebpf, 1).await;
    server.state.send_replace(state(99, snapshot(&["manager-1"], 1)));
    announcing.announcement.send_replace(NodeDatapath::None);
    server.until_refused("unknown_node").await;
}

#[tokio::test]
async fn a_newer_connection_replaces_the_older_one() {
    let authority = Authority::new("cluster-1");
    let server = serve(&authority).await;
    let identity = authority.identity("worker-1", WORKER);
    let mut old = announce_to(&[server.address], identity, NodeDatapath::Ebpf);
    old.until_acknowledged(NodeDatapath::Ebpf, 1).await;
    let identity = authority.identity("worker-1", WORKER);
    let mut new = announce_to(&[server.address], identity, NodeDatapath::Ipvs);
    new.until_acknowledged(NodeDatapath::Ipvs, 1).await;
    assert_eq!(server.kind(), NodeDatapath::Ipvs);
}

#[tokio::test]
async fn an_empty_or_unexpected_announcement_is_refused() {
    let authority = Authority::new("cluster-1");
    let server = serve(&authority).await;
    let identity = authority.identity("worker-1", WORKER);
    for (messages, reason) in [
        (
            vec![greeting(), announce(NodeDatapath::Unknown)],
            "it announces nothing",
        ),
        (
            vec![greeting(), FromNode::Hint],
            "a request on a connection to announce",
        ),
        (vec![greeting(), greeting()], "a second greeting"),
        (vec![announce(NodeDatapath::Ebpf)], "no greeting"),
        (
            vec![hello(VERSION), announce(NodeDatapath::Ebpf)],
            "an announcement on a connection to follow",
        ),
    ] {
        let replies = converse(&server, &identity, &messages).await;
        let refused = |reply: &FromManager| matches!(reply, FromManager::Refused { reason: found } if found.contains(reason));
        assert!(replies.iter().any(refused), "{reason}: {replies:?}");
        assert_eq!(server.kind(), NodeDatapath::Unknown, "{reason}");
    }
}

#[tokio::test]
async fn an_announcement_brings_the_release_of_the_agent_unless_it_is_no_release() {
    let authority = Authority::new("cluster-1");
    let server = serve(&authority).await;
    let identity = authority.identity("worker-1", WORKER);
    for (sent, published) in [("1.2.3", "1.2.3"), ("1.2.3\u{1b}[31m", "")] {
        let announcement = FromNode::Announce {
            datapath: NodeDatapath::Ebpf,
            address: None,
            release: sent.to_owned(),
            keys: None,
            drained: None,
            failed: None,
        };
        // The last message ends the connection.
        let replies = converse(&server, &identity, &[greeting(), announcement, greeting()]).await;
        let acknowledged = FromManager::Acknowledged {
            datapath: NodeDatapath::Ebpf,
        };
        assert!(replies.contains(&acknowledged), "{replies:?}");
        assert_eq!(
            server.state.current().cluster.nodes["worker-1"].release,
            published
        );
    }
}

/// The most tasks that can be drained at once, with ids as long as Swarm's.
#[tokio::test]
async fn what_a_node_drains_is_published_whenever_it_changes() {
    let authority = Authority::new("cluster-1");
    let server = serve(&authority).await;
    let identity = authority.identity("worker-1", WORKER);
    let announcing = announce_to(&[server.address], identity, NodeDatapath::Ebpf);
    server.until_kind(NodeDatapath::Ebpf).await;
    let most = Drained {
        node: false,
        tasks: (0..Drained::MAX_TASKS)
            .map(|number| format!("{number:025}"))
            .collect(),
    };
    for drained in [most, Drained::default()] {
        announcing.drained.send_replace(drained.clone());
        let mut state = server.state.subscribe();
        let published = state.wait_for(|state| state.cluster.nodes["worker-1"].drained == drained);
        timeout(LIMIT, published)
            .await
            .expect("it was not published")
            .unwrap();
    }
}

/// As many replicas as can fail at once, beside the most that can be drained.
#[tokio::test]
async fn the_replicas_that_fail_their_check_are_published_whenever_they_change() {
    let authority = Authority::new("cluster-1");
    let server = serve(&authority).await;
    let identity = authority.identity("worker-1", WORKER);
    let announcing = announce_to(&[server.address], identity, NodeDatapath::Ebpf);
    announcing.drained.send_replace(Drained {
        node: false,
        tasks: (0..Drained::MAX_TASKS)
            .map(|number| format!("{number:025}"))
            .collect(),
    });
    let mut most = FailedChecks::default();
    for number in 0..FailedChecks::MAX_TASKS {
        assert!(most.insert(format!("{number:025}"), &"x".repeat(200)));
    }
    for failed in [most, FailedChecks::default()] {
        announcing.failed.send_replace(failed.clone());
        let mut state = server.state.subscribe();
        let published = state.wait_for(|state| state.cluster.nodes["worker-1"].failed == failed);
        timeout(LIMIT, published)
            .await
            .expect("it was not published")
            .unwrap();
    }
}
