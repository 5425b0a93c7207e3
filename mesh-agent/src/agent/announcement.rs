//! What this node's agent announces to the others: its data path, and that it is leaving. Depends on neither
//! the transport nor the data path.

use std::{collections::BTreeSet, net::Ipv4Addr, time::Duration};

use mesh_support::watched::Watched as _;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tracing::{info, warn};

use crate::{
    model::{Cluster, KeyId, NodeDatapath, announced::unknown_nodes},
    source::Acknowledged,
};

/// How long an agent that adopts a data path waits for the other nodes' announcements: longer than the
/// longest pause between two attempts of theirs to reach a manager that has just come back.
const OTHERS_LIMIT: Duration = Duration::from_secs(3);
/// How long it waits for answers to its probes from nodes that managers call down, as such a node may be for
/// months: several probes long.
const DOWN_LIMIT: Duration = Duration::from_secs(1);
/// How long the managers may take to acknowledge that this node is leaving.
const ACKNOWLEDGE_LIMIT: Duration = Duration::from_secs(1);
/// After the managers have published it: time for the other nodes to follow, and for requests in flight.
const SETTLE: Duration = Duration::from_millis(300);

/// This node's announcement, and the wait for those of the others.
pub(super) struct OwnAnnouncement {
    datapath: watch::Sender<NodeDatapath>,
    /// The ids of the keys that the data path takes.
    keys: watch::Sender<Vec<KeyId>>,
    acknowledged: watch::Receiver<Acknowledged>,
    /// Whether an earlier agent's data path carries traffic until the first plan.
    adopted: bool,
    leaving: bool,
    waiting_since: Option<Instant>,
    waiting_until: Option<Instant>,
}

impl OwnAnnouncement {
    /// `adopted` is the kind of an adopted data path, which serves already; a new one has to be brought up
    /// first.
    pub(super) fn new(adopted: Option<NodeDatapath>, acknowledged: watch::Receiver<Acknowledged>) -> Self {
        Self {
            datapath: watch::Sender::new(adopted.unwrap_or(NodeDatapath::None)),
            keys: watch::Sender::default(),
            acknowledged,
            adopted: adopted.is_some(),
            leaving: false,
            waiting_since: None,
            waiting_until: None,
        }
    }

    /// What is announced, as it changes.
    pub(super) fn subscribe(&self) -> watch::Receiver<NodeDatapath> {
        self.datapath.subscribe()
    }

    /// The ids of the keys that are announced, as they change.
    pub(super) fn subscribe_keys(&self) -> watch::Receiver<Vec<KeyId>> {
        self.keys.subscribe()
    }

    /// Announces which keys the data path takes, from now on.
    pub(super) fn announce_keys(&self, keys: Vec<KeyId>) {
        self.keys.send_if_modified(|announced| {
            let changed = *announced != keys;
            *announced = keys;
            changed
        });
    }

    /// Announces a data path that is up (or, with [`NodeDatapath::None`], gone).
    pub(super) fn announce(&self, datapath: NodeDatapath) {
        if self.leaving {
            return;
        }
        self.datapath.send_if_modified(|announced| {
            let changed = *announced != datapath;
            *announced = datapath;
            changed
        });
    }

    /// Whether to plan by this snapshot: not while the announcement of a node is missing to which an
    /// adopted data path may be sending, unless its data path has `answered` this node's probes.
    pub(super) fn may_plan(&mut self, cluster: &Cluster, own: &str, answered: &BTreeSet<Ipv4Addr>) -> bool {
        if !self.adopted {
            return true;
        }
        let unknown: Vec<_> = unknown_nodes(cluster, own, answered).collect();
        if unknown.is_empty() {
            self.adopted = false;
        } else {
            let limit = match unknown.iter().any(|node| node.ready) {
                true => OTHERS_LIMIT,
                false => DOWN_LIMIT,
            };
            let now = Instant::now();
            let until = *self.waiting_since.get_or_insert(now) + limit;
            self.waiting_until = Some(until);
            if now >= until {
                self.adopted = false;
                let unknown: Vec<_> = unknown.iter().map(|node| node.hostname.as_str()).collect();
                warn!(
                    ?unknown,
                    "the agents of these nodes have announced no data path, and none answers probes: nothing is \
                     sent to them"
                );
            }
        }
        if !self.adopted {
            self.waiting_until = None;
        }
        !self.adopted
    }

    /// Whether an earlier agent's data path carries the traffic: there was no plan yet.
    pub(super) fn is_adopted(&self) -> bool {
        self.adopted
    }

    /// Whether this node has announced that it is leaving.
    pub(super) fn is_leaving(&self) -> bool {
        self.leaving
    }

    /// When to call [`Self::may_plan`] again even if nothing has changed.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.waiting_until
    }

    /// Announces that this node's data path is about to go, and gives the other nodes time to follow.
    /// Bounded; nothing is announced afterwards.
    pub(super) fn leave(&mut self, cluster: &Cluster, own: &str) -> impl Future<Output = ()> + use<> {
        self.leaving = true;
        let mut others = cluster.nodes.iter().filter(|(id, node)| *id != own && node.ready);
        // Any node that may have a data path may be sending here, also one that has not announced it.
        let others_may_send = others.any(|(_, node)| node.datapath != NodeDatapath::None);
        let is_up = self.datapath.current() != NodeDatapath::None;
        let (datapath, acknowledged) = (self.datapath.clone(), self.acknowledged.clone());
        async move {
            if !is_up {
                return;
            }
            if !others_may_send {
                return sleep(SETTLE).await;
            }
            info!("announcing to the other nodes that this node is leaving");
            announce_and_wait(NodeDatapath::Leaving, &datapath, acknowledged.clone()).await;
            sleep(SETTLE).await;
            // From now on entry nodes refuse new packets for this node instead of losing them here.
            announce_and_wait(NodeDatapath::None, &datapath, acknowledged).await;
        }
    }
}

async fn announce_and_wait(
    datapath: NodeDatapath,
    sender: &watch::Sender<NodeDatapath>,
    mut acknowledged: watch::Receiver<Acknowledged>,
) {
    sender.send_replace(datapath);
    let by_all = acknowledged.wait_for(|acknowledged| acknowledged.by_all(datapath));
    if timeout(ACKNOWLEDGE_LIMIT, by_all).await.is_err() {
        warn!(
            announced = datapath.name(),
            "not every manager acknowledged in time; continuing"
        );
    }
}

#[cfg(test)]
mod tests {
    use mesh_support::watched::Newest as _;

    use super::*;
    use crate::model::{Node, NodeRole, Task, TaskState};

    fn cluster(others: &[(&str, NodeDatapath)]) -> Cluster {
        let node = |datapath| Node {
            datapath,
            ..Node::new("host".to_owned(), Ipv4Addr::new(192, 0, 2, 1), NodeRole::Worker)
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

    /// An announcement, and the sender of the managers' acknowledgements.
    fn announcement(adopted: Option<NodeDatapath>) -> (OwnAnnouncement, watch::Sender<Acknowledged>) {
        let (sender, acknowledged) = watch::channel(Acknowledged::default());
        (OwnAnnouncement::new(adopted, acknowledged), sender)
    }

    #[tokio::test]
    async fn a_new_data_path_is_planned_at_once_and_announced_when_it_is_up() {
        let (mut own, _sender) = announcement(None);
        let announced = own.subscribe();
        assert_eq!(announced.current(), NodeDatapath::None);
        assert!(own.may_plan(&cluster(&[("a", NodeDatapath::Unknown)]), "own", &BTreeSet::new()));
        own.announce(NodeDatapath::Ebpf);
        assert_eq!(announced.current(), NodeDatapath::Ebpf);
    }

    #[tokio::test]
    async fn an_adopted_data_path_is_announced_at_once_and_kept_until_the_others_have_announced() {
        let (mut own, _sender) = announcement(Some(NodeDatapath::Ebpf));
        assert_eq!(own.subscribe().current(), NodeDatapath::Ebpf);
        let incomplete = cluster(&[("a", NodeDatapath::Ebpf), ("b", NodeDatapath::Unknown)]);
        assert!(!own.may_plan(&incomplete, "own", &BTreeSet::new()));
        assert!(own.retry_at().is_some());
        let complete = cluster(&[("a", NodeDatapath::Ebpf), ("b", NodeDatapath::None)]);
        assert!(own.may_plan(&complete, "own", &BTreeSet::new()));
        assert!(own.retry_at().is_none());
        assert!(
            own.may_plan(&incomplete, "own", &BTreeSet::new()),
            "it waits only once"
        );
    }

    #[tokio::test]
    async fn the_wait_for_a_silent_node_is_bounded() {
        let (mut own, _sender) = announcement(Some(NodeDatapath::Ebpf));
        let silent = cluster(&[("a", NodeDatapath::Unknown)]);
        assert!(!own.may_plan(&silent, "own", &BTreeSet::new()));
        own.waiting_since = Some(Instant::now() - OTHERS_LIMIT);
        assert!(own.may_plan(&silent, "own", &BTreeSet::new()));
    }

    #[tokio::test]
    async fn a_node_that_is_down_but_has_tasks_gets_the_time_to_answer_a_probe() {
        let (mut own, _sender) = announcement(Some(NodeDatapath::Ebpf));
        let mut down = cluster(&[("a", NodeDatapath::Unknown), ("gone", NodeDatapath::Unknown)]);
        for id in ["a", "gone"] {
            down.nodes.get_mut(id).unwrap().ready = false;
        }
        let task = Task {
            service: "web".to_owned(),
            name: "web.1".to_owned(),
            slot: Some(1),
            node: "a".to_owned(),
            address: Ipv4Addr::new(10, 0, 0, 2),
            state: TaskState::Active,
        };
        down.tasks.insert("task".to_owned(), task);
        assert!(!own.may_plan(&down, "own", &BTreeSet::new()));
        own.waiting_since = Some(Instant::now() - DOWN_LIMIT);
        assert!(own.may_plan(&down, "own", &BTreeSet::new()));

        let (mut own, _sender) = announcement(Some(NodeDatapath::Ebpf));
        down.tasks.clear();
        assert!(
            own.may_plan(&down, "own", &BTreeSet::new()),
            "nothing is sent there"
        );
    }

    #[tokio::test]
    async fn a_data_path_that_answers_probes_needs_no_announcement() {
        let (mut own, _sender) = announcement(Some(NodeDatapath::Ebpf));
        let mut unknown = cluster(&[("a", NodeDatapath::Unknown), ("b", NodeDatapath::Unknown)]);
        let (a, b) = (Ipv4Addr::new(192, 0, 2, 2), Ipv4Addr::new(192, 0, 2, 3));
        unknown.nodes.get_mut("a").unwrap().address = a;
        unknown.nodes.get_mut("b").unwrap().address = b;
        assert!(!own.may_plan(&unknown, "own", &[a].into()));
        assert!(own.is_adopted());
        assert!(own.may_plan(&unknown, "own", &[a, b].into()));
        assert!(!own.is_adopted());
    }

    #[tokio::test]
    async fn leaving_is_announced_before_none_and_nothing_afterwards() {
        let (mut own, _sender) = announcement(Some(NodeDatapath::Ebpf));
        let mut announced = own.subscribe();
        let left = own.leave(&cluster(&[("a", NodeDatapath::Ebpf)]), "own");
        assert!(own.is_leaving());
        let begin = Instant::now();
        let listen = async {
            let mut seen = Vec::new();
            while seen.last() != Some(&NodeDatapath::None) {
                announced.changed().await.unwrap();
                seen.push(announced.newest());
            }
            seen
        };
        let ((), seen) = tokio::join!(left, listen);
        assert_eq!(seen, [NodeDatapath::Leaving, NodeDatapath::None]);
        assert!(begin.elapsed() >= SETTLE, "the other nodes had no time to follow");
        own.announce(NodeDatapath::Ebpf);
        assert_eq!(announced.current(), NodeDatapath::None);
    }

    #[tokio::test]
    async fn a_data_path_that_is_not_up_leaves_without_an_announcement() {
        let (mut own, _sender) = announcement(None);
        let begin = Instant::now();
        own.leave(&cluster(&[("a", NodeDatapath::Ebpf)]), "own").await;
        assert!(begin.elapsed() < SETTLE);
    }
}
