//! Which replicas this node drains, with their open connections: from the agent's view and counters. Pure.

use std::collections::BTreeMap;

use super::View;
use crate::{
    datapath::Counters,
    model::{DrainReport, DrainedReplica, Location, TaskId},
};

/// The node's drained replicas.
pub(super) fn drained(view: &View, counters: &Counters) -> DrainReport {
    let mut replicas = BTreeMap::<&TaskId, DrainedReplica>::new();
    let backends = view.desired.backends.iter();
    for (key, backend) in backends.filter(|(_, backend)| view.drained.contains(&backend.task)) {
        let Location::Local(_) = backend.location else {
            continue;
        };
        let open = counters.open.get(key).copied();
        let replica = replicas.entry(&backend.task).or_insert_with(|| DrainedReplica {
            task: backend.task_name.clone(),
            task_id: backend.task.clone(),
            open: Some(0),
        });
        // A task has a backend for each published port.
        replica.open = replica.open.zip(open).map(|(sum, open)| sum + open);
    }
    DrainReport {
        node: view.drained.node,
        replicas: replicas.into_values().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        admin::view::fixture,
        model::{BackendKey, Drained, Protocol, ServiceKey},
    };

    #[test]
    fn drained_replicas_of_this_node_are_listed_with_the_connections_of_all_their_ports() {
        let (mut view, mut counters) = fixture::two_nodes();
        let mut desired = (*view.desired).clone();
        let (web, backend) = desired
            .backends
            .iter()
            .find(|(_, backend)| backend.task == "t1")
            .map(|(key, backend)| (*key, backend.clone()))
            .unwrap();
        let second = BackendKey {
            service: ServiceKey {
                protocol: Protocol::Tcp,
                port: 9201,
            },
            ..web
        };
        desired.backends.insert(second, backend);
        view.desired = desired.into();
        view.drained = Drained {
            node: false,
            tasks: ["t1", "t2"].map(str::to_owned).into(),
        };
        counters.open = [(web, 3), (second, 4)].into();
        let listed = |open| DrainReport {
            node: false,
            replicas: vec![DrainedReplica {
                task: "web.1".to_owned(),
                task_id: "t1".to_owned(),
                open,
            }],
        };
        assert_eq!(drained(&view, &counters), listed(Some(7)));
        counters.open.clear();
        assert_eq!(drained(&view, &counters), listed(None), "not counted is not zero");
    }
}
