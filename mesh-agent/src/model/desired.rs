//! The desired data path: a pure function of the cluster and of what the node finds on itself.
//!
//! Invariant: whatever the source, datapaths see only this model. A backend is listed once per
//! published port; its key is what encapsulated packets name it by.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use serde::{Deserialize, Serialize};

use super::{
    Balance, Cluster, Container, HostInterface, Local, MacAddress, NodeDatapath, NodeId, Protocol,
    ReturnMode, ServiceId, Task, TaskId, TaskState, fnv1a::fnv1a_32,
};

/// Everything a datapath must make true.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Addresses and ports that are answered.
    pub frontends: BTreeSet<Frontend>,
    /// The services behind them, by the protocol and published port that name them.
    pub services: BTreeMap<ServiceKey, ServiceEntry>,
    /// Every backend, active or draining.
    pub backends: BTreeMap<BackendKey, Backend>,
    /// Peer nodes: the only addresses encapsulated packets are accepted from or sent to.
    pub peers: BTreeMap<Ipv4Addr, Option<NextHop>>,
    /// Interfaces on which traffic from outside arrives.
    pub uplinks: BTreeMap<String, HostInterface>,
    /// Host ends of containers' veths: local backends' replies are caught there, and what containers send
    /// to the node's published ports.
    pub container_interfaces: BTreeSet<u32>,
    /// Node-wide settings.
    pub settings: Settings,
}

/// Node-wide settings of the data path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// This node's address as its peers know it; unspecified until known.
    pub node_address: Option<Ipv4Addr>,
    /// Geneve virtual network identifier (24 bits), the same on every node of a cluster.
    pub vni: u32,
    /// How replies of remote backends travel.
    pub return_mode: ReturnMode,
    /// The device whose egress carries local processes' connections; `None` until it is made.
    pub mesh0: Option<HostInterface>,
}

/// One answered (address, port, protocol).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Frontend {
    /// A node's address, or the mesh's service address.
    pub address: Ipv4Addr,
    /// Which service answers: its protocol and published port.
    pub service: ServiceKey,
}

/// A published port is unique in a cluster, so it names its service in the data path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceKey {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Published port, host byte order.
    pub port: u16,
}

/// A service as the data path sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceEntry {
    /// The service's id at its source.
    pub id: ServiceId,
    /// The service's name.
    pub name: String,
    /// How new flows are spread over them.
    pub balance: Balance,
    /// Backends that new flows may go to, in the order of rotation.
    pub active: Vec<BackendKey>,
}

/// A backend's cluster-wide name: the task's ingress address, for one published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BackendKey {
    /// The published port it stands behind.
    pub service: ServiceKey,
    /// The task's address on the ingress network.
    pub address: Ipv4Addr,
}

/// One replica behind one published port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// The task.
    pub task: TaskId,
    /// The task's name, e.g. `web.3`.
    pub task_name: String,
    /// The slot of a replicated service's task.
    pub slot: Option<u64>,
    /// The node it runs on.
    pub node: NodeId,
    /// That node's host name.
    pub node_name: String,
    /// The port inside the container, host byte order.
    pub target_port: u16,
    /// Where its packets go.
    pub location: Location,
    /// Whether new flows may choose it.
    pub state: BackendState,
    /// Share of new flows relative to its siblings; 0 while draining.
    pub weight: u32,
}

/// Where a backend's packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Location {
    /// A container of this node.
    Local(Container),
    /// Another node, at this address.
    Remote(Ipv4Addr),
}

/// Whether new flows may choose a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendState {
    /// Gets new flows.
    Active,
    /// Keeps its flows, gets no new ones.
    Draining,
}

impl BackendState {
    /// Every state, in the order that metrics list them.
    pub const ALL: [Self; 2] = [Self::Active, Self::Draining];

    /// The name in metrics, columns and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Draining => "draining",
        }
    }
}

/// How frames reach a peer node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextHop {
    /// Interface the route leaves by.
    pub interface: u32,
    /// That interface's MAC address.
    pub source_mac: MacAddress,
    /// MAC address of the peer, or of the router on the way.
    pub destination_mac: MacAddress,
}

/// Computes what this node's data path must look like.
///
/// `service_address` is the address that local processes' connections are turned to (see
/// ARCHITECTURE.md, "local processes"); it answers like an address of the node.
///
/// A service of whose active tasks this node can reach none (they run where no data path stands, or one
/// of the other kind) is yielded: it has no frontends, so that whatever else answers its ports does, while
/// the flows that the mesh has already go on. One without any active task is the mesh's, which refuses
/// connections. A node that is leaving yields every service.
#[must_use]
pub fn desired(cluster: &Cluster, local: &Local, service_address: Ipv4Addr) -> Desired {
    let mut desired = Desired {
        uplinks: local.uplinks.clone(),
        container_interfaces: local.container_interfaces.clone(),
        settings: Settings {
            node_address: cluster.nodes.get(&local.node).map(|node| node.address),
            vni: vni(&cluster.cluster_id),
            return_mode: local.return_mode,
            mesh0: local.mesh0,
        },
        ..Desired::default()
    };
    for (id, node) in &cluster.nodes {
        if *id != local.node && !node.address.is_unspecified() {
            desired
                .peers
                .insert(node.address, local.next_hops.get(&node.address).copied());
        }
    }
    let mut reachable: BTreeMap<&TaskId, Reachability> = cluster
        .tasks
        .iter()
        .filter_map(|(id, task)| Some((id, reachability(cluster, local, id, task)?)))
        .collect();
    avoid_silent_nodes(cluster, local, &mut reachable);
    let unreached = unreached(cluster, &reachable);
    for (id, service) in &cluster.services {
        for port in &service.ports {
            let key = ServiceKey {
                protocol: port.protocol,
                port: port.published,
            };
            // Swarm refuses a second service on a published port; should a source offer one all the
            // same, the first by id keeps it, whatever order they came in.
            desired.services.entry(key).or_insert_with(|| {
                if !local.leaving && !unreached.contains(id) {
                    for address in local.addresses.iter().copied().chain([service_address]) {
                        desired.frontends.insert(Frontend {
                            address,
                            service: key,
                        });
                    }
                }
                ServiceEntry {
                    id: id.clone(),
                    name: service.name.clone(),
                    balance: service.balance,
                    active: Vec::new(),
                }
            });
        }
    }
    for (id, reachability) in reachable {
        add_backends(&mut desired, cluster, id, reachability);
    }
    desired
}

/// Where this node would send a task's packets, and whether new flows may go there.
#[derive(Clone, Copy)]
struct Reachability {
    location: Location,
    state: BackendState,
}

/// `None` where this node cannot send to the task.
fn reachability(cluster: &Cluster, local: &Local, id: &TaskId, task: &Task) -> Option<Reachability> {
    let state = match task.state {
        TaskState::Active => BackendState::Active,
        TaskState::Draining => BackendState::Draining,
    };
    if task.node == local.node {
        // The manager's word came before the engine's: the container follows within moments.
        let location = Location::Local(*local.containers.get(id)?);
        return Some(Reachability { location, state });
    }
    let node = cluster.nodes.get(&task.node).filter(|node| node.ready)?;
    let location = Location::Remote(node.address);
    match node.datapath {
        kind if kind.takes_from(local.datapath) => Some(Reachability { location, state }),
        NodeDatapath::Leaving => Some(Reachability {
            location,
            state: BackendState::Draining,
        }),
        NodeDatapath::Unknown | NodeDatapath::None | NodeDatapath::Ebpf | NodeDatapath::Ipvs => None,
    }
}

/// Takes new flows from nodes that are silent, where a service has active tasks elsewhere that this node reaches. One
/// that has none goes on with what there is: a silent node may be well.
fn avoid_silent_nodes(cluster: &Cluster, local: &Local, reachable: &mut BTreeMap<&TaskId, Reachability>) {
    let silent: BTreeSet<&NodeId> = cluster
        .nodes
        .iter()
        .filter(|(id, node)| node.silent && **id != local.node)
        .map(|(id, _)| id)
        .collect();
    if silent.is_empty() {
        return;
    }
    let task_of = |id: &TaskId| cluster.tasks.get(id);
    let elsewhere: BTreeSet<&ServiceId> = reachable
        .iter()
        .filter(|(_, reachability)| reachability.state == BackendState::Active)
        .filter_map(|(id, _)| task_of(id))
        .filter(|task| !silent.contains(&task.node))
        .map(|task| &task.service)
        .collect();
    for (id, reachability) in reachable {
        if task_of(id).is_some_and(|task| silent.contains(&task.node) && elsewhere.contains(&task.service)) {
            reachability.state = BackendState::Draining;
        }
    }
}

/// The services that have active tasks, and none to which this node can send new flows.
fn unreached<'a>(
    cluster: &'a Cluster,
    reachable: &BTreeMap<&TaskId, Reachability>,
) -> BTreeSet<&'a ServiceId> {
    let mut unreached = BTreeSet::new();
    let mut reached = BTreeSet::new();
    for (id, task) in &cluster.tasks {
        if reachable
            .get(id)
            .is_some_and(|reachability| reachability.state == BackendState::Active)
        {
            reached.insert(&task.service);
        } else if task.state == TaskState::Active {
            unreached.insert(&task.service);
        }
    }
    unreached.difference(&reached).copied().collect()
}

fn add_backends(desired: &mut Desired, cluster: &Cluster, id: &TaskId, reachability: Reachability) {
    let Some(task) = cluster.tasks.get(id) else {
        return;
    };
    let (Some(service), Some(node)) = (cluster.services.get(&task.service), cluster.nodes.get(&task.node))
    else {
        return;
    };
    let Reachability { location, state } = reachability;
    let weight = match state {
        BackendState::Active => node.weight,
        BackendState::Draining => 0,
    };
    for port in &service.ports {
        let key = ServiceKey {
            protocol: port.protocol,
            port: port.published,
        };
        let Some(entry) = desired
            .services
            .get_mut(&key)
            .filter(|entry| entry.id == task.service)
        else {
            continue;
        };
        let backend_key = BackendKey {
            service: key,
            address: task.address,
        };
        // An address that a draining task has not given up yet belongs to the one that runs; between
        // equals the first by id keeps it.
        if let Some(holder) = desired.backends.get(&backend_key)
            && (holder.state == BackendState::Active || state == BackendState::Draining)
        {
            continue;
        }
        if state == BackendState::Active {
            entry.active.push(backend_key);
        }
        if let Location::Local(container) = location {
            desired.container_interfaces.insert(container.host_interface);
        }
        desired.backends.insert(
            backend_key,
            Backend {
                task: id.clone(),
                task_name: task.name.clone(),
                slot: task.slot,
                node: task.node.clone(),
                node_name: node.hostname.clone(),
                target_port: port.target,
                location,
                state,
                weight,
            },
        );
    }
}

/// The Geneve network identifier of a cluster: 24 bits of its id's FNV-1a hash, so that the packets of
/// two clusters on one network are not taken for each other's.
#[must_use]
pub fn vni(cluster_id: &str) -> u32 {
    fnv1a_32(cluster_id.bytes()) & 0x00ff_ffff
}

/// A short fingerprint of a task's id that encapsulated packets carry, so that a stale packet for an
/// address that Swarm has since given to another task is refused rather than delivered.
#[must_use]
pub fn task_tag(task: &str) -> u16 {
    let hash = fnv1a_32(task.bytes());
    (hash >> 16) as u16 ^ (hash & 0xffff) as u16
}

#[cfg(test)]
mod tests {
    use proptest::{collection, prelude::*, sample::select};

    use super::*;
    use crate::model::{MacAddress, Node, NodeDatapath, NodeRole, PublishedPort, Service, Task};

    const KINDS: [NodeDatapath; 5] = [
        NodeDatapath::Unknown,
        NodeDatapath::None,
        NodeDatapath::Leaving,
        NodeDatapath::Ebpf,
        NodeDatapath::Ipvs,
    ];
    const SERVICE_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 96, 1);
    const WEB: ServiceKey = ServiceKey {
        protocol: Protocol::Tcp,
        port: 9200,
    };

    fn node(last: u8) -> Node {
        Node {
            hostname: format!("host{last}"),
            address: Ipv4Addr::new(192, 168, 0, last),
            role: NodeRole::Worker,
            ready: true,
            weight: 1,
            datapath: NodeDatapath::Ebpf,
            silent: false,
        }
    }

    fn service(name: &str, published: u16) -> Service {
        Service {
            name: name.into(),
            ports: vec![PublishedPort {
                protocol: Protocol::Tcp,
                published,
                target: 80,
            }],
            balance: Balance::default(),
        }
    }

    fn task(service: &str, slot: Option<u64>, node: &str, last: u8) -> Task {
        Task {
            service: service.into(),
            name: format!("{service}.{last}"),
            slot,
            node: node.into(),
            address: Ipv4Addr::new(10, 0, 0, last),
            state: TaskState::Active,
        }
    }

    fn container(last: u8) -> Container {
        Container {
            ingress_address: Ipv4Addr::new(10, 0, 0, last),
            address: Ipv4Addr::new(172, 18, 0, last),
            mac: MacAddress([2, 0, 0, 0, 0, last]),
            host_interface: 100 + u32::from(last),
            gateway_mac: MacAddress([2, 0, 0, 0, 0, 1]),
        }
    }

    /// Two nodes, one service, one replica here (`t1`) and one there (`t2`).
    fn pair() -> (Cluster, Local) {
        let cluster = Cluster {
            cluster_id: "cluster".into(),
            nodes: [("here".into(), node(1)), ("there".into(), node(2))].into(),
            services: [("s1".into(), service("web", 9200))].into(),
            tasks: [
                ("t1".into(), task("s1", Some(1), "here", 11)),
                ("t2".into(), task("s1", Some(2), "there", 12)),
            ]
            .into(),
        };
        let local = Local {
            node: "here".into(),
            datapath: NodeDatapath::Ebpf,
            addresses: [Ipv4Addr::new(192, 168, 0, 1)].into(),
            containers: [("t1".into(), container(11))].into(),
            ..Local::default()
        };
        (cluster, local)
    }

    fn key(last: u8) -> BackendKey {
        BackendKey {
            service: WEB,
            address: Ipv4Addr::new(10, 0, 0, last),
        }
    }

    #[test]
    fn a_replica_is_local_here_and_remote_elsewhere() {
        let (cluster, local) = pair();
        let desired = desired(&cluster, &local, SERVICE_ADDRESS);
        assert_eq!(desired.services[&WEB].active, [key(11), key(12)]);
        assert_eq!(
            desired.backends[&key(11)].location,
            Location::Local(container(11))
        );
        assert_eq!(
            desired.backends[&key(12)].location,
            Location::Remote(Ipv4Addr::new(192, 168, 0, 2))
        );
        assert_eq!(desired.container_interfaces, [111].into());
        assert_eq!(desired.peers, [(Ipv4Addr::new(192, 168, 0, 2), None)].into());
        assert_eq!(desired.settings.node_address, Some(Ipv4Addr::new(192, 168, 0, 1)));
    }

    #[test]
    fn the_service_address_answers_like_the_nodes_own() {
        let (cluster, local) = pair();
        let desired = desired(&cluster, &local, SERVICE_ADDRESS);
        let answered: Vec<_> = desired
            .frontends
            .iter()
            .map(|frontend| frontend.address)
            .collect();
        assert_eq!(answered, [SERVICE_ADDRESS, Ipv4Addr::new(192, 168, 0, 1)]);
    }

    #[test]
    fn tasks_of_a_node_that_is_not_ready_are_no_backends() {
        let (mut cluster, local) = pair();
        cluster.nodes.get_mut("there").unwrap().ready = false;
        let desired = desired(&cluster, &local, SERVICE_ADDRESS);
        assert_eq!(desired.services[&WEB].active, [key(11)]);
        assert!(!desired.backends.contains_key(&key(12)));
        assert_eq!(desired.peers.len(), 1, "its replies in flight are still accepted");
    }

    #[test]
    fn tasks_where_no_data_path_of_this_kind_stands_are_no_backends() {
        for kind in [NodeDatapath::Unknown, NodeDatapath::None, NodeDatapath::Ipvs] {
            let (mut cluster, local) = pair();
            cluster.nodes.get_mut("there").unwrap().datapath = kind;
            let desired = desired(&cluster, &local, SERVICE_ADDRESS);
            assert_eq!(desired.services[&WEB].active, [key(11)], "{kind:?}");
            assert!(!desired.backends.contains_key(&key(12)), "{kind:?}");
            assert_eq!(
                desired.peers.len(),
                1,
                "{kind:?}: what it still sends is accepted"
            );
        }
    }

    #[test]
    fn nodes_of_the_other_kind_send_to_each_other_as_well() {
        let (mut cluster, mut local) = pair();
        cluster.nodes.get_mut("there").unwrap().datapath = NodeDatapath::Ipvs;
        local.datapath = NodeDatapath::Ipvs;
        let desired = desired(&cluster, &local, SERVICE_ADDRESS);
        assert_eq!(desired.services[&WEB].active, [key(11), key(12)]);
    }

    #[test]
    fn tasks_of_a_leaving_node_keep_their_flows_and_get_no_new_ones() {
        let (mut cluster, local) = pair();
        cluster.nodes.get_mut("there").unwrap().datapath = NodeDatapath::Leaving;
        let desired = desired(&cluster, &local, SERVICE_ADDRESS);
        assert_eq!(desired.services[&WEB].active, [key(11)]);
        let backend = &desired.backends[&key(12)];
        assert_eq!((backend.state, backend.weight), (BackendState::Draining, 0));
    }

    #[test]
    fn a_leaving_node_goes_on_with_its_own_replicas() {
        let (mut cluster, local) = pair();
        cluster.nodes.get_mut("here").unwrap().datapath = NodeDatapath::Leaving;
        let desired = desired(&cluster, &local, SERVICE_ADDRESS);
        assert_eq!(desired.services[&WEB].active, [key(11), key(12)]);
    }

    #[test]
    fn a_service_that_cannot_be_reached_from_here_is_left_to_whatever_else_answers() {
        for kind in [
            NodeDatapath::Unknown,
            NodeDatapath::None,
            NodeDatapath::Leaving,
            NodeDatapath::Ipvs,
        ] {
            let (mut cluster, local) = pair();
            cluster.tasks.remove("t1");
            cluster.nodes.get_mut("there").unwrap().datapath = kind;
            let desired = desired(&cluster, &local, SERVICE_ADDRESS);
            assert!(desired.frontends.is_empty(), "{kind:?}");
            assert!(desired.services[&WEB].active.is_empty(), "{kind:?}");
            let kept = usize::from(kind == NodeDatapath::Leaving);
            assert_eq!(
                desired.backends.len(),
                kept,
                "{kind:?}: flows end with the node's data path"
            );
        }
    }

    #[test]
    fn a_service_whose_only_task_has_no_container_yet_waits_for_it() {
        let (mut cluster, mut local) = pair();
        cluster.tasks.remove("t2");
        local.containers.clear();
        assert!(desired(&cluster, &local, SERVICE_ADDRESS).frontends.is_empty());
    }

    #[test]
    fn a_port_of_a_service_that_is_yielded_goes_to_no_other_service() {
        let (mut cluster, local) = pair();
        cluster.nodes.get_mut("there").unwrap().datapath = NodeDatapath::None;
        cluster.tasks.remove("t1");
        cluster.services.insert("s2".into(), service("intruder", 9200));
        let desired = desired(&cluster, &local, SERVICE_ADDRESS);
        assert_eq!(desired.services[&WEB].name, "web");
        assert!(desired.frontends.is_empty());
    }

    #[test]
    fn a_node_that_is_leaving_keeps_its_flows_and_opens_no_new_ones() {
        let (cluster, mut local) = pair();
        let before = desired(&cluster, &local, SERVICE_ADDRESS);
        local.leaving = true;
        let after = desired(&cluster, &local, SERVICE_ADDRESS);
        assert!(after.frontends.is_empty());
        let frontends = before.frontends.clone();
        assert_eq!(Desired { frontends, ..after }, before);
    }

    proptest! {
        /// Whatever the nodes run and the tasks do: new flows go only where they are understood, and a
        /// port is answered only if somebody can be sent to, or nobody is meant to answer.
        #[test]
        fn new_flows_go_only_where_they_are_understood(
            own in select([NodeDatapath::Ebpf, NodeDatapath::Ipvs].as_slice()),
            kinds in collection::vec((select(KINDS.as_slice()), any::<bool>(), any::<bool>()), 3),
            tasks in collection::vec((0..4_usize, 0..2_usize, any::<bool>(), any::<bool>()), 0..8),
        ) {
            let names = ["here", "n1", "n2", "n3"];
            let mut cluster = Cluster {
                services: [("s0".into(), service("a", 9200)), ("s1".into(), service("b", 9300))].into(),
                ..Cluster::default()
            };
            cluster.nodes.insert("here".into(), node(1));
            for (index, (datapath, ready, silent)) in kinds.into_iter().enumerate() {
                let node = Node { datapath, ready, silent, ..node(2 + index as u8) };
                cluster.nodes.insert(names[index + 1].into(), node);
            }
            let mut local = Local { node: "here".into(), datapath: own, ..Local::default() };
            local.addresses.insert(Ipv4Addr::new(192, 168, 0, 1));
            for (index, (node, service, active, found)) in tasks.into_iter().enumerate() {
                let last = 10 + index as u8;
                let mut task = task(["s0", "s1"][service], None, names[node], last);
                if !active {
                    task.state = TaskState::Draining;
                }
                let id = format!("t{index}");
                if node == 0 && found {
                    local.containers.insert(id.clone(), container(last));
                }
                cluster.tasks.insert(id, task);
            }
            let desired = desired(&cluster, &local, SERVICE_ADDRESS);
            for (key, backend) in &desired.backends {
                let node = &cluster.nodes[&backend.node];
                if backend.node != "here" && backend.state == BackendState::Active {
                    prop_assert!(node.ready && node.datapath == own, "{backend:?} on {node:?}");
                    let heard = |other: &Backend| other.node == "here" || !cluster.nodes[&other.node].silent;
                    let other = desired.backends.iter().find(|(other_key, other)| {
                        other_key.service == key.service && other.state == BackendState::Active && heard(other)
                    });
                    prop_assert!(heard(backend) || other.is_none(), "{backend:?} beside {other:?}");
                }
            }
            for (id, port) in [("s0", 9200), ("s1", 9300)] {
                let key = ServiceKey { protocol: Protocol::Tcp, port };
                let meant = cluster.tasks.values().any(|task| task.service == id && task.state == TaskState::Active);
                let answered = desired.frontends.iter().filter(|frontend| frontend.service == key).count();
                let reached = !desired.services[&key].active.is_empty();
                prop_assert_eq!(answered, if reached || !meant { 2 } else { 0 }, "{}", id);
            }
        }
    }

    #[test]
    fn a_silent_node_gets_no_new_flows_unless_there_is_no_other() {
        let (mut cluster, mut local) = pair();
        cluster.nodes.get_mut("there").unwrap().silent = true;
        let found = desired(&cluster, &local, SERVICE_ADDRESS);
        assert_eq!(found.services[&WEB].active, [key(11)]);
        let there = &found.backends[&key(12)];
        assert_eq!((there.state, there.weight), (BackendState::Draining, 0));

        // What is known of this node itself by others is of no account here.
        cluster.nodes.get_mut("here").unwrap().silent = true;
        assert_eq!(
            desired(&cluster, &local, SERVICE_ADDRESS).services,
            found.services
        );

        local.containers.clear();
        let found = desired(&cluster, &local, SERVICE_ADDRESS);
        assert_eq!(found.services[&WEB].active, [key(12)], "it is all there is");
    }

    #[test]
    fn own_replicas_stay_when_the_managers_do_not_see_this_node() {
        let (mut cluster, local) = pair();
        cluster.nodes.get_mut("here").unwrap().ready = false;
        let desired = desired(&cluster, &local, SERVICE_ADDRESS);
        assert_eq!(desired.services[&WEB].active, [key(11), key(12)]);
    }

    #[test]
    fn a_draining_task_keeps_its_flows_and_gets_no_new_ones() {
        let (mut cluster, local) = pair();
        cluster.tasks.get_mut("t1").unwrap().state = TaskState::Draining;
        let desired = desired(&cluster, &local, SERVICE_ADDRESS);
        assert_eq!(desired.services[&WEB].active, [key(12)]);
        let backend = &desired.backends[&key(11)];
        assert_eq!((backend.state, backend.weight), (BackendState::Draining, 0));
        assert_eq!(desired.container_interfaces, [111].into());
    }

    #[test]
    fn a_local_task_waits_for_its_container() {
        let (cluster, mut local) = pair();
        local.containers.clear();
        let desired = desired(&cluster, &local, SERVICE_ADDRESS);
        assert_eq!(desired.services[&WEB].active, [key(12)]);
        assert!(desired.container_interfaces.is_empty());
    }

    #[test]
    fn a_published_port_claimed_twice_stays_with_the_first_service() {
        let (mut cluster, local) = pair();
        cluster.services.insert("s2".into(), service("intruder", 9200));
        cluster
            .tasks
            .insert("t3".into(), task("s2", Some(1), "there", 13));
        let desired = desired(&cluster, &local, SERVICE_ADDRESS);
        assert_eq!(desired.services[&WEB].name, "web");
        assert_eq!(desired.services[&WEB].active, [key(11), key(12)]);
        assert!(!desired.backends.contains_key(&key(13)));
    }

    #[test]
    fn tasks_of_a_global_service_are_backends_without_slot() {
        let (mut cluster, local) = pair();
        for task in cluster.tasks.values_mut() {
            task.slot = None;
        }
        let desired = desired(&cluster, &local, SERVICE_ADDRESS);
        assert_eq!(desired.services[&WEB].active.len(), 2);
        assert!(desired.backends.values().all(|backend| backend.slot.is_none()));
    }

    #[test]
    fn an_address_belongs_to_the_task_that_runs_rather_than_the_one_that_drains() {
        for (draining, active) in [("t0", "t9"), ("t9", "t0")] {
            let (mut cluster, local) = pair();
            cluster.tasks.clear();
            let running = task("s1", Some(1), "there", 12);
            cluster.tasks.insert(active.into(), running.clone());
            let leaving = Task {
                state: TaskState::Draining,
                ..running
            };
            cluster.tasks.insert(draining.into(), leaving);
            let desired = desired(&cluster, &local, SERVICE_ADDRESS);
            assert_eq!(desired.services[&WEB].active, [key(12)]);
            assert_eq!(desired.backends[&key(12)].task, active);
        }
    }

    #[test]
    fn a_service_without_tasks_is_answered_and_has_no_backends() {
        let (mut cluster, local) = pair();
        cluster.tasks.clear();
        let desired = desired(&cluster, &local, SERVICE_ADDRESS);
        assert!(desired.services[&WEB].active.is_empty());
        assert_eq!(desired.frontends.len(), 2);
    }

    #[test]
    fn network_identifiers_fit_their_field() {
        for id in ["", "cluster", "x8a7d5wefsfzt4xgjwqn7l4kt"] {
            assert!(vni(id) < 1 << 24);
        }
        assert_ne!(vni("a"), vni("b"));
    }
}
