//! The forwarding entries, neighbours, routes and the rule that send packets into the tunnel and out of it:
//! plain values, with the messages that add and remove them. Pure.

use std::{collections::BTreeSet, fmt, net::Ipv4Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
        RouteType,
    },
    rule::{RuleAction, RuleAttribute, RuleMessage},
};

use super::TunnelPlan;
use crate::{
    datapath::{
        ipvs::{
            address::{MESH_NETWORKS, MESH_PREFIX_BITS, peer_mac},
            tunnel::DEVICE,
        },
        netlink::Message,
    },
    model::MacAddress,
};

/// The protocol number of the mesh's routes, neighbours and rule: who made them.
pub const PROTOCOL: u8 = 77;
/// The routing table for replies of this node's replicas to peers: "MSH".
pub const TABLE: u32 = 0x004d_5348;
/// The priority of the rule for that table: before any that others are likely to have.
pub const RULE_PRIORITY: u32 = 77;

pub(super) const TABLE_MAIN: u32 = 254;
pub(super) const TABLE_LOCAL: u32 = 255;
const LOOPBACK: &str = "lo";

/// The interfaces that entries belong to, by their kernel indexes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Interfaces {
    pub(super) bridge: u32,
    pub(super) device: u32,
}

/// One entry of one of the kernel's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Entry {
    /// In the tunnel, frames for this MAC address go to this node.
    Forward {
        device: u32,
        mac: MacAddress,
        peer: Ipv4Addr,
    },
    /// On the bridge, frames for this MAC address go into the tunnel.
    Port { device: u32, mac: MacAddress },
    /// Packets for this peer, sent to the bridge, have this MAC address.
    Neighbour {
        bridge: u32,
        peer: Ipv4Addr,
        mac: MacAddress,
    },
    /// This node's replica answers at this mesh address.
    Local { bridge: u32, address: Ipv4Addr },
    /// A peer's replica answers at this mesh address.
    Remote {
        bridge: u32,
        address: Ipv4Addr,
        peer: Ipv4Addr,
    },
    /// The route back to a peer, for packets from a mesh address.
    Back { bridge: u32, peer: Ipv4Addr },
    /// Mesh addresses of this network that nothing has are unreachable, rather than sent out of an uplink.
    Sink { network: u8 },
    /// Packets that this node sends from a mesh address of this network use the routes back.
    ///
    /// The rule applies to packets of which the node itself is the sender: its replicas' replies are, once
    /// IPVS has written the mesh address into them. A strict reverse path filter makes the same look-up for
    /// what peers send, so it accepts those packets.
    Rule { network: u8 },
}

/// What identifies an entry in its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum EntryKey {
    Forward(u32, MacAddress),
    Port(u32, MacAddress),
    Neighbour(u32, Ipv4Addr),
    Route(u32, Ipv4Addr),
    Rule(u8),
}

/// Every entry of a plan.
pub(super) fn wanted(plan: &TunnelPlan, interfaces: Interfaces) -> BTreeSet<Entry> {
    let Interfaces { bridge, device } = interfaces;
    let peers = plan.peers.iter().flat_map(|peer| {
        let (peer, mac) = (*peer, peer_mac(*peer));
        [
            Entry::Forward { device, mac, peer },
            Entry::Port { device, mac },
            Entry::Neighbour { bridge, peer, mac },
            Entry::Back { bridge, peer },
        ]
    });
    let local = plan.local.iter().map(|address| Entry::Local {
        bridge,
        address: *address,
    });
    let remote = plan
        .remote
        .iter()
        .filter(|(_, peer)| plan.peers.contains(peer))
        .map(|(address, peer)| Entry::Remote {
            bridge,
            address: *address,
            peer: *peer,
        });
    peers
        .chain(local)
        .chain(remote)
        .chain(MESH_NETWORKS.map(|network| Entry::Sink { network }))
        .chain(MESH_NETWORKS.map(|network| Entry::Rule { network }))
        .collect()
}

impl Entry {
    /// The message that adds the entry, replacing one with the same key.
    pub(super) fn add(&self) -> Message {
        let flags = match self {
            Self::Rule { .. } => NLM_F_CREATE | NLM_F_EXCL,
            Self::Forward { .. }
            | Self::Port { .. }
            | Self::Neighbour { .. }
            | Self::Local { .. }
            | Self::Remote { .. }
            | Self::Back { .. }
            | Self::Sink { .. } => NLM_F_CREATE | NLM_F_REPLACE,
        };
        Message::encode(
            &self.message(
                RouteNetlinkMessage::NewNeighbour,
                RouteNetlinkMessage::NewRoute,
                RouteNetlinkMessage::NewRule,
            ),
            flags,
        )
    }

    /// The message that removes it.
    pub(super) fn remove(&self) -> Message {
        Message::encode(
            &self.message(
                RouteNetlinkMessage::DelNeighbour,
                RouteNetlinkMessage::DelRoute,
                RouteNetlinkMessage::DelRule,
            ),
            0,
        )
    }

    /// The key of the entry.
    pub(super) fn key(&self) -> EntryKey {
        match *self {
            Self::Forward { device, mac, .. } => EntryKey::Forward(device, mac),
            Self::Port { device, mac } => EntryKey::Port(device, mac),
            Self::Neighbour { bridge, peer, .. } => EntryKey::Neighbour(bridge, peer),
            Self::Local { address, .. } => EntryKey::Route(TABLE_LOCAL, address),
            Self::Remote { address, .. } => EntryKey::Route(TABLE_MAIN, address),
            Self::Back { peer, .. } => EntryKey::Route(TABLE, peer),
            Self::Sink { network } => EntryKey::Route(TABLE_MAIN, prefix(network)),
            Self::Rule { network } => EntryKey::Rule(network),
        }
    }

    fn message(
        &self,
        neighbour: fn(NeighbourMessage) -> RouteNetlinkMessage,
        route: fn(RouteMessage) -> RouteNetlinkMessage,
        rule: fn(RuleMessage) -> RouteNetlinkMessage,
    ) -> RouteNetlinkMessage {
        match *self {
            Self::Forward { device, mac, peer } => {
                let mut message = hardware(device, mac, NeighbourFlags::Own);
                message
                    .attributes
                    .push(NeighbourAttribute::Destination(NeighbourAddress::Inet(peer)));
                neighbour(message)
            }
            Self::Port { device, mac } => neighbour(hardware(device, mac, NeighbourFlags::Controller)),
            Self::Neighbour { bridge, peer, mac } => {
                let mut message = NeighbourMessage::default();
                message.header.family = AddressFamily::Inet;
                message.header.ifindex = bridge;
                message.header.state = NeighbourState::Permanent;
                message.attributes = vec![
                    NeighbourAttribute::Destination(NeighbourAddress::Inet(peer)),
                    NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
                    NeighbourAttribute::Protocol(protocol()),
                ];
                neighbour(message)
            }
            Self::Local { bridge, address } => {
                let mut message = route_to(address, bridge, TABLE_LOCAL, None);
                message.header.kind = RouteType::Local;
                message.header.scope = RouteScope::Host;
                route(message)
            }
            Self::Remote {
                bridge,
                address,
                peer,
            } => route(route_to(address, bridge, TABLE_MAIN, Some(peer))),
            Self::Back { bridge, peer } => route(route_to(peer, bridge, TABLE, Some(peer))),
            Self::Sink { network } => {
                let mut message = RouteMessage::default();
                message.header = RouteHeader {
                    destination_prefix_length: MESH_PREFIX_BITS,
                    kind: RouteType::Unreachable,
                    ..route_header(TABLE_MAIN)
                };
                message
                    .attributes
                    .push(RouteAttribute::Destination(RouteAddress::Inet(prefix(network))));
                route(message)
            }
            Self::Rule { network } => rule(rule_for(network)),
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forward { mac, peer, .. } => {
                write!(formatter, "the forwarding entry of {DEVICE} for {mac} at {peer}")
            }
            Self::Port { mac, .. } => {
                write!(formatter, "the bridge's forwarding entry for {mac} on {DEVICE}")
            }
            Self::Neighbour { peer, mac, .. } => {
                write!(formatter, "the neighbour {peer} at {mac} on the bridge")
            }
            Self::Local { address, .. } => write!(formatter, "the local route to {address}"),
            Self::Remote { address, peer, .. } => write!(formatter, "the route to {address} via {peer}"),
            Self::Back { peer, .. } => write!(formatter, "the route to {peer} in table {TABLE}"),
            Self::Sink { network } => write!(formatter, "the unreachable route to {}", prefix(*network)),
            Self::Rule { network } => {
                write!(
                    formatter,
                    "the routing rule from {} to table {TABLE}",
                    prefix(*network)
                )
            }
        }
    }
}

/// A forwarding entry that does not age, of the tunnel itself or of the bridge that the device is a port of.
pub(super) fn hardware(device: u32, mac: MacAddress, owner: NeighbourFlags) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = device;
    message.header.state = lasting(owner);
    message.header.flags = owner;
    message
        .attributes
        .push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    message
}

/// The state of an entry that does not age. On a bridge port, `Permanent` would mean an address of the bridge
/// itself.
pub(super) fn lasting(owner: NeighbourFlags) -> NeighbourState {
    match owner.contains(NeighbourFlags::Own) {
        true => NeighbourState::Permanent,
        false => NeighbourState::Noarp,
    }
}

pub(super) fn route_to(
    address: Ipv4Addr,
    interface: u32,
    table: u32,
    gateway: Option<Ipv4Addr>,
) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        destination_prefix_length: 32,
        kind: RouteType::Unicast,
        ..route_header(table)
    };
    message.attributes = vec![
        RouteAttribute::Table(table),
        RouteAttribute::Destination(RouteAddress::Inet(address)),
        RouteAttribute::Oif(interface),
    ];
    if let Some(gateway) = gateway {
        // By its address the peer is not on the bridge's network: `Onlink` makes the kernel accept it as a
        // gateway.
        message.header.flags = RouteFlags::Onlink;
        message
            .attributes
            .push(RouteAttribute::Gateway(RouteAddress::Inet(gateway)));
    }
    message
}

fn route_header(table: u32) -> RouteHeader {
    RouteHeader {
        address_family: AddressFamily::Inet,
        table: u8::try_from(table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC),
        protocol: protocol(),
        scope: RouteScope::Universe,
        ..RouteHeader::default()
    }
}

/// A network of mesh addresses.
pub(super) fn prefix(network: u8) -> Ipv4Addr {
    Ipv4Addr::new(network, 0, 0, 0)
}

fn rule_for(network: u8) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.src_len = MESH_PREFIX_BITS;
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Source(prefix(network).into()),
        RuleAttribute::Iifname(LOOPBACK.to_owned()),
        RuleAttribute::Priority(RULE_PRIORITY),
        RuleAttribute::Table(TABLE),
        RuleAttribute::Protocol(protocol()),
    ];
    message
}

pub(super) fn protocol() -> RouteProtocol {
    RouteProtocol::from(PROTOCOL)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) const INTERFACES: Interfaces = Interfaces { bridge: 7, device: 8 };

    pub(in super::super) fn plan() -> TunnelPlan {
        TunnelPlan {
            bridge: "docker_gwbridge".to_owned(),
            vni: 77,
            port: 6081,
            node_address: Ipv4Addr::new(192, 0, 2, 1),
            peers: [Ipv4Addr::new(192, 0, 2, 2)].into(),
            remote: [
                (Ipv4Addr::new(250, 0, 0, 5), Ipv4Addr::new(192, 0, 2, 2)),
                (Ipv4Addr::new(250, 0, 0, 6), Ipv4Addr::new(192, 0, 2, 99)),
            ]
            .into(),
            local: [Ipv4Addr::new(250, 0, 0, 4)].into(),
        }
    }

    #[test]
    fn replicas_on_nodes_that_are_not_peers_get_no_route() {
        let remote: Vec<Entry> = wanted(&plan(), INTERFACES)
            .into_iter()
            .filter(|entry| matches!(entry, Entry::Remote { .. }))
            .collect();
        let expected = Entry::Remote {
            bridge: 7,
            address: Ipv4Addr::new(250, 0, 0, 5),
            peer: Ipv4Addr::new(192, 0, 2, 2),
        };
        assert_eq!(remote, [expected]);
    }
}
