//! The interfaces by which an address is reached, as the kernel's routes say.

use std::net::Ipv4Addr;

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteNextHopFlags},
};
use netlink_sys::protocols::NETLINK_ROUTE;

use crate::datapath::netlink::{Connection, Message, NetlinkError};

/// The index of the interface that leads to an address; `None` if the answer names none.
///
/// # Errors
/// When there is no route, or the kernel does not say.
pub fn interface_to(address: Ipv4Addr) -> Result<Option<u32>, NetlinkError> {
    let mut request = RouteMessage::default();
    request.header.address_family = AddressFamily::Inet;
    request.header.destination_prefix_length = 32;
    request.attributes = vec![RouteAttribute::Destination(RouteAddress::Inet(address))];
    let request = Message::encode(&RouteNetlinkMessage::GetRoute(request), 0);
    let Some(answer) = Connection::open(NETLINK_ROUTE)?.get(&request)? else {
        return Ok(None);
    };
    let RouteNetlinkMessage::NewRoute(route) = answer.decode()? else {
        return Ok(None);
    };
    let mut attributes = route.attributes.into_iter();
    Ok(attributes.find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(index),
        _ => None,
    }))
}

/// The interfaces that a route leads out of; several if it is a multipath route.
pub(super) fn interfaces_of(route: &RouteMessage) -> impl Iterator<Item = u32> {
    route.attributes.iter().flat_map(|attribute| {
        let (single, several) = match attribute {
            RouteAttribute::Oif(index) => (Some(*index), &[][..]),
            RouteAttribute::MultiPath(hops) => (None, &hops[..]),
            _ => (None, &[][..]),
        };
        let usable = several
            .iter()
            .filter(|hop| !hop.flags.contains(RouteNextHopFlags::Dead));
        single.into_iter().chain(usable.map(|hop| hop.interface_index))
    })
}

#[cfg(test)]
mod tests {
    use nix::net::if_::if_nametoindex;

    use super::*;

    #[test]
    fn loopback_leads_to_itself() {
        let lo = if_nametoindex("lo").unwrap();
        assert_eq!(interface_to(Ipv4Addr::LOCALHOST).unwrap(), Some(lo));
    }
}
