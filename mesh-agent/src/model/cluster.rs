//! The cluster as a source reports it. Plain serde data, in ordered maps throughout, so that equal clusters
//! serialise to equal bytes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::Ipv4Addr,
};

use serde::{Deserialize, Serialize};

use super::{
    Balance, Clients, Drained, FailedChecks, HealthCheck, IdleLimits, KeyId, Limits, NodeDatapath,
    NodeSubject, PublishOn, Weights,
};

/// Swarm's node id, 25 lower-case characters; also the CN of the node's certificate.
pub type NodeId = String;
/// Swarm's service id.
pub type ServiceId = String;
/// Swarm's task id; never reused.
pub type TaskId = String;

/// A consistent snapshot of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Swarm's cluster id; the O of every node certificate.
    pub cluster_id: String,
    /// The UDP port of Swarm's overlay networks (`docker swarm init --data-path-port`); `None` where the
    /// source does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_path_port: Option<u16>,
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
    /// Its data path, as its agent announced it.
    #[serde(default)]
    pub datapath: NodeDatapath,
    /// Whether its agent is no longer reachable although the node is not given up yet: the node may be lost,
    /// or only its agent. New flows go to other nodes if possible.
    #[serde(default)]
    pub silent: bool,
    /// The release of its agent, as it announced it; empty if it has not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub release: String,
    /// The ids of the keys that its data path takes in the tunnel: none if its agent is of a release without
    /// keys, and not known if the agent or the manager does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<Vec<KeyId>>,
    /// The replicas that an operator drains there, as its agent announced them.
    #[serde(default, skip_serializing_if = "Drained::is_empty")]
    pub drained: Drained,
    /// The replicas there that fail the check that their service asks for, as its agent announced them.
    #[serde(default, skip_serializing_if = "FailedChecks::is_empty")]
    pub failed: FailedChecks,
    /// Its own labels, those of them that a service's `mesh.publish-on` or `mesh.weights` names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Its labels that have an invalid value, and what applies instead, a sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub invalid_labels: Vec<String>,
    /// Whether its agent is connected to the manager's that the snapshot comes from. Its data path may work
    /// without.
    #[serde(default, skip_serializing_if = "AgentConnection::is_unknown")]
    pub agent: AgentConnection,
}

impl Node {
    /// A ready node of which no more is known.
    #[must_use]
    pub fn new(hostname: String, address: Ipv4Addr, role: NodeRole) -> Self {
        Self {
            hostname,
            address,
            role,
            ready: true,
            weight: one(),
            datapath: NodeDatapath::default(),
            silent: false,
            release: String::new(),
            keys: None,
            drained: Drained::default(),
            failed: FailedChecks::default(),
            labels: BTreeMap::new(),
            invalid_labels: Vec::new(),
            agent: AgentConnection::default(),
        }
    }
}

impl Cluster {
    /// Keeps of the nodes' labels those that services name, so that no others are sent to every node.
    pub(crate) fn forget_unnamed_labels(&mut self) {
        let conditions = self.services.values().flat_map(|service| {
            let weights = service.weights.0.iter();
            let weights = weights.map(|entry| &entry.condition);
            service.publish_on.nodes.iter().chain(weights)
        });
        let named: BTreeSet<&String> = conditions
            .filter_map(|condition| match &condition.subject {
                NodeSubject::Label(label) => Some(label),
                NodeSubject::Id | NodeSubject::Hostname | NodeSubject::Role => None,
            })
            .collect();
        for node in self.nodes.values_mut() {
            node.labels.retain(|label, _| named.contains(label));
        }
    }
}

fn one() -> u32 {
    1
}

/// A manager's connection from a node's agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AgentConnection {
    /// Not known: the manager's agent has just started, is of an earlier release, or has no feed.
    #[default]
    Unknown,
    /// The agent announces its data path.
    Connected,
    /// It connects again and again: the agent does not stay up, or the network does not.
    Unsteady,
    /// It has not been connected for some seconds: the agent does not run, or cannot reach the manager.
    Lost,
}

impl AgentConnection {
    fn is_unknown(&self) -> bool {
        *self == Self::Unknown
    }
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
    /// Ports published in ingress mode. (Host-mode ports are left to the engine.)
    pub ports: Vec<PublishedPort>,
    /// How new connections are spread (labels `mesh.scheduler` and `mesh.affinity`).
    #[serde(default)]
    pub balance: Balance,
    /// What shares of new connections its replicas get (label `mesh.weights`).
    #[serde(default, skip_serializing_if = "Weights::are_the_nodes")]
    pub weights: Weights,
    /// How its replicas are checked, if they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthCheck>,
    /// Which clients may come in (labels `mesh.allow` and `mesh.deny`).
    #[serde(default, skip_serializing_if = "Clients::are_all")]
    pub clients: Clients,
    /// For how long its flows may be idle (labels `mesh.idle-timeout` and `mesh.udp-timeout`).
    #[serde(default, skip_serializing_if = "IdleLimits::are_defaults")]
    pub idle: IdleLimits,
    /// Where its ports are published (label `mesh.publish-on`).
    #[serde(default, skip_serializing_if = "PublishOn::is_everywhere")]
    pub publish_on: PublishOn,
    /// Seconds after which connections that are still open on a draining replica are reset; `None` for never
    /// (label `mesh.drain-timeout`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_timeout: Option<u32>,
    /// How many new connections it takes.
    #[serde(default, skip_serializing_if = "Limits::are_default")]
    pub limits: Limits,
    /// Its labels that have an invalid value, and what applies instead, a sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub invalid_labels: Vec<String>,
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

    /// The protocol with an IANA number, if it is one of these.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            _ => None,
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
    /// Its address on Docker's ingress network, or the one that the orchestrator has given it to identify it:
    /// unique in the cluster while the task lives.
    pub address: Ipv4Addr,
    /// Whether new connections may be sent to it.
    pub state: TaskState,
}

/// Whether a task takes new connections. Tasks that do not run are not in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskState {
    /// It runs (and is healthy, if it has a health check), and is meant to.
    Active,
    /// It still runs, but is no longer meant to: it keeps its connections and gets no new ones.
    Draining,
}
