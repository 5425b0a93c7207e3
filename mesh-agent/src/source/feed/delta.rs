//! The difference between two snapshots of the cluster, as sent over the feed. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::model::{Cluster, Node, Service, Task};

/// The changes that turn one snapshot into another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Delta {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cluster_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data_path_port: Option<u16>,
    #[serde(default, skip_serializing_if = "MapDelta::is_empty")]
    nodes: MapDelta<Node>,
    #[serde(default, skip_serializing_if = "MapDelta::is_empty")]
    services: MapDelta<Service>,
    #[serde(default, skip_serializing_if = "MapDelta::is_empty")]
    tasks: MapDelta<Task>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct MapDelta<V> {
    #[serde(default = "BTreeMap::new", skip_serializing_if = "BTreeMap::is_empty")]
    set: BTreeMap<String, V>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    remove: BTreeSet<String>,
}

impl<V> Default for MapDelta<V> {
    fn default() -> Self {
        Self {
            set: BTreeMap::new(),
            remove: BTreeSet::new(),
        }
    }
}

impl<V: Clone + PartialEq> MapDelta<V> {
    fn between(old: &BTreeMap<String, V>, new: &BTreeMap<String, V>) -> Self {
        Self {
            set: new
                .iter()
                .filter(|(key, value)| old.get(*key) != Some(value))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
            remove: old
                .keys()
                .filter(|key| !new.contains_key(*key))
                .cloned()
                .collect(),
        }
    }

    fn apply(self, map: &mut BTreeMap<String, V>) {
        map.retain(|key, _| !self.remove.contains(key));
        map.extend(self.set);
    }
}

impl<V> MapDelta<V> {
    fn is_empty(&self) -> bool {
        self.set.is_empty() && self.remove.is_empty()
    }
}

impl Delta {
    /// The changes from `old` to `new`.
    pub(crate) fn between(old: &Cluster, new: &Cluster) -> Self {
        Self {
            cluster_id: (old.cluster_id != new.cluster_id).then(|| new.cluster_id.clone()),
            // A manager that knows it does not forget it.
            data_path_port: new
                .data_path_port
                .filter(|_| old.data_path_port != new.data_path_port),
            nodes: MapDelta::between(&old.nodes, &new.nodes),
            services: MapDelta::between(&old.services, &new.services),
            tasks: MapDelta::between(&old.tasks, &new.tasks),
        }
    }

    /// Turns `cluster`, which must be the old snapshot, into the new one.
    pub(crate) fn apply(self, cluster: &mut Cluster) {
        if let Some(cluster_id) = self.cluster_id {
            cluster.cluster_id = cluster_id;
        }
        if self.data_path_port.is_some() {
            cluster.data_path_port = self.data_path_port;
        }
        self.nodes.apply(&mut cluster.nodes);
        self.services.apply(&mut cluster.services);
        self.tasks.apply(&mut cluster.tasks);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::{collection, option, prelude::*};

    use super::*;
    use crate::model::{Balance, NodeRole, Protocol, PublishedPort, TaskState};

    /// Any snapshot, with few ids so that two snapshots have much in common.
    pub(crate) fn any_cluster() -> impl Strategy<Value = Cluster> {
        let node = (any::<bool>(), any::<bool>(), any::<u32>()).prop_map(|(manager, ready, address)| Node {
            ready,
            ..Node::new(
                format!("host-{address}"),
                address.into(),
                [NodeRole::Worker, NodeRole::Manager][usize::from(manager)],
            )
        });
        let port = (any::<bool>(), 1..4_u16).prop_map(|(udp, port)| PublishedPort {
            protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
            published: port,
            target: 80,
        });
        let service = collection::vec(port, 1..3).prop_map(|ports| Service {
            name: "web".to_owned(),
            ports,
            balance: Balance::default(),
            health: None,
            clients: crate::model::Clients::default(),
            idle: crate::model::IdleLimits::default(),
            publish_on: crate::model::PublishOn::default(),
            limits: crate::model::Limits::default(),
            weights: crate::model::Weights::default(),
            drain_timeout: None,
            invalid_labels: Vec::new(),
        });
        let task = ("[a-c]", "[a-c]", option::of(0..3_u64), any::<bool>()).prop_map(
            |(service, node, slot, active)| Task {
                service,
                name: "web.1".to_owned(),
                slot,
                node,
                address: [10, 0, 0, 1].into(),
                state: if active {
                    TaskState::Active
                } else {
                    TaskState::Draining
                },
            },
        );
        (
            "[x-y]",
            collection::btree_map("[a-e]", node, 0..5),
            collection::btree_map("[a-e]", service, 0..5),
            collection::btree_map("[a-e]", task, 0..5),
        )
            .prop_map(|(cluster_id, nodes, services, tasks)| Cluster {
                data_path_port: Some(if cluster_id == "x" { 4789 } else { 7789 }),
                cluster_id,
                nodes,
                services,
                tasks,
            })
    }

    proptest! {
        #[test]
        fn delta_leads_from_any_snapshot_to_any_other(old in any_cluster(), new in any_cluster()) {
            let json = serde_json::to_vec(&Delta::between(&old, &new)).unwrap();
            let delta: Delta = serde_json::from_slice(&json).unwrap();
            let mut cluster = old;
            delta.apply(&mut cluster);
            prop_assert_eq!(cluster, new);
        }
    }

    #[test]
    fn the_delta_between_equal_snapshots_is_empty() {
        let delta = Delta::between(&Cluster::default(), &Cluster::default());
        assert_eq!(serde_json::to_string(&delta).unwrap(), "{}");
    }
}
