//! The data-path state that each node's agent has announced to this manager, and how it enters the
//! snapshot. Imports the model only; the feed's sessions write it.
//!
//! Invariant: a lost connection does not change an announcement. The data path of a killed agent lives on
//! in its kernel, so a node's last announcement stays valid until Swarm reports the node down as well.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use tokio::sync::watch;

use super::SourceState;
use crate::model::{Cluster, NodeDatapath, NodeId};

/// The announcements of all nodes; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Announcements(Arc<watch::Sender<State>>);

#[derive(Clone, Debug, Default)]
struct State {
    /// The number of the newest session of any node.
    session: u64,
    nodes: BTreeMap<NodeId, Announcement>,
}

#[derive(Clone, Copy, Debug)]
struct Announcement {
    datapath: NodeDatapath,
    /// The node's newest session; older ones that linger no longer count.
    session: u64,
    connected: bool,
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
            session = known.session;
            let datapath = known.nodes.get(node).map(|announcement| announcement.datapath);
            let announcement = Announcement {
                datapath: datapath.unwrap_or_default(),
                session,
                connected: true,
            };
            known.nodes.insert(node.to_owned(), announcement);
        });
        AnnouncementSession {
            announcements: self.clone(),
            node: node.to_owned(),
            session,
        }
    }

    /// Announces this manager's own node whenever `datapath` changes, until its sender is gone.
    pub(crate) async fn announce_for(&self, node: &str, mut datapath: watch::Receiver<NodeDatapath>) {
        let session = self.open(node);
        loop {
            session.announce(*datapath.borrow_and_update());
            if datapath.changed().await.is_err() {
                // The agent is ending.
                return std::future::pending().await;
            }
        }
    }

    /// Adds the announcements to a snapshot that is about to be published.
    pub(super) fn put_into(&self, cluster: &mut Cluster) {
        self.forget_lost(cluster);
        for (id, datapath) in differences(&self.0.borrow(), cluster) {
            if let Some(node) = cluster.nodes.get_mut(&id) {
                node.datapath = datapath;
            }
        }
    }

    /// Adds each new announcement to the published snapshot; never returns.
    pub(super) async fn publish_to(&self, state: &watch::Sender<SourceState>) {
        let mut known = self.0.subscribe();
        loop {
            known.mark_unchanged();
            state.send_if_modified(|state| {
                self.forget_lost(&state.cluster);
                let changed = differences(&self.0.borrow(), &state.cluster);
                if changed.is_empty() || state.revision == 0 {
                    return false;
                }
                let cluster = Arc::make_mut(&mut state.cluster);
                for (id, datapath) in changed {
                    if let Some(node) = cluster.nodes.get_mut(&id) {
                        node.datapath = datapath;
                    }
                }
                state.revision += 1;
                state.changed = Some(SystemTime::now());
                true
            });
            if known.changed().await.is_err() {
                return std::future::pending().await;
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
                    announcement.datapath = NodeDatapath::None;
                }
            }
            // The callers read the announcements right after this.
            false
        });
    }
}

impl AnnouncementSession {
    /// Records the node's data path; false if a newer session exists.
    pub(super) fn announce(&self, datapath: NodeDatapath) -> bool {
        let mut current = false;
        self.announcements.0.send_if_modified(|known| {
            let Some(announcement) = known.nodes.get_mut(&self.node) else {
                return false;
            };
            current = announcement.session == self.session;
            let changed = current && announcement.datapath != datapath;
            if changed {
                announcement.datapath = datapath;
            }
            changed
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
                    true
                }
                None => false,
            }
        });
    }
}

/// The nodes whose data path in the snapshot differs from what they announced.
fn differences(known: &State, cluster: &Cluster) -> Vec<(NodeId, NodeDatapath)> {
    let announced = |id: &NodeId| {
        known
            .nodes
            .get(id)
            .map_or(NodeDatapath::Unknown, |announcement| announcement.datapath)
    };
    cluster
        .nodes
        .iter()
        .filter(|(id, node)| node.datapath != announced(id))
        .map(|(id, _)| (id.clone(), announced(id)))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::model::{Node, NodeRole};

    fn listed(nodes: &[(&str, bool)]) -> Cluster {
        let node = |&(id, ready): &(&str, bool)| {
            let node = Node {
                hostname: id.to_owned(),
                address: Ipv4Addr::new(192, 0, 2, 1),
                role: NodeRole::Worker,
                ready,
                weight: 1,
                datapath: NodeDatapath::Unknown,
                silent: false,
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
        assert!(session.announce(NodeDatapath::Ipvs));
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
        session.announce(NodeDatapath::Ebpf);
        assert_eq!(
            seen(&announcements, &[("a", false)]),
            [NodeDatapath::Ebpf],
            "its agent is connected"
        );
        drop(session);
        assert_eq!(seen(&announcements, &[("a", false)]), [NodeDatapath::None]);
        assert_eq!(seen(&announcements, &[("a", true)]), [NodeDatapath::None]);
        announcements.open("a").announce(NodeDatapath::Ebpf);
        assert_eq!(seen(&announcements, &[("a", true)]), [NodeDatapath::Ebpf]);
    }

    #[test]
    fn an_older_session_no_longer_counts() {
        let announcements = Announcements::new();
        let old = announcements.open("a");
        let new = announcements.open("a");
        assert!(new.announce(NodeDatapath::Ebpf));
        assert!(!old.announce(NodeDatapath::None));
        drop(old);
        assert_eq!(
            seen(&announcements, &[("a", false)]),
            [NodeDatapath::Ebpf],
            "the new one is connected"
        );
    }

    #[test]
    fn a_removed_node_is_dropped() {
        let announcements = Announcements::new();
        announcements.open("a").announce(NodeDatapath::Ebpf);
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
                session.announce(datapath);
                // Repeating an announcement changes nothing.
                session.announce(datapath);
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
