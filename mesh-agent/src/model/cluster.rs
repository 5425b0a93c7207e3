//! The cluster as a source (Swarm's managers, or the peer feed that carries their word) describes it.
//! Plain serde data, ordered maps throughout so that equal clusters serialise to equal bytes.

use std::{collections::BTreeMap, fmt, net::Ipv4Addr};

use serde::{Deserialize, Serialize};

use super::{Balance, NodeDatapath};

/// Swarm's node id, 25 lower-case characters; also the CN of the node's certificate.
pub type NodeId = String;
/// Swarm's service id.
pub type ServiceId = String;
/// Swarm's task id; never reused.
pub type TaskId = String;

/// Everything a source knows: one consistent picture at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Swarm's cluster id; the O of every node certificate.
    pub cluster_id: String,
    /// Every node of the cluster, ready or not.
    pub nodes: BTreeMap<NodeId, Node>,
    /// Services that publish at least one port in ingress mode.
    pub services: BTreeMap<ServiceId, Service>,
    /// Tasks of those services that run or drain.
    pub tasks: BTreeMap<TaskId, Task>,
}

/// One machine of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Host name as the engine reports it.
    pub hostname: String,
    /// The address peers reach this node at, and encapsulated packets come from.
    pub address: Ipv4Addr,
    /// Manager or worker.
    pub role: NodeRole,
    /// Whether the managers see it as ready. Tasks of a node that is not are no backends, although
    /// Swarm shows them as `running` for up to 24 h.
    pub ready: bool,
    /// Share of new connections that each of its tasks gets, relative to other nodes' (label `mesh.weight`).
    #[serde(default = "one")]
    pub weight: u32,
    /// What balances there, as its agent announced it.
    #[serde(default)]
    pub datapath: NodeDatapath,
    /// Whether its agent is not heard any more, and nobody has given the node up yet: it may be lost, or its
    /// agent alone. New flows go elsewhere where they can.
    #[serde(default)]
    pub silent: bool,
}

fn one() -> u32 {
    1
}

/// A node's role in Swarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeRole {
    /// Can list services and tasks, and serves the model to workers.
    Manager,
    /// Receives the model from a manager.
    Worker,
}

/// A service and the ports it publishes in ingress mode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// The service's name, e.g. `web`.
    pub name: String,
    /// Ports published in ingress mode (host-mode ports are the engine's own business).
    pub ports: Vec<PublishedPort>,
    /// How new connections are spread (labels `mesh.scheduler` and `mesh.affinity`).
    #[serde(default)]
    pub balance: Balance,
}

/// One published port: `-p published:target/protocol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PublishedPort {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The port every node answers on, host byte order.
    pub published: u16,
    /// The port inside the container, host byte order.
    pub target: u16,
}

/// The transport protocols the mesh balances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// IP protocol 6.
    Tcp,
    /// IP protocol 17.
    Udp,
}

impl Protocol {
    /// The IANA protocol number, as in the IPv4 header.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// One replica of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// The service it belongs to.
    pub service: ServiceId,
    /// The name Docker shows, e.g. `web.3` (slot) or `web.<node id>` (global).
    pub name: String,
    /// The slot of a replicated service's task; `None` for a global service's.
    pub slot: Option<u64>,
    /// The node it runs on.
    pub node: NodeId,
    /// Its address on Docker's ingress network, or what the orchestrator has the mesh call it by: unique in
    /// the cluster while the task lives.
    pub address: Ipv4Addr,
    /// Whether new connections may be sent to it.
    pub state: TaskState,
}

/// What the mesh may do with a task. Tasks that do not run (any more) are not in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskState {
    /// Observed running (Swarm: healthy, where there is a health check), and meant to run.
    Active,
    /// Still running but its desired state has left `running`: keeps its connections, gets no new ones.
    Draining,
}
