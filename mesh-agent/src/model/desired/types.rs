//! What a data path is asked for: frontends, services, backends, peers, interfaces and settings.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::model::{
    Balance, Container, FULL_SHARE, HostInterface, IdleLimits, Limits, MacAddress, NextHop, NodeId, Protocol,
    ReturnMode, ServiceId, SourcePolicy, Subnet, TaskId,
};

/// Everything that a datapath must establish.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Addresses and ports that are answered.
    pub frontends: BTreeSet<Frontend>,
    /// The node's IPv6 addresses that are answered, and the IPv4 ones that stand for them in frontends.
    pub own_ipv6: BTreeMap<Ipv6Addr, Ipv4Addr>,
    /// The services behind the frontends, by the protocol and published port that name them.
    pub services: BTreeMap<ServiceKey, ServiceEntry>,
    /// Those of them whose port is never a frontend, and what it is.
    pub left: BTreeMap<ServiceKey, String>,
    /// Every backend, active or draining.
    pub backends: BTreeMap<BackendKey, Backend>,
    /// The source that a container sees instead of clients that it would answer by a network of its own.
    pub masquerades: BTreeMap<Masquerade, Ipv4Addr>,
    /// Peer nodes: the only addresses encapsulated packets are accepted from or sent to.
    pub peers: BTreeMap<Ipv4Addr, Option<NextHop>>,
    /// The MAC addresses of the node's interfaces: frames from outside to any other are not for it.
    pub macs: BTreeSet<MacAddress>,
    /// Interfaces on which traffic from outside arrives.
    pub uplinks: BTreeMap<String, HostInterface>,
    /// Host ends of containers' veths, where replies of local backends are caught, and what containers send
    /// to the node's published ports.
    pub container_interfaces: BTreeSet<u32>,
    /// Published ports that are left to Docker's own mesh, because of a rule of the host's firewall that
    /// cannot be expressed; and which.
    pub inexpressible: BTreeMap<ServiceKey, Arc<str>>,
    /// Node-wide settings.
    pub settings: Settings,
}

impl Desired {
    /// The address of the node that a frontend's address is, or stands for.
    #[must_use]
    pub fn actual(&self, frontend: Ipv4Addr) -> IpAddr {
        let mut own = self.own_ipv6.iter();
        match own.find(|(_, mapped)| **mapped == frontend) {
            Some((address, _)) => (*address).into(),
            None => frontend.into(),
        }
    }
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
    /// The device whose egress carries local processes' connections; `None` until it exists.
    pub mesh0: Option<HostInterface>,
}

/// One answered (address, port, protocol).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Frontend {
    /// A node's address, one that stands for a node's IPv6 address, or the mesh's service address.
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

impl fmt::Display for ServiceKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.protocol, self.port)
    }
}

/// A service as the data path sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceEntry {
    /// The service's id at its source.
    pub id: ServiceId,
    /// The service's name.
    pub name: String,
    /// How new flows are spread over its backends.
    pub balance: Balance,
    /// Backends that new flows may go to, in the order of rotation.
    pub active: Vec<BackendKey>,
    /// How many new flows it takes.
    #[serde(default)]
    pub limits: Limits,
    /// Who may come in; `None` for everyone.
    #[serde(skip)]
    pub policy: Option<Arc<SourcePolicy>>,
    /// The node's addresses at which it refuses everyone.
    #[serde(skip)]
    pub closed: BTreeSet<Ipv4Addr>,
    /// For how long its flows may be idle.
    #[serde(skip)]
    pub idle: IdleLimits,
}

/// A backend's cluster-wide name: the task's ingress address, for one published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BackendKey {
    /// The published port it serves.
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
    /// Share of new flows relative to the service's other backends; 0 while draining.
    pub weight: u32,
    /// How much of that it gets, of ten parts: all, unless it is new and starts slowly.
    #[serde(default = "full_share")]
    pub share: u8,
}

fn full_share() -> u8 {
    FULL_SHARE
}

/// Clients that a local backend's container would answer by a network of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Masquerade {
    /// Host end of the container's veth.
    pub interface: u32,
    /// The clients.
    pub clients: Subnet,
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

impl Location {
    /// Whether it is a container of this node.
    #[must_use]
    pub fn is_local(self) -> bool {
        matches!(self, Self::Local(_))
    }
}

impl Desired {
    /// Whether a service's new flows go to this node's own backends only, for as long as one of those works.
    #[must_use]
    pub fn prefers_local(&self, service: &ServiceEntry) -> bool {
        let is_local = |key| {
            self.backends
                .get(key)
                .is_some_and(|backend| backend.location.is_local())
        };
        service.balance.prefer_local && service.active.iter().any(is_local)
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.node_address {
            Some(address) => write!(formatter, "node {address}")?,
            None => formatter.write_str("node unknown")?,
        }
        let return_mode = match self.return_mode {
            ReturnMode::Tunnel => "tunnel",
            ReturnMode::Dsr => "dsr",
        };
        write!(formatter, " vni {:#08x} return {return_mode} mesh0 ", self.vni)?;
        match self.mesh0 {
            Some(mesh0) => write!(formatter, "interface {}", mesh0.index),
            None => formatter.write_str("none"),
        }
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.service, self.address)
    }
}

impl fmt::Display for Masquerade {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "interface {} clients {}", self.interface, self.clients)
    }
}

impl fmt::Display for BackendKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.service, self.address)
    }
}

impl fmt::Display for ServiceEntry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.name, self.balance.algorithm.name())?;
        if let Some(seconds) = self.balance.affinity {
            write!(formatter, " affinity {seconds} s")?;
        }
        if self.balance.prefer_local {
            formatter.write_str(" prefer local")?;
        }
        if let Some(seconds) = self.balance.slow_start() {
            write!(formatter, " slow start {seconds} s")?;
        }
        write!(formatter, "{}", self.idle)?;
        if !self.limits.are_default() {
            write!(formatter, " limits ({})", self.limits)?;
        }
        if let Some(policy) = &self.policy {
            write!(formatter, " source rules ({policy})")?;
        }
        for (number, address) in self.closed.iter().enumerate() {
            let before = if number == 0 { " closed at " } else { ", " };
            write!(formatter, "{before}{address}")?;
        }
        formatter.write_str(":")?;
        if self.active.is_empty() {
            return formatter.write_str(" no backends");
        }
        self.active
            .iter()
            .try_for_each(|key| write!(formatter, " {}", key.address))
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            task_name,
            node_name,
            target_port,
            weight,
            share,
            ..
        } = self;
        write!(
            formatter,
            "{task_name} on {node_name} {} weight {weight} ",
            self.state.name()
        )?;
        if *share < FULL_SHARE {
            write!(formatter, "share {share}/{FULL_SHARE} ")?;
        }
        match self.location {
            Location::Local(container) => write!(
                formatter,
                "local {}:{target_port} interface {}",
                container.address, container.host_interface
            ),
            Location::Remote(address) => write!(formatter, "remote {address} port {target_port}"),
        }
    }
}
