//! Version 1 of the admin API: the JSON that the agent serves and `meshctl` reads. Fields are only ever
//! added, so that `meshctl` and the agent may be of different releases.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};

use serde::{Deserialize, Serialize};

use crate::{
    datapath::{
        DatapathChoice, DatapathStatus, Traffic, dump::Dump, flow_list::FlowState, monitor::EventKind,
    },
    doctor::Report,
    model::{DrainReport, Prefix, Protocol},
};

mod status;

pub use status::{Counts, Ipv6Status, LimitedService, ModelStatus, Peer, PeerProbes, ProbeState, Status};

/// The API version, part of every path and answer.
pub const VERSION: u32 = 1;

/// The answer of `GET /v1/routes`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Routes {
    /// [`VERSION`].
    pub version: u32,
    /// Id of the answering node; counters cover the traffic that entered there.
    pub node: String,
    /// For how many seconds the agent had been running when the counters were read: two readings make a rate.
    /// 0 from earlier releases.
    #[serde(default)]
    pub clock_seconds: f64,
    /// Sorted by protocol, published port and task name.
    pub routes: Vec<Route>,
    /// What is wrong with the services' labels and checks, and whom they keep out, one line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notices: Vec<String>,
}

/// One published port of a service with one of its replicas, or with none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The service's name.
    pub service: String,
    /// The service's id.
    pub service_id: String,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The published port.
    pub port: u16,
    /// Every IPv4 address that answers on the port on this node.
    pub frontends: Vec<Ipv4Addr>,
    /// Every IPv6 address that does.
    #[serde(default)]
    pub ipv6_frontends: Vec<Ipv6Addr>,
    /// The replica; `None` if the service has none.
    pub backend: Option<RouteBackend>,
    /// Whether new connections go to it.
    pub state: RouteState,
    /// Why it gets no traffic (yet); empty if it does.
    pub reason: String,
    /// Traffic that entered the mesh at this node; zero if it is not counted.
    pub traffic: Traffic,
    /// TCP connections that the replica refused or did not answer; `None` if they are not counted.
    #[serde(default)]
    pub connections_failed: Option<u64>,
}

/// A route's replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteBackend {
    /// The task's name, e.g. `web.3`.
    pub task: String,
    /// The task's id.
    pub task_id: String,
    /// The slot of a replicated service's task.
    pub slot: Option<u64>,
    /// Host name of its node.
    pub node: String,
    /// Id of its node.
    pub node_id: String,
    /// Whether that is the answering node.
    pub local: bool,
    /// `ip:port`: the task's address on the ingress network and the port inside the container.
    pub address: String,
    /// Its share of new connections relative to the service's other replicas.
    pub weight: u32,
}

/// Whether new connections go to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RouteState {
    /// It gets new connections.
    Active,
    /// It keeps its connections but gets no new ones.
    Draining,
    /// It runs, but this node sends nothing to it; the reason is given.
    Excluded,
    /// The service has no replica: clients are refused.
    NoBackend,
}

impl RouteState {
    /// The name in columns and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Excluded => "excluded",
            Self::NoBackend => "no backend",
        }
    }
}

/// The answer of `GET /v1/datapath/dump`, whose parameter `flows` says how many entries of the flow table to
/// include (none if it is missing).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DumpAnswer {
    /// [`VERSION`].
    pub version: u32,
    /// The tables of the data path in use.
    pub dump: Dump,
}

/// The parameters of `GET /v1/flows`: every one that is given is a condition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowQuery {
    /// A service's name or id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The client's address, or a prefix of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<Prefix>,
    /// A task's name or id, or its address on the ingress network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// How far the flow has come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<FlowState>,
    /// TCP or UDP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// At most so many flows, [`DEFAULT_FLOWS`] if it is missing; no more than [`MAX_FLOWS`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// The parameters of `GET /v1/monitor`: every one that is given is a condition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MonitorQuery {
    /// [`Events::next`] of the answer before. Without it there are no events yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// A service's name or id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// An address, or a prefix of it, that a packet comes from or goes to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<Prefix>,
    /// What became of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<EventKind>,
    /// Whether to send the packets' first bytes as well.
    #[serde(default)]
    pub heads: bool,
}

/// The answer of `GET /v1/monitor`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Events {
    /// [`VERSION`].
    pub version: u32,
    /// Id of the answering node.
    pub node: String,
    /// Host name of the answering node.
    pub hostname: String,
    /// In their order.
    pub events: Vec<PacketEvent>,
    /// What to ask with the next time, within 5 s: reports end when no one asks.
    pub next: u64,
    /// How many events there were that no one can see any more: more than the node reports or keeps.
    pub lost: u64,
}

/// What became of a packet, or by it of its connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketEvent {
    /// When (RFC 3339).
    pub time: String,
    /// What became of it.
    pub event: EventKind,
    /// Why: the reason of a drop as in the metrics, or who has reset a connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// `tcp`, `udp`, `icmp`, or the number; `None` if the packet cannot be read.
    pub protocol: Option<String>,
    /// Sender.
    pub source: Option<IpAddr>,
    /// Sender's port.
    pub source_port: Option<u16>,
    /// Receiver.
    pub destination: Option<IpAddr>,
    /// Receiver's port.
    pub destination_port: Option<u16>,
    /// The service's name.
    pub service: Option<String>,
    /// The replica of the connection.
    pub backend: Option<FlowBackend>,
    /// The interface that the packet came in by; empty if the connection ended without a packet.
    pub interface: String,
    /// Bytes of its frame.
    pub length: u32,
    /// The first of them, from the Ethernet header on, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<String>,
}

/// How many flows are listed unless a request says otherwise.
pub const DEFAULT_FLOWS: usize = 100;
/// How many flows one answer has at most.
pub const MAX_FLOWS: usize = 10_000;

/// The answer of `GET /v1/flows`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flows {
    /// [`VERSION`].
    pub version: u32,
    /// Id of the answering node.
    pub node: String,
    /// Host name of the answering node.
    pub hostname: String,
    /// Sorted by protocol, published port and client.
    pub flows: Vec<Flow>,
    /// How many more there were than the limit.
    pub more: u64,
}

/// A connection, or a client's exchange of datagrams with a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// The service's name; `None` if it is gone.
    pub service: Option<String>,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The client.
    pub client: SocketAddr,
    /// What it dialled.
    pub frontend: SocketAddr,
    /// What the replica sees instead of the client, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub presented: Option<SocketAddrV4>,
    /// The replica; `None` once it is gone.
    pub backend: Option<FlowBackend>,
    /// How far it has come.
    pub state: FlowState,
    /// Seconds since a packet was last seen; `None` on IPVS.
    pub idle_seconds: Option<u32>,
    /// Where its client's packets enter.
    pub ingress: FlowIngress,
    /// The node where they enter the mesh, if it is another one: its host name or, if that is not known, its
    /// address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry_node: Option<String>,
}

/// A flow's replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowBackend {
    /// The task's name, e.g. `web.3`.
    pub task: String,
    /// The task's id.
    pub task_id: String,
    /// Host name of its node.
    pub node: String,
    /// `ip:port`: the task's address on the ingress network and the port inside the container.
    pub address: String,
}

/// Where a flow's client packets enter the answering node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowIngress {
    /// From the network.
    Network,
    /// From a process of the node.
    Host,
    /// From a container of the node.
    Container,
    /// Through the tunnel, from the node that the client dialled.
    Tunnel,
}

impl FlowIngress {
    /// The name in columns and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::Host => "host",
            Self::Container => "container",
            Self::Tunnel => "tunnel",
        }
    }
}

/// The parameters of `GET /v1/explain`: a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainQuery {
    /// Where it comes from.
    pub source: IpAddr,
    /// Its source port; any if it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
    /// Where it goes; of the same IP version.
    pub destination: SocketAddr,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The interface by which it arrives; follows from its source if it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
}

/// The answer of `GET /v1/explain`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explained {
    /// [`VERSION`].
    pub version: u32,
    /// Id of the answering node.
    pub node: String,
    /// Host name of the answering node.
    pub hostname: String,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Where the packet comes from.
    pub source: SocketAddr,
    /// Whether its port was not given.
    pub is_port_assumed: bool,
    /// Where it goes.
    pub destination: SocketAddr,
    /// The decisions about it, in their order.
    pub steps: Vec<Step>,
    /// What becomes of it.
    pub outcome: ExplainedOutcome,
    /// The name of the reason for which it is dropped or refused, as in `mesh_drops_total`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The replica that it goes to.
    pub backend: Option<FlowBackend>,
    /// Whether another flow may take the turn first, so that this one gets another replica.
    pub is_forecast: bool,
}

/// A decision about a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What is decided.
    pub step: String,
    /// How, in a sentence.
    pub detail: String,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExplainedOutcome {
    /// It is not the mesh's.
    LeftToKernel,
    /// It is dropped without an answer.
    Dropped,
    /// Its sender gets a RST or an ICMP error.
    Refused,
    /// It goes into a container of the node.
    Delivered,
    /// It goes through the tunnel to another node.
    Forwarded,
    /// It is a replica's reply.
    Reply,
}

/// The answer of `GET /v1/datapath`, `POST /v1/datapath/retry` and `POST /v1/datapath/use`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatapathAnswer {
    /// [`VERSION`].
    pub version: u32,
    /// The data path's status after the request.
    pub datapath: DatapathStatus,
}

/// The answer of `GET /v1/drain` and `POST /v1/drain`. The parameter `node` of the former is the id of a node
/// whose replicas are meant; this node's if it is missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainAnswer {
    /// [`VERSION`].
    pub version: u32,
    /// The node whose replicas are listed, if it is another one than this agent's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elsewhere: Option<Elsewhere>,
    /// The drained replicas.
    #[serde(flatten)]
    pub report: DrainReport,
}

/// Another node, whose agent was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Elsewhere {
    /// Its id.
    pub node_id: String,
    /// Its host name.
    pub hostname: String,
}

/// The answer of `GET /v1/doctor`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoctorAnswer {
    /// [`VERSION`].
    pub version: u32,
    /// Every check, and the data path that results.
    #[serde(flatten)]
    pub report: Report,
}

impl From<Report> for DoctorAnswer {
    fn from(report: Report) -> Self {
        Self {
            version: VERSION,
            report,
        }
    }
}

/// The body of `POST /v1/datapath/use`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UseDatapath {
    /// The data path to use until the agent stops or gets another request.
    pub choice: DatapathChoice,
}

/// The body of every error answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What failed and why, in one line.
    pub error: String,
}
