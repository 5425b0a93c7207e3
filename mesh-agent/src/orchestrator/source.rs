//! The mesh's snapshot of the cluster, made from the orchestrator's objects. Pure.
//!
//! A task is in the snapshot while its container runs and is healthy: active while it is wanted, draining
//! from the moment it no longer is. A node whose registration expired is marked silent until the leader
//! declares it down, so that new connections go elsewhere meanwhile.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use mesh_orchestrator::{
    cluster::Registration,
    objects::{self, NodeId, Slot, State},
    spec::{self, PublishMode, ServiceMode},
};

use crate::{
    model::{
        AgentConnection, Cluster, Drained, Node, NodeDatapath, NodeRole, Protocol, PublishedPort, Replicas,
        Service, Task, TaskState,
    },
    source::{announcements::known_keys, labels},
};

/// The cluster's id, by which the data path recognises packets of its own nodes.
pub(super) const CLUSTER_ID: &str = "orchestrator";

/// Labels with invalid values.
pub(super) type LabelErrors = BTreeSet<labels::LabelError>;

/// The snapshot of a state, and the labels that it ignores.
pub(super) fn snapshot(
    state: &State,
    registrations: &BTreeMap<NodeId, Registration>,
) -> (Cluster, LabelErrors) {
    let mut label_errors = LabelErrors::new();
    // A worker that was admitted and has not joined yet has no address.
    let joined = state
        .nodes()
        .values()
        .filter(|node| !node.address.is_empty() || registrations.contains_key(&node.id));
    let nodes = joined
        .map(|node| {
            let (weight, error) = labels::weight(&node.hostname, &node.labels);
            let invalid_label = error.as_ref().map(labels::LabelError::to_string);
            label_errors.extend(error);
            let registration = registrations.get(&node.id);
            (
                node.id.to_string(),
                snapshot_node(node, registration, weight, invalid_label),
            )
        })
        .collect();
    let mut services = BTreeMap::new();
    for (id, service) in state.services() {
        let ports: Vec<_> = service
            .ports
            .iter()
            .filter(|port| port.publish_mode == PublishMode::Ingress)
            .map(|port| PublishedPort {
                protocol: protocol(port.protocol),
                published: port.published_port,
                target: port.target_port,
            })
            .collect();
        if ports.is_empty() {
            continue;
        }
        let name = &service.spec.name;
        let labels = labels::orchestrated(name, &service.spec.labels);
        let service = Service {
            name: name.clone(),
            ports,
            balance: labels.balance,
            weights: labels.weights,
            clients: labels.clients,
            idle: labels.idle,
            publish_on: labels.publish_on,
            limits: labels.limits,
            drain_timeout: labels.drain_timeout,
            health: labels.health,
            invalid_labels: labels.errors.iter().map(labels::LabelError::to_string).collect(),
        };
        label_errors.extend(labels.errors);
        services.insert(id.to_string(), service);
    }
    let mut tasks = BTreeMap::new();
    for id in services.keys() {
        let index = state.tasks_of(&objects::ServiceId::from(id.as_str()));
        let slots = index.into_iter().flat_map(|index| index.slots.values());
        for task in slots.flatten().filter_map(|(_, task)| state.tasks().get(task)) {
            if let Some(snapshot) = snapshot_task(task) {
                tasks.insert(task.id.to_string(), snapshot);
            }
        }
    }
    let mut cluster = Cluster {
        cluster_id: CLUSTER_ID.to_owned(),
        data_path_port: None,
        nodes,
        services,
        tasks,
    };
    cluster.forget_unnamed_labels();
    (cluster, label_errors)
}

/// The replicas of every service, by name.
pub(super) fn replicas(state: &State) -> Vec<Replicas> {
    let mut meant = BTreeMap::<_, (u64, u64)>::new();
    for task in state.tasks().values().filter(|task| task.desired.is_wanted()) {
        let (all, running) = meant.entry(&task.service).or_default();
        *all += 1;
        *running += u64::from(task.status.state == objects::TaskState::Running);
    }
    let services = state.services().values();
    let mut replicas: Vec<_> = services
        .map(|service| {
            let (all, running) = meant.get(&service.id).copied().unwrap_or_default();
            let wanted = match service.spec.mode {
                ServiceMode::Replicated(mode) => u64::from(mode.replicas),
                ServiceMode::Global(_) | ServiceMode::ReplicatedJob(_) | ServiceMode::GlobalJob(_) => all,
            };
            Replicas {
                service: service.spec.name.clone(),
                wanted,
                running,
            }
        })
        .collect();
    replicas.sort_by(|left, right| left.service.cmp(&right.service));
    replicas
}

fn snapshot_node(
    node: &objects::Node,
    registration: Option<&Registration>,
    weight: u32,
    invalid_label: Option<String>,
) -> Node {
    let address = registration
        .map(|registration| registration.address.as_str())
        .filter(|address| !address.is_empty())
        .unwrap_or(&node.address);
    Node {
        hostname: node.hostname.clone(),
        address: address.parse().unwrap_or(Ipv4Addr::UNSPECIFIED),
        role: match node.role {
            objects::NodeRole::Manager => NodeRole::Manager,
            objects::NodeRole::Worker => NodeRole::Worker,
        },
        // Containers keep running when the engine does not answer.
        ready: node.status != objects::NodeStatus::Down,
        weight,
        datapath: registration.map_or(NodeDatapath::Unknown, datapath),
        silent: registration.is_none() && node.status != objects::NodeStatus::Down,
        release: registration.map_or_else(String::new, |registration| registration.release.clone()),
        keys: registration.and_then(|registration| known_keys(registration.keys.clone())),
        drained: registration.map(drained).unwrap_or_default(),
        failed: Default::default(),
        labels: node.labels.clone(),
        invalid_labels: invalid_label.into_iter().collect(),
        // It renews its registration in the store for as long as it runs.
        agent: match registration {
            Some(_) => AgentConnection::Connected,
            None => AgentConnection::Lost,
        },
    }
}

/// The replicas that an operator drains on a node, as it announces them.
fn drained(registration: &Registration) -> Drained {
    Drained {
        node: registration.drains_node,
        tasks: registration.drained_tasks.iter().cloned().collect(),
    }
}

/// The data path that a node announces.
pub(super) fn datapath(registration: &Registration) -> NodeDatapath {
    parse_datapath(&registration.datapath)
}

/// The name of a data path in registrations.
pub(super) fn datapath_name(datapath: NodeDatapath) -> String {
    match serde_json::to_value(datapath) {
        Ok(serde_json::Value::String(name)) => name,
        _ => String::new(),
    }
}

fn parse_datapath(name: &str) -> NodeDatapath {
    serde_json::from_value(serde_json::Value::String(name.to_owned())).unwrap_or(NodeDatapath::Unknown)
}

/// `None` for a task that cannot take connections.
fn snapshot_task(task: &objects::Task) -> Option<Task> {
    if task.status.state != objects::TaskState::Running {
        return None;
    }
    Some(Task {
        service: task.service.to_string(),
        name: task.name(),
        slot: match task.slot {
            Slot::Number(number) => Some(u64::from(number)),
            Slot::Node(_) => None,
        },
        node: task.node.as_ref()?.to_string(),
        address: task.status.address?,
        state: if task.desired.is_wanted() {
            TaskState::Active
        } else {
            TaskState::Draining
        },
    })
}

fn protocol(protocol: spec::Protocol) -> Protocol {
    match protocol {
        spec::Protocol::Tcp => Protocol::Tcp,
        spec::Protocol::Udp => Protocol::Udp,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mesh_orchestrator::{
        commands,
        objects::{NodeStatus, ObjectChange, ServiceId, TaskStatus, Timestamp},
        spec::{Platform, Resources, ServiceSpec},
    };

    use super::*;
    use crate::orchestrator::testing;

    const NOW: Timestamp = Timestamp(1000);

    fn node(id: &str, status: NodeStatus) -> objects::Node {
        objects::Node {
            id: NodeId::from(id),
            hostname: format!("host-{id}"),
            address: "10.1.0.1".into(),
            role: objects::NodeRole::Worker,
            labels: BTreeMap::from([("mesh.weight".into(), "3".into())]),
            engine_labels: BTreeMap::new(),
            platform: Platform::default(),
            resources: Resources::default(),
            availability: objects::Availability::Active,
            status,
            status_since: NOW,
            returned_at: None,
        }
    }

    fn spec(text: &str) -> ServiceSpec {
        serde_json::from_str(text).unwrap()
    }

    fn apply(state: &mut State, changes: Vec<ObjectChange>) {
        for change in changes {
            state.apply(&change).unwrap();
        }
    }

    /// A service with one task that runs on node `a`.
    fn state(desired: objects::TaskState, observed: objects::TaskState) -> State {
        let mut state = State::default();
        for (id, status) in [("a", NodeStatus::Unknown), ("b", NodeStatus::Down)] {
            apply(
                &mut state,
                vec![ObjectChange::PutNode(Box::new(node(id, status)))],
            );
        }
        for (id, text) in [
            (
                "s1",
                r#"{"name": "web", "labels": {"mesh.scheduler": "lc"},
                    "task_template": {"container_spec": {"image": "a:1"}},
                    "endpoint_spec": {"ports": [{"target_port": 80, "published_port": 8080},
                        {"target_port": 22, "published_port": 2222, "publish_mode": "host"}]}}"#,
            ),
            (
                "s2",
                r#"{"name": "db", "task_template": {"container_spec": {"image": "a:1"}}}"#,
            ),
        ] {
            let changes = commands::create_service(&state, ServiceId::from(id), spec(text), NOW);
            apply(&mut state, changes.unwrap());
        }
        let service = state.service(&ServiceId::from("s1")).unwrap().clone();
        let mut status = TaskStatus::new(observed, NOW, "");
        status.address = Some(Ipv4Addr::new(240, 0, 0, 1));
        let task = objects::Task {
            service: service.id.clone(),
            node: Some(NodeId::from("a")),
            desired,
            status,
            created_at: NOW,
            ..testing::task(Arc::clone(&service.spec.task_template))
        };
        apply(&mut state, vec![ObjectChange::CreateTask(Box::new(task))]);
        state
    }

    #[test]
    fn replicas_of_all_services_are_counted() {
        let counted = |desired, observed| {
            let replicas = replicas(&state(desired, observed));
            let each = replicas.into_iter();
            each.map(|it| (it.service, it.wanted, it.running))
                .collect::<Vec<_>>()
        };
        let expected = |running| vec![("db".to_owned(), 1, 0), ("web".to_owned(), 1, running)];
        use objects::TaskState::{Running, Shutdown, Starting};
        assert_eq!(counted(Running, Running), expected(1));
        assert_eq!(counted(Running, Starting), expected(0));
        assert_eq!(counted(Shutdown, Running), expected(0));
    }

    #[test]
    fn only_ports_published_in_ingress_mode_are_in_the_snapshot() {
        let state = state(objects::TaskState::Running, objects::TaskState::Running);
        let (cluster, label_errors) = snapshot(&state, &BTreeMap::new());
        assert!(label_errors.is_empty());
        assert_eq!(cluster.services.len(), 1);
        let web = &cluster.services["s1"];
        let port = PublishedPort {
            protocol: Protocol::Tcp,
            published: 8080,
            target: 80,
        };
        assert_eq!(web.ports, [port]);
        assert_eq!(web.balance.algorithm.name(), "lc");
        let task = &cluster.tasks["t1"];
        assert_eq!((task.name.as_str(), task.slot), ("web.1", Some(1)));
        assert_eq!(task.address, Ipv4Addr::new(240, 0, 0, 1));
    }

    #[test]
    fn a_running_task_is_active_while_wanted_and_draining_afterwards() {
        use objects::TaskState::{Failed, Ready, Remove, Running, Shutdown, Starting};
        for (desired, observed, expected) in [
            (Running, Starting, None),
            (Running, Running, Some(TaskState::Active)),
            (Shutdown, Running, Some(TaskState::Draining)),
            (Remove, Running, Some(TaskState::Draining)),
            (Shutdown, Shutdown, None),
            (Running, Failed, None),
            (Ready, Ready, None),
        ] {
            let (cluster, _) = snapshot(&state(desired, observed), &BTreeMap::new());
            let found = cluster.tasks.get("t1").map(|task| task.state);
            assert_eq!(found, expected, "{desired} {observed}");
        }
    }

    #[test]
    fn a_node_keeps_its_replicas_without_an_engine_and_its_registration_counts() {
        let registration = Registration {
            address: "10.1.0.7".into(),
            datapath: datapath_name(NodeDatapath::Ebpf),
            keys: Some(vec![7]),
            ..Registration::default()
        };
        let registrations = BTreeMap::from([(NodeId::from("a"), registration)]);
        let state = state(objects::TaskState::Running, objects::TaskState::Running);
        let (cluster, _) = snapshot(&state, &registrations);
        let (a, b) = (&cluster.nodes["a"], &cluster.nodes["b"]);
        assert_eq!((a.ready, a.datapath, a.weight), (true, NodeDatapath::Ebpf, 3));
        assert_eq!(a.address, Ipv4Addr::new(10, 1, 0, 7));
        assert_eq!(
            (a.keys.as_deref(), b.keys.as_deref()),
            (Some([7].as_slice()), None)
        );
        assert_eq!((b.ready, b.datapath), (false, NodeDatapath::Unknown));
        assert!(!a.silent && !b.silent, "one is registered, the other down");
        let mut admitted = node("c", NodeStatus::Unknown);
        admitted.address.clear();
        let mut with_c = state.clone();
        apply(&mut with_c, vec![ObjectChange::PutNode(Box::new(admitted))]);
        let (with_c, _) = snapshot(&with_c, &registrations);
        assert!(!with_c.nodes.contains_key("c"), "it has no address yet");
        let (cluster, _) = snapshot(&state, &BTreeMap::new());
        assert!(cluster.nodes["a"].silent && !cluster.nodes["b"].silent);
        assert_eq!(b.address, Ipv4Addr::new(10, 1, 0, 1));
    }

    #[test]
    fn a_data_paths_name_is_parsed_back() {
        for datapath in [
            NodeDatapath::Unknown,
            NodeDatapath::None,
            NodeDatapath::Leaving,
            NodeDatapath::Ebpf,
            NodeDatapath::Ipvs,
        ] {
            assert_eq!(parse_datapath(&datapath_name(datapath)), datapath);
        }
        assert_eq!(parse_datapath("of a later release"), NodeDatapath::Unknown);
    }
}
