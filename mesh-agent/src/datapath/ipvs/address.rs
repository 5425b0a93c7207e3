//! The addresses of replicas and nodes inside the tunnel between IPVS nodes. Pure; imports the model only.

use std::{collections::BTreeMap, net::Ipv4Addr};

use crate::model::MacAddress;

/// The first byte of replicas' mesh addresses: 250.0.0.0/8, a part of class E, which no network uses.
pub const REPLICA_NETWORK: u8 = 250;
/// The first byte of nodes' mesh addresses: 251.0.0.0/8.
pub const NODE_NETWORK: u8 = 251;
/// The networks of mesh addresses.
pub const MESH_NETWORKS: [u8; 2] = [REPLICA_NETWORK, NODE_NETWORK];
/// Prefix length of each of them.
pub const MESH_PREFIX_BITS: u8 = 8;
/// The mask of both networks together: 250.0.0.0/7.
pub const MESH_MASK: Ipv4Addr = Ipv4Addr::new(0xfe, 0, 0, 0);

/// The address by which other nodes reach a replica through the tunnel: its address on Docker's ingress
/// network with the first byte replaced. Unique as long as that network is no larger than a /8.
#[must_use]
pub fn mesh_address(ingress: Ipv4Addr) -> Ipv4Addr {
    let [_, second, third, fourth] = ingress.octets();
    Ipv4Addr::new(REPLICA_NETWORK, second, third, fourth)
}

/// The address at which a node itself answers inside the tunnel: its own with the first byte replaced.
#[must_use]
pub fn node_mesh_address(node: Ipv4Addr) -> Ipv4Addr {
    let [_, second, third, fourth] = node.octets();
    Ipv4Addr::new(NODE_NETWORK, second, third, fourth)
}

/// The mesh addresses of the peers, by their own. Those that would share one, or have this node's, are left
/// out: only nodes of different /8s can.
pub fn peers_mesh_addresses(
    own: Ipv4Addr,
    peers: impl Iterator<Item = Ipv4Addr>,
) -> BTreeMap<Ipv4Addr, Ipv4Addr> {
    let mut by_mesh_address = BTreeMap::from([(node_mesh_address(own), None)]);
    for peer in peers {
        by_mesh_address
            .entry(node_mesh_address(peer))
            .and_modify(|found| *found = found.filter(|found| *found == peer))
            .or_insert(Some(peer));
    }
    by_mesh_address
        .into_iter()
        .filter_map(|(address, peer)| Some((peer?, address)))
        .collect()
}

/// Whether an address is a replica's or a node's inside the tunnel.
#[must_use]
pub fn is_mesh_address(address: Ipv4Addr) -> bool {
    MESH_NETWORKS.contains(&address.octets()[0])
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
    fn peers_that_would_share_an_address_have_none() {
        let [own, twin, first, second, alone] =
            ["10.0.0.1", "172.0.0.1", "10.0.0.2", "192.0.0.2", "10.0.0.3"].map(|text| text.parse().unwrap());
        let addresses = peers_mesh_addresses(own, [twin, first, second, alone, alone].into_iter());
        assert_eq!(addresses, [(alone, Ipv4Addr::new(251, 0, 0, 3))].into());
        assert!(is_mesh_address(addresses[&alone]));
    }

    #[test]
    fn a_nodes_mac_address_is_a_local_unicast_one() {
        let MacAddress(bytes) = peer_mac(Ipv4Addr::new(192, 0, 2, 1));
        assert_eq!(bytes, [0xfe, 0x4d, 192, 0, 2, 1]);
        assert_eq!(bytes[0] & 0b11, 0b10, "local, and not of a group");
    }
}
