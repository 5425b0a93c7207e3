//! Default routes in what the kernel lists: read in one way for uplinks, for containers and for the doctor.

use std::{collections::BTreeSet, net::Ipv4Addr};

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType},
};
use netlink_sys::protocols::NETLINK_ROUTE;

use super::{bridges, route_to::interfaces_of};
use crate::{
    datapath::netlink::{Connection, Message, NetlinkError},
    host_facts::interface_name,
};

/// The interfaces that default routes of either IP version lead out of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct DefaultInterfaces {
    /// Those of the main table.
    main: BTreeSet<u32>,
    /// Those of tables that rules choose, as where each card has a router of its own.
    ruled: BTreeSet<u32>,
}

impl DefaultInterfaces {
    /// Takes a route over if it is a default route.
    pub(super) fn add(&mut self, route: &RouteMessage) {
        let Some(route) = DefaultRoute::of_either_version(route) else {
            return;
        };
        let interfaces = if route.is_in_main_table() {
            &mut self.main
        } else {
            &mut self.ruled
        };
        interfaces.extend(route.interfaces);
    }

    /// Those by which traffic from outside can arrive. A bridge that only a rule's table names is one of
    /// containers or virtual machines, of which one is the router of others.
    pub(super) fn uplinks(&self, is_bridge: impl Fn(u32) -> bool) -> impl Iterator<Item = u32> {
        let ruled = self.ruled.iter().filter(move |index| !is_bridge(**index));
        self.main.iter().chain(ruled).copied()
    }
}

/// A default route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DefaultRoute {
    /// The number of its table.
    table: u32,
    /// Its metric: the lowest wins.
    pub(super) metric: u32,
    /// The router that it leads to, if it leads to one.
    pub(super) gateway: Option<Ipv4Addr>,
    /// The interfaces that it leads out of; several if it is a multipath route.
    pub(super) interfaces: Vec<u32>,
}

impl DefaultRoute {
    /// The IPv4 default route that a message describes; `None` if it describes another route.
    pub(super) fn of(route: &RouteMessage) -> Option<Self> {
        let is_ipv4 = route.header.address_family == AddressFamily::Inet;
        is_ipv4.then(|| Self::of_either_version(route)).flatten()
    }

    /// What asks the kernel for the routes of all tables, one IP version after the other.
    pub(super) fn requests() -> [RouteMessage; 2] {
        [AddressFamily::Inet, AddressFamily::Inet6].map(|family| {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            request
        })
    }

    fn of_either_version(route: &RouteMessage) -> Option<Self> {
        let is_default =
            route.header.destination_prefix_length == 0 && route.header.kind == RouteType::Unicast;
        if !is_default {
            return None;
        }
        let mut found = Self {
            table: u32::from(route.header.table),
            metric: 0,
            gateway: None,
            interfaces: interfaces_of(route).collect(),
        };
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Table(number) => found.table = *number,
                RouteAttribute::Priority(priority) => found.metric = *priority,
                RouteAttribute::Gateway(RouteAddress::Inet(address)) => found.gateway = Some(*address),
                _ => {}
            }
        }
        Some(found)
    }

    /// Whether it is in the main table, which packets without a routing rule of their own use.
    pub(super) fn is_in_main_table(&self) -> bool {
        self.table == u32::from(RouteHeader::RT_TABLE_MAIN)
    }
}

/// The names of the interfaces that default routes lead out of: the uplinks that an agent chooses unless it
/// is given others.
///
/// # Errors
/// When the kernel does not list its routes.
pub fn default_route_interfaces() -> Result<BTreeSet<String>, NetlinkError> {
    let mut connection = Connection::open(NETLINK_ROUTE)?;
    let mut interfaces = DefaultInterfaces::default();
    for request in DefaultRoute::requests() {
        let request = Message::encode(&RouteNetlinkMessage::GetRoute(request), 0);
        for message in connection.dump(&request)? {
            if let RouteNetlinkMessage::NewRoute(route) = message.decode()? {
                interfaces.add(&route);
            }
        }
    }
    // An interface may be gone by now.
    let bridges = bridges()?;
    let is_bridge = |index| interface_name(index).is_ok_and(|name| bridges.contains(&name));
    let uplinks = interfaces.uplinks(is_bridge);
    Ok(uplinks.filter_map(|index| interface_name(index).ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(address: Ipv4Addr, prefix_length: u8, interface: u32) -> RouteMessage {
        let mut route = RouteMessage::default();
        route.header.address_family = AddressFamily::Inet;
        route.header.destination_prefix_length = prefix_length;
        route.header.kind = RouteType::Unicast;
        route.header.table = RouteHeader::RT_TABLE_MAIN;
        route.attributes = vec![
            RouteAttribute::Destination(RouteAddress::Inet(address)),
            RouteAttribute::Oif(interface),
            RouteAttribute::Priority(100),
        ];
        route
    }

    #[test]
    fn only_a_route_to_every_address_is_a_default_route() {
        let found = DefaultRoute::of(&route(Ipv4Addr::UNSPECIFIED, 0, 2)).unwrap();
        assert_eq!((found.metric, found.interfaces.as_slice()), (100, &[2][..]));
        assert!(found.is_in_main_table());
        // Half of all addresses, as VPNs take them.
        assert_eq!(DefaultRoute::of(&route(Ipv4Addr::UNSPECIFIED, 1, 3)), None);
        assert_eq!(
            DefaultRoute::of(&route(Ipv4Addr::new(172, 17, 0, 0), 16, 4)),
            None
        );
    }

    #[test]
    fn the_table_is_read_from_the_attribute_that_can_hold_large_numbers() {
        let mut other = route(Ipv4Addr::UNSPECIFIED, 0, 2);
        other.attributes.push(RouteAttribute::Table(1000));
        assert!(!DefaultRoute::of(&other).unwrap().is_in_main_table());
    }

    #[test]
    fn a_bridge_is_an_uplink_by_the_main_tables_default_route_only() {
        let mut interfaces = DefaultInterfaces::default();
        interfaces.add(&route(Ipv4Addr::UNSPECIFIED, 0, 2));
        for index in [2, 3] {
            let mut ruled = route(Ipv4Addr::UNSPECIFIED, 0, index);
            ruled.attributes.push(RouteAttribute::Table(1000));
            interfaces.add(&ruled);
        }
        let uplinks = |bridge| -> BTreeSet<u32> { interfaces.uplinks(|index| index == bridge).collect() };
        assert_eq!(uplinks(0), [2, 3].into());
        assert_eq!(uplinks(2), [2, 3].into());
        assert_eq!(uplinks(3), [2].into());
    }
}
