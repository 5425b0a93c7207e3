//! What this node's agent says of itself to the others: that its data path stands, and when it goes.
//! Knows neither how it is said nor what stands.

use std::time::Duration;

use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tracing::{info, warn};

use crate::{
    model::{Cluster, NodeDatapath, presence::all_heard_of},
    source::Told,
};

/// How long an agent that adopts a data path waits for the others' words before it does without: longer
/// than the longest pause between two attempts of theirs to reach a manager that has just come back.
const HEARING_LIMIT: Duration = Duration::from_secs(3);
/// How long the managers may take to hear that this node is leaving.
const TELLING_LIMIT: Duration = Duration::from_secs(1);
/// From the moment the managers have published it, for the other nodes to follow and for requests in
/// flight to end.
const SETTLE: Duration = Duration::from_millis(300);

/// This node's word, and the wait for the others'.
pub(super) struct Presence {
    word: watch::Sender<NodeDatapath>,
    told: watch::Receiver<Told>,
    /// Whether an earlier agent's data path carries traffic until the first plan.
    adopted: bool,
    leaving: bool,
    waiting_until: Option<Instant>,
}

impl Presence {
    /// An adopted data path of this kind already serves; a new one has to be brought up first.
    pub(super) fn new(adopted: Option<NodeDatapath>, told: watch::Receiver<Told>) -> Self {
        Self {
            word: watch::Sender::new(adopted.unwrap_or(NodeDatapath::None)),
            told,
            adopted: adopted.is_some(),
            leaving: false,
            waiting_until: None,
        }
    }

    /// What is announced, as it changes.
    pub(super) fn word(&self) -> watch::Receiver<NodeDatapath> {
        self.word.subscribe()
    }

    /// The data path stands (or, for [`NodeDatapath::None`], is gone).
    pub(super) fn announce(&self, datapath: NodeDatapath) {
        if self.leaving {
            return;
        }
        self.word.send_if_modified(|word| {
            let news = *word != datapath;
            *word = datapath;
            news
        });
    }

    /// Whether to plan by this picture: not while it lacks the word of a node that an adopted data path
    /// may be sending to.
    pub(super) fn may_plan(&mut self, cluster: &Cluster, own: &str) -> bool {
        if !self.adopted || all_heard_of(cluster, own) {
            self.adopted = false;
        } else {
            let until = *self
                .waiting_until
                .get_or_insert_with(|| Instant::now() + HEARING_LIMIT);
            if Instant::now() >= until {
                self.adopted = false;
                let silent = cluster
                    .nodes
                    .iter()
                    .filter(|(id, node)| *id != own && node.ready && node.datapath == NodeDatapath::Unknown);
                let silent: Vec<_> = silent.map(|(_, node)| node.hostname.as_str()).collect();
                warn!(
                    ?silent,
                    "no agent has been heard of on these nodes; nothing is sent to them"
                );
            }
        }
        if !self.adopted {
            self.waiting_until = None;
        }
        !self.adopted
    }

    /// Whether everybody is being told that this node's data path is about to go.
    pub(super) fn is_leaving(&self) -> bool {
        self.leaving
    }

    /// When to ask [`Self::may_plan`] again though nothing has changed.
    pub(super) fn ask_again_at(&self) -> Option<Instant> {
        self.waiting_until
    }

    /// Tells everybody that this node's data path is about to go, and gives them the time to follow.
    /// Bounded; nothing more is announced afterwards.
    pub(super) fn leave(&mut self, cluster: &Cluster, own: &str) -> impl Future<Output = ()> + use<> {
        self.leaving = true;
        let mut others = cluster.nodes.iter().filter(|(id, node)| *id != own && node.ready);
        // Unknown or not, someone who has a data path may be sending here.
        let anybody = others.any(|(_, node)| node.datapath != NodeDatapath::None);
        let here = *self.word.borrow() != NodeDatapath::None;
        let (word, told) = (self.word.clone(), self.told.clone());
        async move {
            if !here {
                return;
            }
            if !anybody {
                return sleep(SETTLE).await;
            }
            info!("telling the other nodes that this one is leaving");
            tell(NodeDatapath::Leaving, &word, told.clone()).await;
            sleep(SETTLE).await;
            // Whatever still comes is refused at its entry node from now on, instead of getting lost here.
            tell(NodeDatapath::None, &word, told).await;
        }
    }
}

async fn tell(word: NodeDatapath, sender: &watch::Sender<NodeDatapath>, mut told: watch::Receiver<Told>) {
    sender.send_replace(word);
    let everybody = told.wait_for(|told| told.everybody(word));
    if timeout(TELLING_LIMIT, everybody).await.is_err() {
        warn!(
            word = word.name(),
            "not every manager's agent could be told in time; going on"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::model::{Node, NodeRole};

    fn cluster(others: &[(&str, NodeDatapath)]) -> Cluster {
        let node = |datapath| Node {
            hostname: "host".to_owned(),
            address: Ipv4Addr::new(192, 0, 2, 1),
            role: NodeRole::Worker,
            ready: true,
            weight: 1,
            datapath,
            silent: false,
        };
        let own = ("own".to_owned(), node(NodeDatapath::Unknown));
        let others = others
            .iter()
            .map(|(id, datapath)| ((*id).to_owned(), node(*datapath)));
        Cluster {
            nodes: std::iter::once(own).chain(others).collect(),
            ..Cluster::default()
        }
    }

    /// One whose managers' words come by the returned sender.
    fn standing(adopted: Option<NodeDatapath>) -> (Presence, watch::Sender<Told>) {
        let (told, receiver) = watch::channel(Told::default());
        (Presence::new(adopted, receiver), told)
    }

    #[tokio::test]
    async fn a_new_data_path_is_planned_at_once_and_announced_when_it_stands() {
        let (mut presence, _told) = standing(None);
        let word = presence.word();
        assert_eq!(*word.borrow(), NodeDatapath::None);
        assert!(presence.may_plan(&cluster(&[("a", NodeDatapath::Unknown)]), "own"));
        presence.announce(NodeDatapath::Ebpf);
        assert_eq!(*word.borrow(), NodeDatapath::Ebpf);
    }

    #[tokio::test]
    async fn an_adopted_data_path_is_announced_at_once_and_kept_until_the_others_have_spoken() {
        let (mut presence, _told) = standing(Some(NodeDatapath::Ebpf));
        assert_eq!(*presence.word().borrow(), NodeDatapath::Ebpf);
        let silent = cluster(&[("a", NodeDatapath::Ebpf), ("b", NodeDatapath::Unknown)]);
        assert!(!presence.may_plan(&silent, "own"));
        assert!(presence.ask_again_at().is_some());
        let spoken = cluster(&[("a", NodeDatapath::Ebpf), ("b", NodeDatapath::None)]);
        assert!(presence.may_plan(&spoken, "own"));
        assert!(presence.ask_again_at().is_none());
        assert!(presence.may_plan(&silent, "own"), "it is asked once");
    }

    #[tokio::test]
    async fn whoever_stays_silent_is_waited_for_no_longer_than_the_limit() {
        let (mut presence, _told) = standing(Some(NodeDatapath::Ebpf));
        let silent = cluster(&[("a", NodeDatapath::Unknown)]);
        assert!(!presence.may_plan(&silent, "own"));
        presence.waiting_until = Some(Instant::now());
        assert!(presence.may_plan(&silent, "own"));
    }

    #[tokio::test]
    async fn leaving_is_told_before_none_and_nothing_is_announced_afterwards() {
        let (mut presence, _told) = standing(Some(NodeDatapath::Ebpf));
        let mut word = presence.word();
        let left = presence.leave(&cluster(&[("a", NodeDatapath::Ebpf)]), "own");
        assert!(presence.is_leaving());
        let begin = Instant::now();
        let listen = async {
            let mut words = Vec::new();
            while words.last() != Some(&NodeDatapath::None) {
                word.changed().await.unwrap();
                words.push(*word.borrow_and_update());
            }
            words
        };
        let ((), words) = tokio::join!(left, listen);
        assert_eq!(words, [NodeDatapath::Leaving, NodeDatapath::None]);
        assert!(begin.elapsed() >= SETTLE, "nobody was given time to follow");
        presence.announce(NodeDatapath::Ebpf);
        assert_eq!(*word.borrow(), NodeDatapath::None);
    }

    #[tokio::test]
    async fn a_data_path_that_does_not_stand_leaves_without_a_word() {
        let (mut presence, _told) = standing(None);
        let begin = Instant::now();
        presence
            .leave(&cluster(&[("a", NodeDatapath::Ebpf)]), "own")
            .await;
        assert!(begin.elapsed() < SETTLE);
    }
}
