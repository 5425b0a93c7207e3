//! The addresses of replicas and nodes inside the tunnel between IPVS nodes. Pure; imports the model only.

use std::net::Ipv4Addr;

use crate::model::MacAddress;

/// The first byte of every mesh address: 250.0.0.0/8, a part of class E, which no network uses.
pub const MESH_NETWORK: u8 = 250;
/// Prefix length of the network of mesh addresses.
pub const MESH_PREFIX_BITS: u8 = 8;

/// The address by which other nodes reach a replica through the tunnel: its address on Docker's ingress
/// network with the first byte replaced. Unique as long as that network is no larger than a /8.
#[must_use]
pub fn mesh_address(ingress: Ipv4Addr) -> Ipv4Addr {
    let [_, second, third, fourth] = ingress.octets();
    Ipv4Addr::new(MESH_NETWORK, second, third, fourth)
}

/// Whether an address is a replica's inside the tunnel.
#[must_use]
pub fn is_mesh_address(address: Ipv4Addr) -> bool {
    address.octets()[0] == MESH_NETWORK
}

/// The MAC address of a node's end of the tunnel, by the node's address as its peers know it.
///
/// Locally administered, and high, because a bridge takes the lowest address of its ports as its own: it must
/// keep the one that it has.
#[must_use]
pub fn peer_mac(node_address: Ipv4Addr) -> MacAddress {
    let [a, b, c, d] = node_address.octets();
    MacAddress([0xfe, 0x4d, a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mesh_address_keeps_the_low_bits_of_the_ingress_address() {
        let address = mesh_address(Ipv4Addr::new(10, 1, 2, 3));
        assert_eq!(address, Ipv4Addr::new(250, 1, 2, 3));
        assert!(is_mesh_address(address));
        assert!(!is_mesh_address(Ipv4Addr::new(10, 1, 2, 3)));
    }

    #[test]
    fn a_nodes_mac_address_is_a_local_unicast_one() {
        let MacAddress(bytes) = peer_mac(Ipv4Addr::new(192, 0, 2, 1));
        assert_eq!(bytes, [0xfe, 0x4d, 192, 0, 2, 1]);
        assert_eq!(bytes[0] & 0b11, 0b10, "local, and not of a group");
    }
}
