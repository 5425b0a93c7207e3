//! The IPv6 clients of a data path whose replicas see an IPv4 address instead. Imports mesh_ebpf
//! only.

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

#[cfg(test)]
mod tests {
    use mesh_ebpf::abi::{is_mapped_client, is_mapped_own};

    use super::*;
    use crate::model::mapped::{is_client, is_own};

    #[test]
    fn the_model_and_the_programs_mean_the_same_blocks() {
        for first in 0..=u8::MAX {
            for rest in [[0; 3], [255; 3]] {
                let address = Ipv4Addr::new(first, rest[0], rest[1], rest[2]);
                assert_eq!(is_mapped_client(address.into()), is_client(address), "{address}");
                assert_eq!(is_mapped_own(address.into()), is_own(address), "{address}");
            }
        }
        assert!(is_client(preferred("2001:db8::1".parse().unwrap())));
    }
}
