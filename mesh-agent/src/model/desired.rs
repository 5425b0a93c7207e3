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
    Cluster, Container, HostInterface, Local, MacAddress, NodeId, Protocol, ReturnMode, ServiceId, TaskId,
    TaskState,
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
    /// Bridges on which containers' traffic to the node arrives.
    pub bridges: BTreeMap<String, HostInterface>,
    /// Host ends of the veths of local backends, on which replies are caught.
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
#[must_use]
pub fn desired(cluster: &Cluster, local: &Local, service_address: Ipv4Addr) -> Desired {
    let mut desired = Desired {
        uplinks: local.uplinks.clone(),
        bridges: local.bridges.clone(),
        settings: Settings {
            node_address: cluster.nodes.get(&local.node).map(|node| node.address),
            vni: vni(&cluster.cluster_id),
            return_mode: local.return_mode,
            mesh0: local.mesh0,
        },
        ..Desired::default()
    };
    for (id, node) in &cluster.nodes {
        if *id != local.node {
            desired
                .peers
                .insert(node.address, local.next_hops.get(&node.address).copied());
        }
    }
    for (id, service) in &cluster.services {
        for port in &service.ports {
            let key = ServiceKey {
                protocol: port.protocol,
                port: port.published,
            };
            // Swarm refuses a second service on a published port; should a source offer one all the
            // same, the first by id keeps it, whatever order they came in.
            desired.services.entry(key).or_insert_with(|| {
                for address in local.addresses.iter().copied().chain([service_address]) {
                    desired.frontends.insert(Frontend {
                        address,
                        service: key,
                    });
                }
                ServiceEntry {
                    id: id.clone(),
                    name: service.name.clone(),
                    active: Vec::new(),
                }
            });
        }
    }
    for (id, task) in &cluster.tasks {
        add_backends(&mut desired, cluster, local, id, task);
    }
    desired
}

fn add_backends(desired: &mut Desired, cluster: &Cluster, local: &Local, id: &TaskId, task: &super::Task) {
    let (Some(service), Some(node)) = (cluster.services.get(&task.service), cluster.nodes.get(&task.node))
    else {
        return;
    };
    let location = if task.node == local.node {
        match local.containers.get(id) {
            Some(container) => Location::Local(*container),
            // The manager's word came before the engine's: the container follows within moments.
            None => return,
        }
    } else if node.ready {
        Location::Remote(node.address)
    } else {
        return;
    };
    let (state, weight) = match task.state {
        TaskState::Active => (BackendState::Active, 1),
        TaskState::Draining => (BackendState::Draining, 0),
    };
    if let Location::Local(container) = location {
        desired.container_interfaces.insert(container.host_interface);
    }
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
        if state == BackendState::Active {
            entry.active.push(backend_key);
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
    fnv1a(cluster_id.as_bytes()) & 0x00ff_ffff
}

/// A short fingerprint of a task's id that encapsulated packets carry, so that a stale packet for an
/// address that Swarm has since given to another task is refused rather than delivered.
#[must_use]
pub fn task_tag(task: &str) -> u16 {
    let hash = fnv1a(task.as_bytes());
    (hash >> 16) as u16 ^ (hash & 0xffff) as u16
}

fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    })
}
