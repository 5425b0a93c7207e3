//! What the nodes' agents have told this manager of their data paths, and how it gets into the picture.
//! Imports the model only; the feed's sessions write it.
//!
//! Invariant: a lost connection is no announcement. The data path of an agent that was killed lives on in
//! its kernel, so a node's last word stays, until Swarm has lost the node as well.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use tokio::sync::watch;

use super::SourceState;
use crate::model::{Cluster, NodeDatapath, NodeId};

/// The words of all nodes; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Presence(Arc<watch::Sender<Words>>);

#[derive(Clone, Debug, Default)]
struct Words {
    /// The number of the newest session of any node.
    session: u64,
    nodes: BTreeMap<NodeId, Word>,
}

#[derive(Clone, Copy, Debug)]
struct Word {
    datapath: NodeDatapath,
    /// The node's newest session: an older one that lingers speaks for it no more.
    session: u64,
    connected: bool,
}

/// One connection of a node's agent. Dropped, it leaves the last word in force.
#[derive(Debug)]
pub(super) struct PresenceSession {
    presence: Presence,
    node: NodeId,
    session: u64,
}

impl Presence {
    /// Nobody has been heard of.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A node's agent has connected.
    pub(super) fn open(&self, node: &str) -> PresenceSession {
        let mut session = 0;
        self.0.send_modify(|words| {
            words.session += 1;
            session = words.session;
            let datapath = words.nodes.get(node).map(|word| word.datapath);
            let word = Word {
                datapath: datapath.unwrap_or_default(),
                session,
                connected: true,
            };
            words.nodes.insert(node.to_owned(), word);
        });
        PresenceSession {
            presence: self.clone(),
            node: node.to_owned(),
            session,
        }
    }

    /// Speaks for this manager's own node whenever `word` changes, until its sender is gone.
    pub(crate) async fn speak_for(&self, node: &str, mut word: watch::Receiver<NodeDatapath>) {
        let session = self.open(node);
        loop {
            session.announce(*word.borrow_and_update());
            if word.changed().await.is_err() {
                // The agent is ending.
                return std::future::pending().await;
            }
        }
    }

    /// Puts the words into a picture that is about to be published.
    pub(super) fn put_into(&self, cluster: &mut Cluster) {
        self.forget_lost(cluster);
        for (id, datapath) in differences(&self.0.borrow(), cluster) {
            if let Some(node) = cluster.nodes.get_mut(&id) {
                node.datapath = datapath;
            }
        }
    }

    /// Puts each new word into the published picture; never ends.
    pub(super) async fn publish_to(&self, state: &watch::Sender<SourceState>) {
        let mut words = self.0.subscribe();
        loop {
            words.mark_unchanged();
            state.send_if_modified(|state| {
                self.forget_lost(&state.cluster);
                let news = differences(&self.0.borrow(), &state.cluster);
                if news.is_empty() || state.revision == 0 {
                    return false;
                }
                let cluster = Arc::make_mut(&mut state.cluster);
                for (id, datapath) in news {
                    if let Some(node) = cluster.nodes.get_mut(&id) {
                        node.datapath = datapath;
                    }
                }
                state.revision += 1;
                state.changed = Some(SystemTime::now());
                true
            });
            if words.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// A node that Swarm has lost and whose agent is away may have been switched off: when it comes back
    /// it has to speak anew. Nodes that are no longer listed are forgotten.
    fn forget_lost(&self, cluster: &Cluster) {
        self.0.send_if_modified(|words| {
            words
                .nodes
                .retain(|id, word| word.connected || cluster.nodes.contains_key(id));
            for (id, word) in &mut words.nodes {
                if !word.connected && cluster.nodes.get(id).is_some_and(|node| !node.ready) {
                    word.datapath = NodeDatapath::None;
                }
            }
            // Whoever calls this looks at the words next.
            false
        });
    }
}

impl PresenceSession {
    /// Takes the node's word; false if a newer session speaks for the node.
    pub(super) fn announce(&self, datapath: NodeDatapath) -> bool {
        let mut current = false;
        self.presence.0.send_if_modified(|words| {
            let Some(word) = words.nodes.get_mut(&self.node) else {
                return false;
            };
            current = word.session == self.session;
            let news = current && word.datapath != datapath;
            if news {
                word.datapath = datapath;
            }
            news
        });
        current
    }
}

impl Drop for PresenceSession {
    fn drop(&mut self) {
        self.presence.0.send_if_modified(|words| {
            let word = words.nodes.get_mut(&self.node);
            match word.filter(|word| word.session == self.session) {
                Some(word) => {
                    word.connected = false;
                    true
                }
                None => false,
            }
        });
    }
}

/// The nodes of which the picture says something else than they themselves.
fn differences(words: &Words, cluster: &Cluster) -> Vec<(NodeId, NodeDatapath)> {
    let said = |id: &NodeId| {
        words
            .nodes
            .get(id)
            .map_or(NodeDatapath::Unknown, |word| word.datapath)
    };
    cluster
        .nodes
        .iter()
        .filter(|(id, node)| node.datapath != said(id))
        .map(|(id, _)| (id.clone(), said(id)))
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

    fn seen(presence: &Presence, nodes: &[(&str, bool)]) -> Vec<NodeDatapath> {
        let mut cluster = listed(nodes);
        presence.put_into(&mut cluster);
        cluster.nodes.values().map(|node| node.datapath).collect()
    }

    #[test]
    fn a_lost_connection_leaves_the_last_word_in_force() {
        let presence = Presence::new();
        let session = presence.open("a");
        assert_eq!(
            seen(&presence, &[("a", true), ("b", true)]),
            [NodeDatapath::Unknown; 2]
        );
        assert!(session.announce(NodeDatapath::Ipvs));
        drop(session);
        assert_eq!(
            seen(&presence, &[("a", true), ("b", true)]),
            [NodeDatapath::Ipvs, NodeDatapath::Unknown]
        );
    }

    #[test]
    fn a_node_that_swarm_has_lost_too_speaks_anew_when_it_is_back() {
        let presence = Presence::new();
        let session = presence.open("a");
        session.announce(NodeDatapath::Ebpf);
        assert_eq!(
            seen(&presence, &[("a", false)]),
            [NodeDatapath::Ebpf],
            "its agent is connected"
        );
        drop(session);
        assert_eq!(seen(&presence, &[("a", false)]), [NodeDatapath::None]);
        assert_eq!(seen(&presence, &[("a", true)]), [NodeDatapath::None]);
        presence.open("a").announce(NodeDatapath::Ebpf);
        assert_eq!(seen(&presence, &[("a", true)]), [NodeDatapath::Ebpf]);
    }

    #[test]
    fn an_older_session_speaks_no_more() {
        let presence = Presence::new();
        let old = presence.open("a");
        let new = presence.open("a");
        assert!(new.announce(NodeDatapath::Ebpf));
        assert!(!old.announce(NodeDatapath::None));
        drop(old);
        assert_eq!(
            seen(&presence, &[("a", false)]),
            [NodeDatapath::Ebpf],
            "the new one is connected"
        );
    }

    #[test]
    fn a_removed_node_is_forgotten() {
        let presence = Presence::new();
        presence.open("a").announce(NodeDatapath::Ebpf);
        seen(&presence, &[("b", true)]);
        assert_eq!(seen(&presence, &[("a", true)]), [NodeDatapath::Unknown]);
    }

    #[tokio::test]
    async fn each_new_word_is_a_new_revision() {
        let presence = Presence::new();
        let (state, mut receiver) = watch::channel(SourceState {
            cluster: Arc::new(listed(&[("a", true)])),
            revision: 7,
            ..SourceState::default()
        });
        let session = presence.open("a");
        let follow = async {
            for (revision, datapath) in [(8, NodeDatapath::Ebpf), (9, NodeDatapath::Leaving)] {
                session.announce(datapath);
                // The same word again is no news.
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
            () = presence.publish_to(&state) => unreachable!("it never ends"),
            () = follow => {}
        }
    }
}
