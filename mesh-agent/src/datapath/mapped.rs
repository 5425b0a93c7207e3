//! The IPv6 clients of a data path whose replicas see an IPv4 address instead. Imports nothing of ours.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// The address by which replicas see an IPv6 client, unless another client of the node has it already.
#[must_use]
pub fn preferred(client: Ipv6Addr) -> Ipv4Addr {
    mesh_ebpf::mapped::preferred(&client.into()).into()
}

/// An IPv6 client.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MappedClient {
    /// Its address.
    pub address: Ipv6Addr,
    /// What replicas see instead.
    pub mapped: Ipv4Addr,
    /// The interface that its packets come in by.
    pub interface: String,
}

impl MappedClient {
    /// Whether it is the one with an address, its own or the other.
    #[must_use]
    pub fn is(&self, address: IpAddr) -> bool {
        address == IpAddr::V4(self.mapped) || address == IpAddr::V6(self.address)
    }
}
