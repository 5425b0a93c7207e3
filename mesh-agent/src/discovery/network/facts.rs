//! What netlink has reported so far, and the network state that follows from it. No I/O.

mod ipv6;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteMessage},
};

use self::ipv6::Ipv6Addresses;
use super::{DefaultInterfaces, Interest, NetworkOptions, NetworkState};
use crate::{
    mesh0,
    model::{HostInterface, MacAddress, NextHop, Subnet},
};

/// Why other devices than those of Ethernet and of layer 3 cannot be uplinks.
const NO_HOOK: &str = "the mesh has no hook for this kind of link: it is neither Ethernet nor a point-to-point \
                       device of layer 3 (WireGuard, tun, PPP)";

/// What has to be done after a message, in ascending order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Effect {
    /// Nothing: the message is irrelevant, or changes nothing.
    None,
    /// Compute the state again.
    State,
    /// Routes to peers may have changed: look them up again.
    Peers,
    /// Any route may have changed. The kernel reports only few of the routes that it drops, so read them all
    /// again.
    Routes,
    /// Messages were lost: read everything again.
    Overrun,
}

/// One hop towards a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Path {
    /// Interface the route leaves by.
    pub(super) interface: u32,
    /// The peer itself, or the gateway; `None` for a gateway with an IPv6 address: the kernel resolves it.
    pub(super) next: Option<Ipv4Addr>,
    /// The route's own MTU: set by an administrator, or learned by the kernel from a router on the way.
    pub(super) mtu: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Link {
    name: String,
    header: Header,
    mtu: u32,
    kind: Kind,
    /// The bridge, bond or the like that it is a port of.
    controller: Option<u32>,
    /// The link whose frames with its tag are its own, if it is a VLAN.
    vlan_of: Option<u32>,
}

/// What is before the IP header of a link's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Header {
    /// An Ethernet header; the link's own address.
    Ethernet(MacAddress),
    /// Nothing: a layer 3 device with one far end, which needs no neighbours.
    None,
    /// Something that the mesh does not know.
    Other,
}

/// The kinds of links that differ for the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Loopback,
    Bridge,
    Veth,
    Vlan,
    Other,
}

/// Everything reported so far, by subject.
#[derive(Debug, Default)]
pub(super) struct Facts {
    links: BTreeMap<u32, Link>,
    /// Interface, address and prefix length: an address may exist with two lengths.
    addresses: BTreeSet<(u32, Ipv4Addr, u8)>,
    ipv6_addresses: Ipv6Addresses,
    /// Usable neighbours only.
    neighbours: BTreeMap<(u32, Ipv4Addr), MacAddress>,
    pub(super) default_interfaces: DefaultInterfaces,
    pub(super) paths: BTreeMap<Ipv4Addr, Path>,
    /// All interfaces of routes to peers: of a multipath route a path has one, and peers send by any.
    pub(super) equal_interfaces: BTreeSet<u32>,
}

impl Facts {
    /// Records what a multicast message reports.
    pub(super) fn absorb(
        &mut self,
        message: NetlinkMessage<RouteNetlinkMessage>,
        peers: &BTreeSet<Ipv4Addr>,
    ) -> Effect {
        let message = match message.payload {
            NetlinkPayload::InnerMessage(message) => message,
            NetlinkPayload::Overrun(_) => return Effect::Overrun,
            _ => return Effect::None,
        };
        match message {
            RouteNetlinkMessage::NewLink(link) => self.add_link(&link),
            RouteNetlinkMessage::DelLink(link) => self.remove_link(&link),
            RouteNetlinkMessage::NewAddress(address) => self.add_address(&address),
            RouteNetlinkMessage::DelAddress(address) => self.remove_address(&address),
            RouteNetlinkMessage::NewNeighbour(neighbour) => self.add_neighbour(&neighbour),
            RouteNetlinkMessage::DelNeighbour(neighbour) => self.remove_neighbour(&neighbour),
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
                route_effect(&route, peers)
            }
            RouteNetlinkMessage::NewRule(rule) | RouteNetlinkMessage::DelRule(rule)
                if rule.header.family == AddressFamily::Inet =>
            {
                Effect::Peers
            }
            _ => Effect::None,
        }
    }

    pub(super) fn add_link(&mut self, message: &LinkMessage) -> Effect {
        // Bridges report their ports under a family of their own, also when they leave.
        if message.header.interface_family != AddressFamily::Unspec {
            return Effect::None;
        }
        let link_type = message.header.link_layer_type;
        let mut link = Link {
            name: String::new(),
            header: if message.header.flags.contains(LinkFlags::Pointopoint) && is_layer3(link_type) {
                Header::None
            } else {
                Header::Other
            },
            mtu: 0,
            kind: match link_type {
                LinkLayerType::Loopback => Kind::Loopback,
                _ => Kind::Other,
            },
            controller: None,
            vlan_of: None,
        };
        let mut below = None;
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Address(bytes) if link_type == LinkLayerType::Ether => {
                    link.header = mac(bytes).map_or(Header::Other, Header::Ethernet);
                }
                LinkAttribute::Controller(index) => link.controller = Some(*index),
                LinkAttribute::Link(index) => below = Some(*index),
                LinkAttribute::LinkInfo(infos) => link.kind = kind(infos).unwrap_or(link.kind),
                _ => {}
            }
        }
        if link.name.is_empty() {
            // About something else than the link itself: events of wireless cards (`wireless_send_event`).
            return Effect::None;
        }
        if link.kind == Kind::Vlan {
            link.vlan_of = below;
        }
        // Even if nothing changes here, going up or down moves routes.
        self.links.insert(message.header.index, link);
        Effect::Routes
    }

    fn remove_link(&mut self, message: &LinkMessage) -> Effect {
        if message.header.interface_family != AddressFamily::Unspec {
            return Effect::None;
        }
        let index = message.header.index;
        self.links.remove(&index);
        self.addresses.retain(|(interface, ..)| *interface != index);
        self.ipv6_addresses.remove_interface(index);
        self.neighbours.retain(|(interface, _), _| *interface != index);
        Effect::Routes
    }

    pub(super) fn add_address(&mut self, message: &AddressMessage) -> Effect {
        if message.header.family == AddressFamily::Inet6 {
            return state_if(self.ipv6_addresses.add(message));
        }
        match address(message) {
            Some(key) if self.addresses.insert(key) => Effect::Routes,
            _ => Effect::None,
        }
    }

    fn remove_address(&mut self, message: &AddressMessage) -> Effect {
        if message.header.family == AddressFamily::Inet6 {
            return state_if(self.ipv6_addresses.remove(message));
        }
        match address(message) {
            Some(key) if self.addresses.remove(&key) => Effect::Routes,
            _ => Effect::None,
        }
    }

    pub(super) fn add_neighbour(&mut self, message: &NeighbourMessage) -> Effect {
        let Some(key) = neighbour(message) else {
            return Effect::None;
        };
        let usable = match message.header.state {
            NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::Permanent => message.attributes.iter().find_map(|attribute| match attribute {
                NeighbourAttribute::LinkLayerAddress(bytes) => mac(bytes),
                _ => None,
            }),
            _ => None,
        };
        let before = match usable {
            Some(mac) => self.neighbours.insert(key, mac),
            None => self.neighbours.remove(&key),
        };
        self.neighbour_effect(key, before != usable)
    }

    fn remove_neighbour(&mut self, message: &NeighbourMessage) -> Effect {
        match neighbour(message) {
            Some(key) => {
                let removed = self.neighbours.remove(&key).is_some();
                self.neighbour_effect(key, removed)
            }
            None => Effect::None,
        }
    }

    fn neighbour_effect(&self, (interface, next): (u32, Ipv4Addr), changed: bool) -> Effect {
        let leads_to_peer = |path: &Path| (path.interface, path.next) == (interface, Some(next));
        state_if(changed && self.paths.values().any(leads_to_peer))
    }

    /// The neighbours that lead to peers and that the kernel should resolve; with `verify`, also those that
    /// are known.
    pub(super) fn neighbours_wanted(&self, verify: bool) -> BTreeSet<(u32, Ipv4Addr)> {
        self.paths
            .values()
            .filter_map(|path| Some((path.interface, path.next?)))
            .filter(|(interface, _)| self.mac_of(*interface).is_some())
            .filter(|key| verify || !self.neighbours.contains_key(key))
            .collect()
    }

    /// Whether an interface of this node has this address.
    pub(super) fn has_address(&self, address: Ipv4Addr) -> bool {
        self.addresses.iter().any(|(_, own, _)| *own == address)
    }

    fn mac_of(&self, interface: u32) -> Option<MacAddress> {
        match self.links.get(&interface)?.header {
            Header::Ethernet(mac) => Some(mac),
            Header::None | Header::Other => None,
        }
    }

    /// The network as the rest of the agent sees it.
    pub(super) fn state(&self, options: &NetworkOptions, interest: &Interest) -> NetworkState {
        let mut state = NetworkState {
            interest: interest.clone(),
            ..NetworkState::default()
        };
        let is_ours = |interface: u32| {
            let link = self.links.get(&interface);
            link.is_some_and(|link| mesh0::is_ours(&link.name))
        };
        state.ipv6_addresses = self.ipv6_addresses.of(|interface| !is_ours(interface));
        for (interface, address, _) in &self.addresses {
            if !is_ours(*interface) && !address.is_loopback() && *address != options.service_address {
                state.addresses.insert(*address);
            }
        }
        let uplinks = self.uplink_indexes(options, interest);
        for (index, link) in &self.links {
            if uplinks.contains(index) {
                let usable = match link.header {
                    Header::Ethernet(mac) => Some(Some(mac)),
                    Header::None => Some(None),
                    Header::Other => None,
                };
                match usable {
                    Some(mac) => {
                        let interface = HostInterface {
                            index: *index,
                            mac,
                            mtu: link.mtu,
                            has_vlans: self.has_vlans(*index),
                        };
                        state.uplinks.insert(link.name.clone(), interface);
                    }
                    None => {
                        let reason = NO_HOOK.to_owned();
                        state.unusable_uplinks.insert(link.name.clone(), reason);
                    }
                }
            }
            if self.leads_to_container(link, &uplinks) {
                state.container_interfaces.insert(*index);
            } else {
                state.macs.extend(self.mac_of(*index));
            }
            if link.kind == Kind::Bridge && !uplinks.contains(index) {
                let addresses = self.addresses.iter();
                let own = addresses.filter(|(interface, ..)| interface == index);
                let subnets = own.map(|(_, address, prefix)| Subnet::of(*address, *prefix));
                state.bridges.insert(link.name.clone(), subnets.collect());
            }
        }
        for (peer, path) in &self.paths {
            // A peer that has an address of this node is a mistake in the cluster, not one of the network.
            if let Some(link) = self.links.get(&path.interface).filter(|link| link.is_outside()) {
                state.peer_interfaces.insert(*peer, link.name.clone());
            }
            if let Some(next_hop) = self.next_hop(*path) {
                state.next_hops.insert(*peer, next_hop);
            }
        }
        state
    }

    fn has_vlans(&self, index: u32) -> bool {
        self.links.values().any(|link| link.vlan_of == Some(index))
    }

    /// The addresses of frames by a path, if that is resolved or needs none.
    fn next_hop(&self, path: Path) -> Option<NextHop> {
        let link = self.links.get(&path.interface)?;
        let mtu = Some(path.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu)));
        match link.header {
            Header::Ethernet(source_mac) => Some(NextHop {
                interface: path.interface,
                source_mac,
                destination_mac: *self.neighbours.get(&(path.interface, path.next?))?,
                mtu,
            }),
            Header::None => Some(NextHop::layer3(path.interface, mtu)),
            Header::Other => None,
        }
    }

    /// Whatever clients or peers can send by: what carries a default route, the node's addresses in the
    /// cluster or a route to a peer, and what the options name.
    fn uplink_indexes(&self, options: &NetworkOptions, interest: &Interest) -> BTreeSet<u32> {
        let in_cluster = [interest.node_address, interest.advertised_address];
        let with_node_address = self
            .addresses
            .iter()
            .filter(|(_, address, _)| in_cluster.contains(&Some(*address)))
            .map(|(interface, ..)| *interface);
        let is_bridge = |index| {
            self.links
                .get(&index)
                .is_some_and(|link| link.kind == Kind::Bridge)
        };
        let found = (self.default_interfaces.uplinks(is_bridge))
            .chain(with_node_address)
            .chain(self.paths.values().map(|path| path.interface))
            .chain(self.equal_interfaces.iter().copied());
        let named = self
            .links
            .iter()
            .filter(|(_, link)| options.uplinks.contains(&link.name))
            .map(|(index, _)| *index);
        found
            .chain(named)
            .filter(|index| self.links.get(index).is_some_and(Link::is_outside))
            .collect()
    }

    /// Whether a link is the host end of a container's veth. Bridges of containers can have any name; what
    /// tells them apart is that their ports are veths, and that no traffic from outside passes them.
    fn leads_to_container(&self, link: &Link, uplinks: &BTreeSet<u32>) -> bool {
        let is_containers_bridge = |index: u32| {
            self.links
                .get(&index)
                .is_some_and(|bridge| bridge.kind == Kind::Bridge && !uplinks.contains(&index))
        };
        link.kind == Kind::Veth && link.controller.is_some_and(is_containers_bridge)
    }
}

impl Link {
    /// Whether packets from outside the node can arrive by it.
    fn is_outside(&self) -> bool {
        self.kind != Kind::Loopback && !mesh0::is_ours(&self.name)
    }
}

/// The effect of what changes the state, or nothing.
fn state_if(changed: bool) -> Effect {
    if changed { Effect::State } else { Effect::None }
}

/// What a link's details say of its kind.
fn kind(infos: &[LinkInfo]) -> Option<Kind> {
    infos.iter().find_map(|info| match info {
        LinkInfo::Kind(InfoKind::Bridge) => Some(Kind::Bridge),
        LinkInfo::Kind(InfoKind::Veth) => Some(Kind::Veth),
        LinkInfo::Kind(InfoKind::Vlan) => Some(Kind::Vlan),
        _ => None,
    })
}

/// Whether the kernel's `bpf_redirect` sends packets by links of a type without their MAC header
/// (`dev_is_mac_header_xmit`): what such a link receives has none either.
fn is_layer3(link_type: LinkLayerType) -> bool {
    matches!(
        link_type,
        LinkLayerType::None
            | LinkLayerType::Ppp
            | LinkLayerType::Rawip
            | LinkLayerType::Tunnel
            | LinkLayerType::Tunnel6
            | LinkLayerType::Sit
            | LinkLayerType::Ipgre
    )
}

/// What a route's change requires. A routing daemon changes thousands that matter to nothing here.
fn route_effect(route: &RouteMessage, peers: &BTreeSet<Ipv4Addr>) -> Effect {
    // What is in the local table follows from addresses, which are reported by themselves.
    if route.header.table == libc::RT_TABLE_LOCAL {
        return Effect::None;
    }
    let length = u32::from(route.header.destination_prefix_length);
    if length == 0 {
        return Effect::Routes;
    }
    if route.header.address_family != AddressFamily::Inet {
        return Effect::None;
    }
    let first = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(address.to_bits()),
        _ => None,
    });
    let leads_to_peer = first.is_some_and(|first| {
        let last = first | u32::MAX.checked_shr(length).unwrap_or(0);
        let covered = Ipv4Addr::from_bits(first)..=Ipv4Addr::from_bits(last);
        peers.range(covered).next().is_some()
    });
    if leads_to_peer {
        Effect::Peers
    } else {
        Effect::None
    }
}

pub(super) fn ipv4(address: &RouteAddress) -> Option<Ipv4Addr> {
    match address {
        RouteAddress::Inet(address) => Some(*address),
        _ => None,
    }
}

fn address(message: &AddressMessage) -> Option<(u32, Ipv4Addr, u8)> {
    let mut found = None;
    for attribute in &message.attributes {
        match attribute {
            // The node's own end. On links without a peer address both attributes are equal.
            AddressAttribute::Local(IpAddr::V4(address)) => found = Some(*address),
            AddressAttribute::Address(IpAddr::V4(address)) => found = found.or(Some(*address)),
            _ => {}
        }
    }
    Some((message.header.index, found?, message.header.prefix_len))
}

fn neighbour(message: &NeighbourMessage) -> Option<(u32, Ipv4Addr)> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => {
            Some((message.header.ifindex, *address))
        }
        _ => None,
    })
}

fn mac(bytes: &[u8]) -> Option<MacAddress> {
    bytes.try_into().ok().map(MacAddress)
}

#[cfg(test)]
mod tests;
