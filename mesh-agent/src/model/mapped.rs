//! The IPv4 addresses that stand for IPv6 ones inside the data path. Pure.
//!
//! The packet path is IPv4; packets of IPv6 are translated where they enter and leave the entry node. Both
//! blocks are of 240.0.0.0/4, which no network uses: the Internet routes nothing there.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr},
};

use super::{Subnet, fnv1a::fnv1a_32};

/// The first address of the clients' block. Which client has which, the kernel decides.
pub const CLIENTS: Ipv4Addr = Ipv4Addr::new(248, 0, 0, 0);
/// The length of that block's prefix.
pub const CLIENTS_PREFIX: u8 = 6;
/// The first address of the block of the nodes' own addresses.
pub const OWN: Ipv4Addr = Ipv4Addr::new(252, 0, 0, 0);
/// The length of that block's prefix.
pub const OWN_PREFIX: u8 = 8;

/// Whether an address stands for an IPv6 client.
#[must_use]
pub fn is_client(address: Ipv4Addr) -> bool {
    Subnet::of(CLIENTS, CLIENTS_PREFIX).contains(address)
}

/// Whether an address stands for an IPv6 address of the node.
#[must_use]
pub fn is_own(address: Ipv4Addr) -> bool {
    Subnet::of(OWN, OWN_PREFIX).contains(address)
}

/// The addresses that stand for a node's own ones: 24 bits of each one's hash, so that an address has the
/// same on every node that it moves to. Of two with one hash, the second takes the next one that is free.
#[must_use]
pub fn own(addresses: &BTreeSet<Ipv6Addr>) -> BTreeMap<Ipv6Addr, Ipv4Addr> {
    assign(addresses, |address| fnv1a_32(address.octets()))
}

fn assign(addresses: &BTreeSet<Ipv6Addr>, hash: impl Fn(&Ipv6Addr) -> u32) -> BTreeMap<Ipv6Addr, Ipv4Addr> {
    let mut taken = BTreeSet::new();
    let mut assigned = BTreeMap::new();
    for address in addresses {
        let mut mapped = in_block(hash(address));
        // A node has far fewer addresses than the block.
        while !taken.insert(mapped) {
            mapped = in_block(mapped.to_bits().wrapping_add(1));
        }
        assigned.insert(*address, mapped);
    }
    assigned
}

/// The address of the own block with the low 24 bits of a number.
fn in_block(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(OWN.to_bits() | number & 0x00ff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_block_has_its_addresses_and_no_others() {
        for (address, client, own) in [
            ("247.255.255.255", false, false),
            ("248.0.0.0", true, false),
            ("251.255.255.255", true, false),
            ("252.0.0.0", false, true),
            ("252.255.255.255", false, true),
            ("253.0.0.0", false, false),
            ("192.0.2.1", false, false),
        ] {
            let address = address.parse().unwrap();
            assert_eq!((is_client(address), is_own(address)), (client, own), "{address}");
        }
    }

    #[test]
    fn an_address_has_the_same_one_whatever_others_the_node_has() {
        let [one, other] = ["2001:db8::1", "fd00::2"].map(|text| text.parse::<Ipv6Addr>().unwrap());
        let both = own(&[one, other].into());
        assert_eq!(both[&one], own(&[one].into())[&one]);
        assert_ne!(both[&one], both[&other]);
        assert!(both.values().copied().all(is_own));
        // As other releases have it: open connections go on when the agent is upgraded.
        assert_eq!(both[&one], Ipv4Addr::new(252, 91, 4, 244));
    }

    #[test]
    fn the_second_of_two_with_one_hash_takes_the_next_free_one_of_the_block() {
        let addresses: BTreeSet<Ipv6Addr> = (1..4_u16)
            .map(|last| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last))
            .collect();
        let assigned = assign(&addresses, |_| 0xabff_ffff);
        let expected = [[252, 255, 255, 255], [252, 0, 0, 0], [252, 0, 0, 1]].map(Ipv4Addr::from);
        assert_eq!(assigned.into_values().collect::<Vec<_>>(), expected);
    }
}
