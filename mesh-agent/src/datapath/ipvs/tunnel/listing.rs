//! Recognising the mesh's entries in what the kernel lists. Pure.

use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
    rule::{RuleAttribute, RuleMessage},
};

use super::entry::{Entry, Interfaces, TABLE, TABLE_LOCAL, TABLE_MAIN, lasting, prefix, protocol};
use crate::{
    datapath::ipvs::address::{MESH_NETWORKS, is_mesh_address},
    model::MacAddress,
};

/// The requests that list the mesh's entries; without interfaces, only entries that outlive the device.
pub(super) fn lists(interfaces: Option<Interfaces>) -> Vec<(&'static str, RouteNetlinkMessage)> {
    let neighbours = |family| {
        let mut message = NeighbourMessage::default();
        message.header.family = family;
        RouteNetlinkMessage::GetNeighbour(message)
    };
    let mut routes = RouteMessage::default();
    routes.header.address_family = AddressFamily::Inet;
    let mut rules = RuleMessage::default();
    rules.header.family = AddressFamily::Inet;
    let mut lists = vec![
        ("the neighbours", neighbours(AddressFamily::Inet)),
        ("the routes", RouteNetlinkMessage::GetRoute(routes)),
        ("the routing rules", RouteNetlinkMessage::GetRule(rules)),
    ];
    if interfaces.is_some() {
        lists.push(("the forwarding entries", neighbours(AddressFamily::Bridge)));
    }
    lists
}

/// The entry in a listed message, if it is the mesh's.
pub(super) fn ours(message: &RouteNetlinkMessage, interfaces: Option<Interfaces>) -> Option<Entry> {
    match message {
        RouteNetlinkMessage::NewNeighbour(message) if message.header.family == AddressFamily::Bridge => {
            forwarding(message, interfaces?)
        }
        RouteNetlinkMessage::NewNeighbour(message) => neighbour(message),
        RouteNetlinkMessage::NewRoute(message) => route(message),
        RouteNetlinkMessage::NewRule(message) => rule(message),
        _ => None,
    }
}

fn forwarding(message: &NeighbourMessage, interfaces: Interfaces) -> Option<Entry> {
    let device = message.header.ifindex;
    if device != interfaces.device || message.header.state != lasting(message.header.flags) {
        return None;
    }
    let mac = mac(message)?;
    if message.header.flags.contains(NeighbourFlags::Own) {
        // For this family the kernel's messages give the destination as bytes.
        let peer = message.attributes.iter().find_map(|attribute| match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(*address),
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                <[u8; 4]>::try_from(bytes.as_slice()).ok().map(Ipv4Addr::from)
            }
            _ => None,
        })?;
        return Some(Entry::Forward { device, mac, peer });
    }
    Some(Entry::Port { device, mac })
}

fn neighbour(message: &NeighbourMessage) -> Option<Entry> {
    if !message
        .attributes
        .contains(&NeighbourAttribute::Protocol(protocol()))
    {
        return None;
    }
    let peer = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(*address),
        _ => None,
    })?;
    Some(Entry::Neighbour {
        bridge: message.header.ifindex,
        peer,
        mac: mac(message)?,
    })
}

fn mac(message: &NeighbourMessage) -> Option<MacAddress> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok().map(MacAddress),
        _ => None,
    })
}

fn rule(message: &RuleMessage) -> Option<Entry> {
    if !message.attributes.contains(&RuleAttribute::Protocol(protocol())) {
        return None;
    }
    let network = message.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Source(IpAddr::V4(address)) => Some(address.octets()[0]),
        _ => None,
    })?;
    Some(Entry::Rule { network })
}

fn route(message: &RouteMessage) -> Option<Entry> {
    if message.header.protocol != protocol() {
        return None;
    }
    let mut table = u32::from(message.header.table);
    let (mut to, mut gateway, mut bridge) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Destination(RouteAddress::Inet(address)) => to = Some(*address),
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => gateway = Some(*address),
            RouteAttribute::Oif(index) => bridge = Some(*index),
            _ => {}
        }
    }
    let to = to?;
    if message.header.kind == RouteType::Unreachable {
        let network = MESH_NETWORKS.into_iter().find(|network| prefix(*network) == to)?;
        return Some(Entry::Sink { network });
    }
    let bridge = bridge?;
    match (table, gateway) {
        (TABLE_LOCAL, None) if is_mesh_address(to) => Some(Entry::Local { bridge, address: to }),
        (TABLE_MAIN, Some(peer)) if is_mesh_address(to) => Some(Entry::Remote {
            bridge,
            address: to,
            peer,
        }),
        (TABLE, Some(peer)) if peer == to => Some(Entry::Back { bridge, peer }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::route::RouteProtocol;

    use super::{
        super::entry::{
            hardware, route_to,
            tests::{INTERFACES, plan},
            wanted,
        },
        *,
    };
    use crate::datapath::ipvs::address::peer_mac;

    #[test]
    fn an_entry_is_recognised_in_its_own_message() {
        for entry in wanted(&plan(), INTERFACES) {
            let message: RouteNetlinkMessage = entry.add().decode().unwrap();
            assert_eq!(ours(&message, Some(INTERFACES)), Some(entry));
        }
    }

    #[test]
    fn what_others_made_is_not_ours() {
        let mut route = route_to(
            Ipv4Addr::new(250, 0, 0, 5),
            7,
            TABLE_MAIN,
            Some(Ipv4Addr::new(192, 0, 2, 2)),
        );
        route.header.protocol = RouteProtocol::Static;
        assert_eq!(
            ours(&RouteNetlinkMessage::NewRoute(route), Some(INTERFACES)),
            None
        );
        let port = hardware(
            9,
            peer_mac(Ipv4Addr::new(192, 0, 2, 2)),
            NeighbourFlags::Controller,
        );
        assert_eq!(
            ours(&RouteNetlinkMessage::NewNeighbour(port), Some(INTERFACES)),
            None
        );
    }
}
