//! The data-path state that each node's agent has announced to this manager, and how it enters the
//! snapshot. Imports the model only; the feed's sessions write it.
//!
//! Invariant: a lost connection does not change an announcement. The data path of a killed agent lives on
//! in its kernel, so a node's last announcement stays valid until Swarm reports the node down as well.

mod connections;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use mesh_support::watched::{Newest as _, Watched as _};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};

use self::connections::Connections;
use super::SourceState;
use crate::model::{Cluster, Drained, FailedChecks, KeyId, Node, NodeDatapath, NodeId};

/// How often the connections are looked at even if none has begun or ended.
const CONNECTIONS_INTERVAL: Duration = Duration::from_secs(1);

/// The announcements of all nodes; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Announcements(Arc<watch::Sender<State>>);

#[derive(Clone, Debug, Default)]
struct State {
    /// When the first announcement could be made.
    started: Option<Instant>,
    /// The number of the newest session of any node.
    session: u64,
    nodes: BTreeMap<NodeId, Announcement>,
}

#[derive(Clone, Debug)]
struct Announcement {
    announced: Announced,
    /// The node's newest session; older ones that linger no longer count.
    session: u64,
    connected: bool,
    connections: Connections,
}

/// What a node's agent announces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Announced {
    /// Its data path.
    pub(super) datapath: NodeDatapath,
    /// Where its packets are to be sent, if not to the address that Swarm lists.
    pub(super) address: Option<Ipv4Addr>,
    /// The agent's release; empty from older agents.
    pub(super) release: String,
    /// The keys that the data path takes; see [`Node::keys`].
    pub(super) keys: Option<Vec<KeyId>>,
    /// The replicas that an operator drains on the node.
    pub(super) drained: Drained,
    /// The replicas on the node that fail their check.
    pub(super) failed: FailedChecks,
}

#[cfg(test)]
impl From<NodeDatapath> for Announced {
    fn from(datapath: NodeDatapath) -> Self {
        Self {
            datapath,
            ..Self::default()
        }
    }
}

/// One connection of a node's agent. The last announcement stays valid when it is dropped.
#[derive(Debug)]
pub(super) struct AnnouncementSession {
    announcements: Announcements,
    node: NodeId,
    session: u64,
}

impl Announcements {
    /// No announcements yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a session for a node whose agent has connected.
    pub(super) fn open(&self, node: &str) -> AnnouncementSession {
        let mut session = 0;
        self.0.send_modify(|known| {
            known.session += 1;
            let connections = known.nodes.get(node).map(|last| last.connections.clone());
            session = known.session;
            let last = known.nodes.get(node);
            let announcement = Announcement {
                announced: last.map(|last| last.announced.clone()).unwrap_or_default(),
                session,
                connected: true,
                connections: connections.unwrap_or_default(),
            };
            known.nodes.insert(node.to_owned(), announcement);
        });
        AnnouncementSession {
            announcements: self.clone(),
            node: node.to_owned(),
            session,
        }
    }

    /// Announces this manager's own node whenever something of it changes, until a sender is gone.
    pub(crate) async fn announce_for(
        &self,
        node: &str,
        address: Option<Ipv4Addr>,
        mut datapath: watch::Receiver<NodeDatapath>,
        mut keys: watch::Receiver<Vec<KeyId>>,
        mut drained: watch::Receiver<Drained>,
        mut failed: watch::Receiver<FailedChecks>,
    ) {
        let session = self.open(node);
        loop {
            session.announce(Announced {
                datapath: datapath.newest(),
                address,
                release: crate::RELEASE.to_owned(),
                keys: known_keys(Some(keys.newest())),
                drained: drained.newest(),
                failed: failed.newest(),
            });
            let changed = tokio::select! {
                changed = datapath.changed() => changed,
                changed = keys.changed() => changed,
                changed = drained.changed() => changed,
                changed = failed.changed() => changed,
            };
            if changed.is_err() {
                // The agent is ending.
                return std::future::pending().await;
            }
        }
    }

    /// Adds the announcements to a snapshot that is about to be published.
    pub(super) fn put_into(&self, cluster: &mut Cluster) {
        self.forget_lost(cluster);
        let changed = self.0.read(|known| differences(known, cluster));
        cluster.nodes.extend(changed);
    }

    /// Adds each new announcement to the published snapshot; never returns.
    pub(super) async fn publish_to(&self, state: &watch::Sender<SourceState>) {
        let mut known = self.0.subscribe();
        // That an agent has been away for long is no event.
        let mut tick = interval(CONNECTIONS_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.0.send_if_modified(|known| {
            known.started.get_or_insert_with(Instant::now);
            false
        });
        loop {
            known.mark_unchanged();
            state.send_if_modified(|state| {
                self.forget_lost(&state.cluster);
                let changed = self.0.read(|known| differences(known, &state.cluster));
                if changed.is_empty() || state.revision == 0 {
                    return false;
                }
                let cluster = Arc::make_mut(&mut state.cluster);
                cluster.nodes.extend(changed);
                state.revision += 1;
                state.changed = Some(SystemTime::now());
                true
            });
            tokio::select! {
                _ = tick.tick() => {}
                changed = known.changed() => if changed.is_err() {
                    return std::future::pending().await;
                },
            }
        }
    }

    /// A node that is down in Swarm and whose agent is disconnected may have been switched off: it has to
    /// announce again when it returns. Nodes that are no longer listed are dropped.
    fn forget_lost(&self, cluster: &Cluster) {
        self.0.send_if_modified(|known| {
            known
                .nodes
                .retain(|id, announcement| announcement.connected || cluster.nodes.contains_key(id));
            for (id, announcement) in &mut known.nodes {
                if !announcement.connected && cluster.nodes.get(id).is_some_and(|node| !node.ready) {
                    announcement.announced.datapath = NodeDatapath::None;
                }
            }
            // The callers read the announcements right after this.
            false
        });
    }
}

impl AnnouncementSession {
    /// Records what the node announces; false if a newer session exists.
    pub(super) fn announce(&self, announced: Announced) -> bool {
        let mut current = false;
        self.announcements.0.send_if_modified(|known| {
            let Some(announcement) = known.nodes.get_mut(&self.node) else {
                return false;
            };
            current = announcement.session == self.session;
            let connected = current && announcement.connections.announced(self.session, Instant::now());
            let changed = current && announcement.announced != announced;
            if changed {
                announcement.announced = announced;
            }
            changed || connected
        });
        current
    }
}

impl Drop for AnnouncementSession {
    fn drop(&mut self) {
        self.announcements.0.send_if_modified(|known| {
            let announcement = known.nodes.get_mut(&self.node);
            match announcement.filter(|announcement| announcement.session == self.session) {
                Some(announcement) => {
                    announcement.connected = false;
                    announcement.connections.ended(Instant::now());
                    true
                }
                None => false,
            }
        });
    }
}

/// What is known of a node's keys from what it announced: an agent without the field takes none, and one that
/// holds none yet may be about to.
pub(crate) fn known_keys(announced: Option<Vec<KeyId>>) -> Option<Vec<KeyId>> {
    match announced {
        None => Some(Vec::new()),
        Some(keys) => Some(keys).filter(|keys| !keys.is_empty()),
    }
}

/// The nodes for which the snapshot differs from what they announced, as they are to be. No node gets an
/// address that is another's.
fn differences(known: &State, cluster: &Cluster) -> Vec<(NodeId, Node)> {
    let taken: BTreeSet<Ipv4Addr> = cluster.nodes.values().map(|node| node.address).collect();
    let nodes = cluster.nodes.iter();
    let now = Instant::now();
    let running = known
        .started
        .map(|started| now.saturating_duration_since(started));
    nodes
        .filter_map(|(id, node)| {
            let connections = known.nodes.get(id).map(|known| &known.connections);
            let agent = connections::state(connections, running.unwrap_or_default(), now);
            let announced = known.nodes.get(id).map(|known| known.announced.clone());
            let announced = announced.unwrap_or_default();
            let address = announced.address.filter(|address| !taken.contains(address));
            let new = Node {
                datapath: announced.datapath,
                address: address.unwrap_or(node.address),
                release: announced.release,
                keys: announced.keys,
                drained: announced.drained,
                failed: announced.failed,
                agent,
                ..node.clone()
            };
            (new != *node).then(|| (id.clone(), new))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::model::{AgentConnection, Node, NodeRole};

    fn listed(nodes: &[(&str, bool)]) -> Cluster {
        let node = |&(id, ready): &(&str, bool)| {
            let node = Node {
                ready,
                ..Node::new(id.to_owned(), Ipv4Addr::new(192, 0, 2, 1), NodeRole::Worker)
            };
            (id.to_owned(), node)
        };
        Cluster {
            nodes: nodes.iter().map(node).collect(),
            ..Cluster::default()
        }
    }

    fn seen(announcements: &Announcements, nodes: &[(&str, bool)]) -> Vec<NodeDatapath> {
        let mut cluster = listed(nodes);
        announcements.put_into(&mut cluster);
        cluster.nodes.values().map(|node| node.datapath).collect()
    }

    #[test]
    fn a_lost_connection_keeps_the_last_announcement() {
        let announcements = Announcements::new();
        let session = announcements.open("a");
        assert_eq!(
            seen(&announcements, &[("a", true), ("b", true)]),
            [NodeDatapath::Unknown; 2]
        );
        assert!(session.announce(NodeDatapath::Ipvs.into()));
        drop(session);
        assert_eq!(
            seen(&announcements, &[("a", true), ("b", true)]),
            [NodeDatapath::Ipvs, NodeDatapath::Unknown]
        );
    }

    #[test]
    fn a_node_that_is_down_in_swarm_too_must_announce_again() {
        let announcements = Announcements::new();
        let session = announcements.open("a");
        session.announce(NodeDatapath::Ebpf.into());
        assert_eq!(
            seen(&announcements, &[("a", false)]),
            [NodeDatapath::Ebpf],
            "its agent is connected"
        );
        drop(session);
        assert_eq!(seen(&announcements, &[("a", false)]), [NodeDatapath::None]);
        assert_eq!(seen(&announcements, &[("a", true)]), [NodeDatapath::None]);
        announcements.open("a").announce(NodeDatapath::Ebpf.into());
        assert_eq!(seen(&announcements, &[("a", true)]), [NodeDatapath::Ebpf]);
    }

    #[test]
    fn an_older_session_no_longer_counts() {
        let announcements = Announcements::new();
        let old = announcements.open("a");
        let new = announcements.open("a");
        assert!(new.announce(NodeDatapath::Ebpf.into()));
        assert!(!old.announce(NodeDatapath::None.into()));
        drop(old);
        assert_eq!(
            seen(&announcements, &[("a", false)]),
            [NodeDatapath::Ebpf],
            "the new one is connected"
        );
    }

    #[test]
    fn packets_go_to_the_address_that_a_node_announced_unless_it_is_anothers() {
        let announcements = Announcements::new();
        let session = announcements.open("a");
        session.announce(Announced {
            address: Some(Ipv4Addr::new(10, 7, 0, 1)),
            ..NodeDatapath::Ebpf.into()
        });
        let address = |address: [u8; 4]| {
            let mut cluster = listed(&[("a", true), ("b", true)]);
            cluster.nodes.get_mut("b").unwrap().address = address.into();
            announcements.put_into(&mut cluster);
            cluster.nodes["a"].address
        };
        assert_eq!(address([192, 0, 2, 2]), Ipv4Addr::new(10, 7, 0, 1));
        assert_eq!(address([10, 7, 0, 1]), Ipv4Addr::new(192, 0, 2, 1));
        drop(session);
        assert_eq!(
            address([192, 0, 2, 2]),
            Ipv4Addr::new(10, 7, 0, 1),
            "it stays like the announcement"
        );
    }

    #[test]
    fn the_agents_release_and_drained_replicas_are_in_the_snapshot() {
        let announcements = Announcements::new();
        announcements.open("a").announce(Announced {
            release: "1.2.3".to_owned(),
            drained: Drained {
                node: true,
                ..Drained::default()
            },
            ..NodeDatapath::Ebpf.into()
        });
        let mut cluster = listed(&[("a", true), ("b", true)]);
        announcements.put_into(&mut cluster);
        let nodes = cluster.nodes.values();
        let seen: Vec<_> = nodes
            .map(|node| (node.release.as_str(), node.drained.node))
            .collect();
        assert_eq!(seen, [("1.2.3", true), ("", false)]);
    }

    #[test]
    fn the_snapshot_says_whose_agent_is_connected() {
        let announcements = Announcements::new();
        announcements
            .0
            .send_modify(|known| known.started = Instant::now().checked_sub(Duration::from_secs(60)));
        let agents = || {
            let mut cluster = listed(&[("a", true), ("b", true)]);
            announcements.put_into(&mut cluster);
            cluster.nodes.values().map(|node| node.agent).collect::<Vec<_>>()
        };
        let session = announcements.open("a");
        assert_eq!(agents(), [AgentConnection::Lost; 2], "it has announced nothing");
        session.announce(NodeDatapath::Ebpf.into());
        assert_eq!(agents(), [AgentConnection::Connected, AgentConnection::Lost]);
        drop(session);
        assert_eq!(
            agents()[0],
            AgentConnection::Connected,
            "it may be starting again"
        );
    }

    #[test]
    fn a_removed_node_is_dropped() {
        let announcements = Announcements::new();
        announcements.open("a").announce(NodeDatapath::Ebpf.into());
        seen(&announcements, &[("b", true)]);
        assert_eq!(seen(&announcements, &[("a", true)]), [NodeDatapath::Unknown]);
    }

    #[tokio::test]
    async fn each_new_announcement_is_a_new_revision() {
        let announcements = Announcements::new();
        let (state, mut receiver) = watch::channel(SourceState {
            cluster: Arc::new(listed(&[("a", true)])),
            revision: 7,
            ..SourceState::default()
        });
        let session = announcements.open("a");
        let follow = async {
            for (revision, datapath) in [(8, NodeDatapath::Ebpf), (9, NodeDatapath::Leaving)] {
                session.announce(datapath.into());
                // Repeating an announcement changes nothing.
                session.announce(datapath.into());
                let now = receiver
                    .wait_for(|state| state.revision >= revision)
                    .await
                    .unwrap();
                assert_eq!(
                    (now.revision, now.cluster.nodes["a"].datapath),
                    (revision, datapath)
                );
            }
        };
        tokio::select! {
            () = announcements.publish_to(&state) => unreachable!("it never ends"),
            () = follow => {}
        }
    }
}
