//! The admin API's version 1: the JSON that the agent serves and `meshctl` reads. Plain data; fields are
//! only ever added to it, so that a `meshctl` of one release reads an agent of another.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::{
    datapath::{DatapathChoice, DatapathStatus, InterfaceMode, Traffic},
    doctor::Report,
    model::{NodeDatapath, NodeRole, Protocol, ReturnMode},
};

/// The version in every path and answer.
pub const VERSION: u32 = 1;

/// The answer of `GET /v1/routes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Routes {
    /// [`VERSION`].
    pub version: u32,
    /// Id of the node that answers; the counters are those of traffic that entered at it.
    pub node: String,
    /// In order of protocol, published port, task name.
    pub routes: Vec<Route>,
}

/// One published port of a service and one of its replicas, or the lack of any.
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
    /// Every address that answers on the port on this node.
    pub frontends: Vec<Ipv4Addr>,
    /// The replica; `None` where the service has none.
    pub backend: Option<RouteBackend>,
    /// Whether new connections go there.
    pub state: RouteState,
    /// Why nothing (or nothing yet) goes there; empty where all is well.
    pub reason: String,
    /// Traffic that entered the mesh at this node; zero where nothing is counted.
    pub traffic: Traffic,
}

/// A replica as a route shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteBackend {
    /// The task's name, e.g. `web.3`.
    pub task: String,
    /// The task's id.
    pub task_id: String,
    /// The slot of a replicated service's task.
    pub slot: Option<u64>,
    /// Host name of the node it runs on.
    pub node: String,
    /// Id of that node.
    pub node_id: String,
    /// Whether that is the node that answers.
    pub local: bool,
    /// `ip:port`: the task's address on the ingress network and the port inside the container.
    pub address: String,
    /// Share of new connections relative to its siblings.
    pub weight: u32,
}

/// Whether new connections go to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RouteState {
    /// Gets new connections.
    Active,
    /// Keeps its connections, gets no new ones.
    Draining,
    /// The cluster says it runs, but nothing can be sent to it; the reason tells why.
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

/// The answer of `GET /v1/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// [`VERSION`].
    pub version: u32,
    /// The agent's release.
    pub agent_version: String,
    /// Seconds since the agent started.
    pub uptime_seconds: f64,
    /// This node's id; empty until Docker has told.
    pub node: String,
    /// This node's host name; empty until the cluster's picture has arrived.
    pub hostname: String,
    /// This node's address as its peers know it.
    pub node_address: Option<Ipv4Addr>,
    /// This node's role; `None` until Docker has told, or when it is in no Swarm.
    pub role: Option<NodeRole>,
    /// What balances on this node; `unknown` until the agent has found its place.
    #[serde(default)]
    pub datapath: NodeDatapath,
    /// How replies of remote backends travel.
    pub return_mode: ReturnMode,
    /// The data path of the node, and why it is not a better one.
    #[serde(default)]
    pub datapath_status: DatapathStatus,
    /// The data path of each interface.
    pub interfaces: Vec<InterfaceMode>,
    /// The other nodes.
    pub peers: Vec<Peer>,
    /// Where the cluster's picture comes from and how fresh it is.
    pub model: ModelStatus,
    /// How much is programmed.
    pub counts: Counts,
    /// What is wrong just now, one line each; empty while all is well.
    pub errors: Vec<String>,
}

/// Another node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its host name.
    pub hostname: String,
    /// Its id.
    pub node: String,
    /// The address encapsulated packets go to and come from.
    pub address: Ipv4Addr,
    /// Manager or worker.
    pub role: NodeRole,
    /// Whether the managers see it as ready.
    pub ready: bool,
    /// What balances there, as far as this node has heard; nothing is sent to another kind than its own.
    #[serde(default)]
    pub datapath: NodeDatapath,
    /// Whether the way to it (interface and next hop's MAC address) is known.
    pub resolved: bool,
}

/// The state of the cluster's picture on this node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelStatus {
    /// Where the picture comes from, for people.
    pub origin: String,
    /// Revision that the data path was last brought to.
    pub revision_applied: u64,
    /// Newest revision seen.
    pub revision_seen: u64,
    /// Seconds since the picture was last confirmed to be current; `None` before the first.
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

/// The answer of `GET /v1/datapath`, `POST /v1/datapath/retry` and `POST /v1/datapath/use`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatapathAnswer {
    /// [`VERSION`].
    pub version: u32,
    /// How the data path stands, after what was asked has been done.
    pub datapath: DatapathStatus,
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
    /// What to use until the agent ends or is asked again.
    pub choice: DatapathChoice,
}

/// The body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What failed and why, in one line.
    pub error: String,
}
