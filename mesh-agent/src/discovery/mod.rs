//! What a node finds out about itself: its containers (from the engine and from their network namespaces) and
//! its network (from netlink). Imports the model, the data path's netlink, and `docker` to query the
//! engine.

mod bridges;
pub mod containers;
mod default_route;
mod forwarding;
pub mod host_firewall;
pub mod network;
#[cfg(test)]
mod own_network;
pub mod ports;
mod route_to;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr},
};

use crate::model::{HostInterface, MacAddress, NextHop, Subnet};

pub use containers::{ContainerState, ContainerWatcher, Scheduler};
use network::Interest;

pub use bridges::bridges;
pub use default_route::default_route_interfaces;
pub use forwarding::not_forwarding;
pub use route_to::interface_to;

/// The node's network, as published on a `tokio::sync::watch` channel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkState {
    /// What this state was asked for.
    pub interest: Interest,
    /// Every IPv4 address of the host's namespace except 127.0.0.0/8.
    pub addresses: BTreeSet<Ipv4Addr>,
    /// Its global and unique-local IPv6 addresses.
    pub ipv6_addresses: BTreeSet<Ipv6Addr>,
    /// The MAC addresses of the host's interfaces, those of containers' veths excepted: a macvlan's or a
    /// bridge's frames arrive by the interface below it, with an address of its own.
    pub macs: BTreeSet<MacAddress>,
    /// The interfaces traffic from outside arrives on.
    pub uplinks: BTreeMap<String, HostInterface>,
    /// Interfaces on which such traffic arrives too, but which the mesh cannot use, and why.
    pub unusable_uplinks: BTreeMap<String, String>,
    /// Ports of containers' bridges: the host ends of containers' veths.
    pub container_interfaces: BTreeSet<u32>,
    /// The networks of the bridges that containers are on, by name.
    pub bridges: BTreeMap<String, BTreeSet<Subnet>>,
    /// The interface by which the route to each peer of interest leaves.
    pub peer_interfaces: BTreeMap<Ipv4Addr, String>,
    /// The resolved next hop to each peer of interest.
    pub next_hops: BTreeMap<Ipv4Addr, NextHop>,
}
