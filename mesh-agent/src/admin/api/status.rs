//! The answer of `GET /v1/status`: part of the admin API.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::{
    datapath::{DatapathStatus, InterfaceMode},
    model::{AgentConnection, NoHook, NodeDatapath, NodeRole, Protocol, ReturnMode},
};

/// The answer of `GET /v1/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// [`VERSION`](super::VERSION).
    pub version: u32,
    /// The agent's release.
    pub agent_version: String,
    /// Seconds since the agent started.
    pub uptime_seconds: f64,
    /// What the agent is waiting for before its data path is up for the first time; `null` once it is ready.
    #[serde(default)]
    pub not_ready: Option<String>,
    /// Why the agent is ready although it has no snapshot of the cluster; `null` if it has one or is not
    /// ready.
    #[serde(default)]
    pub ready_without_snapshot: Option<String>,
    /// This node's id; empty until Docker answers.
    pub node: String,
    /// This node's host name; empty until the first snapshot of the cluster.
    pub hostname: String,
    /// This node's address as its peers know it.
    pub node_address: Option<Ipv4Addr>,
    /// This node's role; `None` until Docker answers, and outside any Swarm.
    pub role: Option<NodeRole>,
    /// The announced state of this node's data path; `unknown` during start-up.
    #[serde(default)]
    pub datapath: NodeDatapath,
    /// What an operator drains on this node: its own name, or the names of tasks.
    #[serde(default)]
    pub drained: Vec<String>,
    /// The rules of the node's own policy, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policy: Vec<String>,
    /// Whether IPv6 is served.
    #[serde(default)]
    pub ipv6: Ipv6Status,
    /// How replies of remote backends travel.
    pub return_mode: ReturnMode,
    /// The node's data path, and why it is not on a better rung.
    #[serde(default)]
    pub datapath_status: DatapathStatus,
    /// The data path of each interface.
    pub interfaces: Vec<InterfaceMode>,
    /// The other nodes.
    pub peers: Vec<Peer>,
    /// The origin and age of the snapshot of the cluster.
    pub model: ModelStatus,
    /// How much is programmed.
    pub counts: Counts,
    /// What the services' limits of new connections have dropped here, one for each limit that has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limited: Vec<LimitedService>,
    /// Current problems, one line each.
    pub errors: Vec<String>,
}

/// First packets of new connections to a service that were dropped because of one of its limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitedService {
    /// The service's name.
    pub service: String,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The published port.
    pub port: u16,
    /// The label that asks for the limit.
    pub label: String,
    /// New connections per second; `None` if the label has been removed since.
    pub limit: Option<u32>,
    /// In about the last minute, as far as the agent was running.
    pub dropped_last_minute: u64,
    /// Since the node's data path has the service.
    pub dropped_total: u64,
}

/// Whether a node serves IPv6. Of an agent that cannot, everything is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipv6Status {
    /// The node's addresses at which it is served.
    pub addresses: Vec<Ipv6Addr>,
    /// Why it is not; `null` if it is.
    pub reason: Option<String>,
}

/// Another node of the cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    /// Its host name.
    pub hostname: String,
    /// Its id.
    pub node: String,
    /// The address of its end of the tunnel.
    pub address: Ipv4Addr,
    /// Manager or worker.
    pub role: NodeRole,
    /// Whether the managers consider it ready.
    pub ready: bool,
    /// Its announced data path, if known; this node sends only to its own kind.
    #[serde(default)]
    pub datapath: NodeDatapath,
    /// Whether the next hop to it (interface and MAC address) is known.
    pub resolved: bool,
    /// The largest packet that reaches it, bytes from the outer IP header on, if that is less than the
    /// interface carries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_mtu: Option<u32>,
    /// The interface that leads to it, if the mesh has no hook there: nothing is sent to it then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_hook: Option<NoHook>,
    /// What its data path's answers to this node's probes show; `None` if it is not probed.
    #[serde(default)]
    pub probes: Option<PeerProbes>,
    /// The release of its agent; empty if it has not announced one.
    #[serde(default)]
    pub agent_version: String,
    /// Whether its agent is connected to the manager that the snapshot comes from.
    #[serde(default)]
    pub agent: AgentConnection,
    /// How long this node has known that it is not, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_lost_seconds: Option<f64>,
}

/// Whether a peer's data path answers this node's probes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerProbes {
    /// Whether it answers, no longer answers, or has not answered yet.
    pub state: ProbeState,
    /// Smoothed round-trip time; `None` before the first answer.
    pub round_trip_seconds: Option<f64>,
    /// How long it has been silent, if it is.
    pub silent_seconds: Option<f64>,
    /// Whether it answers some probes since then, so that its connections go on.
    #[serde(default)]
    pub answers_again: bool,
}

/// What a peer's data path does with this node's probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProbeState {
    /// It answers.
    Answers,
    /// It no longer answers: new connections go elsewhere where they can.
    Silent,
    /// It has not answered since this agent started: it may be of an older version.
    Unknown,
}

/// The snapshot of the cluster on this node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelStatus {
    /// A description of where the snapshot comes from.
    pub origin: String,
    /// Revision that the data path has.
    pub revision_applied: u64,
    /// Newest revision received.
    pub revision_seen: u64,
    /// Seconds since the snapshot was last confirmed to be current; `None` before the first one.
    pub lag_seconds: Option<f64>,
}

/// How much is programmed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Published ports.
    pub services: usize,
    /// Answered (address, port, protocol).
    pub frontends: usize,
    /// Backends that get new connections.
    pub backends_active: usize,
    /// Backends that only keep their connections.
    pub backends_draining: usize,
}
