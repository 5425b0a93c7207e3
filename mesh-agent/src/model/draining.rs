//! Which replicas drain, and for how long they have. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::{Cluster, Drained, NodeId, Task, TaskId, TaskState};

/// What decides whether a task drains, as one node knows it.
#[derive(Clone, Copy, Debug)]
pub struct Draining<'a> {
    /// The cluster, with what the other nodes have announced.
    pub cluster: &'a Cluster,
    /// This node.
    pub own: &'a NodeId,
    /// What an operator drains on it. What a node announces comes back by the managers, later.
    pub drained: &'a Drained,
}

impl Draining<'_> {
    /// Whether a task is about to end, or an operator drains it: it is not meant to take new flows.
    #[must_use]
    pub fn has(&self, id: &TaskId, task: &Task) -> bool {
        let is_drained = if task.node == *self.own {
            self.drained.contains(id)
        } else {
            let node = self.cluster.nodes.get(&task.node);
            node.is_some_and(|node| node.drained.contains(id))
        };
        match task.state {
            TaskState::Active => is_drained,
            TaskState::Draining => true,
        }
    }
}

/// Since when replicas drain, as this node has seen it.
#[derive(Debug, Default)]
pub struct DrainTimes {
    since: BTreeMap<TaskId, Instant>,
}

/// The drains that have taken as long as they may.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndedDrains {
    /// Their tasks.
    pub tasks: BTreeSet<TaskId>,
    /// When the next one ends.
    pub next: Option<Instant>,
}

impl DrainTimes {
    /// Takes over what drains at this moment. The time of a drain begins when this node sees it.
    pub fn observe(&mut self, draining: Draining<'_>, now: Instant) -> EndedDrains {
        let mut ended = EndedDrains::default();
        let mut since = BTreeMap::new();
        for (id, task) in &draining.cluster.tasks {
            if !draining.has(id, task) {
                continue;
            }
            let began = self.since.get(id).copied().unwrap_or(now);
            since.insert(id.clone(), began);
            let service = draining.cluster.services.get(&task.service);
            let Some(seconds) = service.and_then(|service| service.drain_timeout) else {
                continue;
            };
            let end = began + Duration::from_secs(seconds.into());
            if end <= now {
                ended.tasks.insert(id.clone());
            } else {
                ended.next = Some(ended.next.map_or(end, |earlier| earlier.min(end)));
            }
        }
        self.since = since;
        ended
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::model::{Node, NodeRole, Service};

    const OWN: &str = "n1";

    fn cluster(state: TaskState, drain_timeout: Option<u32>) -> Cluster {
        let service = Service {
            name: "web".to_owned(),
            ports: Vec::new(),
            balance: Default::default(),
            weights: Default::default(),
            health: None,
            clients: Default::default(),
            idle: Default::default(),
            publish_on: Default::default(),
            limits: Default::default(),
            drain_timeout,
            invalid_labels: Vec::new(),
        };
        let task = |node: &str| Task {
            service: "s1".to_owned(),
            name: "web.1".to_owned(),
            slot: None,
            node: node.to_owned(),
            address: Ipv4Addr::LOCALHOST,
            state,
        };
        let other = Node::new("n2".to_owned(), Ipv4Addr::LOCALHOST, NodeRole::Worker);
        Cluster {
            nodes: [("n2".to_owned(), other)].into(),
            services: [("s1".to_owned(), service)].into(),
            tasks: [("t1".to_owned(), task(OWN)), ("t2".to_owned(), task("n2"))].into(),
            ..Cluster::default()
        }
    }

    fn observe(times: &mut DrainTimes, cluster: &Cluster, drained: &Drained, now: Instant) -> EndedDrains {
        let own = OWN.to_owned();
        let draining = Draining {
            cluster,
            own: &own,
            drained,
        };
        times.observe(draining, now)
    }

    #[test]
    fn a_drain_ends_its_time_after_it_was_seen() {
        let (mut times, start) = (DrainTimes::default(), Instant::now());
        let cluster = cluster(TaskState::Draining, Some(60));
        let at = |seconds| start + Duration::from_secs(seconds);
        for seconds in [0, 59] {
            let ended = observe(&mut times, &cluster, &Drained::default(), at(seconds));
            assert_eq!((ended.tasks.len(), ended.next), (0, Some(at(60))));
        }
        let ended = observe(&mut times, &cluster, &Drained::default(), at(60));
        assert_eq!(ended.tasks, ["t1".to_owned(), "t2".to_owned()].into());
        assert_eq!(ended.next, None);
    }

    #[test]
    fn a_drain_that_was_ended_begins_anew() {
        let (mut times, start) = (DrainTimes::default(), Instant::now());
        let cluster = cluster(TaskState::Active, Some(60));
        let drained = Drained {
            node: false,
            tasks: ["t1".to_owned()].into(),
        };
        let at = |seconds| start + Duration::from_secs(seconds);
        observe(&mut times, &cluster, &drained, at(0));
        observe(&mut times, &cluster, &Drained::default(), at(30));
        let ended = observe(&mut times, &cluster, &drained, at(70));
        assert_eq!((ended.tasks.len(), ended.next), (0, Some(at(130))));
    }

    #[test]
    fn without_a_time_out_a_drain_does_not_end() {
        let (mut times, start) = (DrainTimes::default(), Instant::now());
        let cluster = cluster(TaskState::Draining, None);
        observe(&mut times, &cluster, &Drained::default(), start);
        let later = start + Duration::from_secs(1_000_000);
        let ended = observe(&mut times, &cluster, &Drained::default(), later);
        assert_eq!(ended, EndedDrains::default());
    }

    #[test]
    fn each_node_speaks_for_its_own_tasks() {
        let mut cluster = cluster(TaskState::Active, None);
        let (own, all) = (
            OWN.to_owned(),
            Drained {
                node: true,
                ..Drained::default()
            },
        );
        let has = |cluster: &Cluster, drained: &Drained, id: &str| {
            let draining = Draining {
                cluster,
                own: &own,
                drained,
            };
            draining.has(&id.to_owned(), &cluster.tasks[id])
        };
        assert!(has(&cluster, &all, "t1") && !has(&cluster, &all, "t2"));
        cluster.nodes.get_mut("n2").unwrap().drained = all;
        let none = Drained::default();
        assert!(!has(&cluster, &none, "t1") && has(&cluster, &none, "t2"));
    }
}
