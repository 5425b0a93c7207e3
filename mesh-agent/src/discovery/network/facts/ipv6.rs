//! Which IPv6 addresses of the node clients can reach it by. No I/O.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr},
};

use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};

/// The usable addresses, by interface.
#[derive(Debug, Default)]
pub(super) struct Ipv6Addresses(BTreeSet<(u32, Ipv6Addr)>);

impl Ipv6Addresses {
    /// Takes over what is reported of an address; false if that changes nothing. The kernel reports it again
    /// when it has found that no one else has it, or that someone has. A deprecated one is still answered.
    pub(super) fn add(&mut self, message: &AddressMessage) -> bool {
        let flags = message.header.flags;
        if flags.intersects(AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed) {
            return self.remove(message);
        }
        key(message).is_some_and(|key| self.0.insert(key))
    }

    /// Forgets an address; false if it was not known.
    pub(super) fn remove(&mut self, message: &AddressMessage) -> bool {
        key(message).is_some_and(|key| self.0.remove(&key))
    }

    pub(super) fn remove_interface(&mut self, index: u32) {
        self.0.retain(|(interface, _)| *interface != index);
    }

    /// The addresses of those interfaces for which `counts` holds.
    pub(super) fn of(&self, counts: impl Fn(u32) -> bool) -> BTreeSet<Ipv6Addr> {
        let addresses = self.0.iter().filter(|(interface, _)| counts(*interface));
        addresses.map(|(_, address)| *address).collect()
    }
}

fn key(message: &AddressMessage) -> Option<(u32, Ipv6Addr)> {
    let mut found = None;
    for attribute in &message.attributes {
        match attribute {
            // The node's own end of a point-to-point link.
            AddressAttribute::Local(IpAddr::V6(address)) => found = Some(*address),
            AddressAttribute::Address(IpAddr::V6(address)) => found = found.or(Some(*address)),
            _ => {}
        }
    }
    let address = found.filter(|address| is_reachable(*address))?;
    Some((message.header.index, address))
}

/// Whether an address is global or unique-local: others mean nothing without their link, or name no host.
fn is_reachable(address: Ipv6Addr) -> bool {
    !(address.is_loopback()
        || address.is_unspecified()
        || address.is_multicast()
        || address.is_unicast_link_local()
        || address.to_ipv4_mapped().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(address: &str, flags: AddressHeaderFlags) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.index = 7;
        message.header.flags = flags;
        message.attributes = vec![AddressAttribute::Address(address.parse().unwrap())];
        message
    }

    #[test]
    fn global_and_unique_local_addresses_are_usable() {
        for (address, usable) in [
            ("2001:db8::1", true),
            ("fd00::1", true),
            ("fe80::1", false),
            ("::1", false),
            ("::", false),
            ("ff02::1", false),
            ("::ffff:192.0.2.1", false),
            ("192.0.2.1", false),
        ] {
            let mut addresses = Ipv6Addresses::default();
            let added = addresses.add(&message(address, AddressHeaderFlags::Permanent));
            assert_eq!(added, usable, "{address}");
        }
    }

    #[test]
    fn an_address_is_usable_while_no_one_else_may_have_it() {
        let address = "2001:db8::1";
        let mut addresses = Ipv6Addresses::default();
        assert!(!addresses.add(&message(address, AddressHeaderFlags::Tentative)));
        assert!(addresses.add(&message(address, AddressHeaderFlags::empty())));
        assert!(
            !addresses.add(&message(address, AddressHeaderFlags::Deprecated)),
            "known"
        );
        let failed = AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed;
        assert!(addresses.add(&message(address, failed)));
        assert_eq!(addresses.of(|_| true), [].into());
    }

    #[test]
    fn the_own_end_of_a_point_to_point_link_is_the_nodes_address() {
        let mut addresses = Ipv6Addresses::default();
        let mut message = message("fd00::2", AddressHeaderFlags::Permanent);
        message
            .attributes
            .push(AddressAttribute::Local("fd00::1".parse().unwrap()));
        addresses.add(&message);
        assert_eq!(
            addresses.of(|interface| interface == 7),
            ["fd00::1".parse().unwrap()].into()
        );
        addresses.remove_interface(7);
        assert_eq!(addresses.of(|_| true), [].into());
    }
}
