//! How a lab's nodes are connected: networks, cards and addresses. Depends on nothing of the lab.

use serde::{Deserialize, Serialize};

/// How nodes are connected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Topology {
    /// One card, which has the only address and the default route.
    #[default]
    OneCard,
    /// Two cards: the default route is on the first, the cluster's address on the second.
    TwoCards,
    /// One card that is a port of a bridge, which has the address and the default route.
    Bridge,
    /// Two cards, each alone with a router: nodes and the client are no neighbours, and a node's answers to
    /// the client's first address leave by the other card.
    Routed,
    /// One card with addresses of two subnets, two of the first, and an address on the loopback device that
    /// the client is routed to.
    Multihomed,
    /// One card with the default route; the cluster's address is on a WireGuard device over it.
    Wireguard,
    /// One card, and a router between the nodes that carries less than the card does.
    Narrow,
    /// One card with a smaller MTU than containers have, at a router that reports what is too big for it.
    SmallMtu,
    /// One card, behind a router that translates addresses: the cluster knows a node by an address that is on
    /// none of its interfaces.
    Nat,
    /// One card with the default route; the cluster's address is on a VLAN device on it.
    Vlan,
    /// Two cards in a bond, of which one carries; the bond has the address and the default route.
    Bond,
}

/// A network of a lab.
#[derive(Debug)]
pub(super) struct Network {
    /// Its bridge at the wire.
    pub(super) bridge: &'static str,
    /// What is plugged into it on each node.
    pub(super) card: &'static str,
    second_byte: u8,
}

/// The network of the default routes: addresses of lab L are 10.99.L.0/24.
pub(super) const FIRST: Network = Network {
    bridge: "br0",
    card: "eth0",
    second_byte: 99,
};
/// The network of the cluster's addresses: 10.98.L.0/24.
pub(super) const SECOND: Network = Network {
    bridge: "br1",
    card: "eth1",
    second_byte: 98,
};

/// The network of the cluster's addresses in a VLAN of the first network's cables.
pub(super) const TAGGED: Network = Network {
    bridge: "br0.5",
    card: "eth0.5",
    second_byte: 98,
};

/// What a multihomed node has besides its address in the first network: another one there, one on the
/// loopback device, and one of another subnet, which is the cluster's.
const MORE: [Address; 3] = [
    Address {
        second_byte: 99,
        after: 100,
        device: "eth0",
        prefix: 24,
    },
    Address {
        second_byte: 96,
        after: 0,
        device: "lo",
        prefix: 32,
    },
    Address {
        second_byte: 97,
        after: 0,
        device: "eth0",
        prefix: 24,
    },
];

/// The second byte of the addresses on WireGuard devices.
const WIREGUARD: u8 = 97;

/// The second byte of the addresses that a router translates.
const TRANSLATED: u8 = 95;

/// The address that a router translates to a node's own.
pub(super) fn translated_address(subnet: u8, host: u8) -> String {
    format!("10.{TRANSLATED}.{subnet}.{host}")
}

/// A further address of a card.
#[derive(Debug)]
pub(super) struct Address {
    second_byte: u8,
    /// What is added to the host's number.
    after: u8,
    pub(super) device: &'static str,
    pub(super) prefix: u8,
}

impl Address {
    /// Whether it is the only one of its subnet, so that the client has one there, too.
    pub(super) fn is_of_a_subnet_of_its_own(&self) -> bool {
        self.prefix < 32 && self.after == 0
    }

    /// A node's.
    pub(super) fn of(&self, subnet: u8, host: u8) -> String {
        format!(
            "10.{}.{subnet}.{}",
            self.second_byte,
            host.saturating_add(self.after)
        )
    }
}

impl Topology {
    /// The network of the default routes first.
    pub(super) fn networks(self) -> &'static [Network] {
        match self {
            Self::OneCard
            | Self::Bridge
            | Self::Multihomed
            | Self::Wireguard
            | Self::Narrow
            | Self::SmallMtu
            | Self::Nat
            | Self::Bond => &[FIRST],
            Self::Vlan => &[FIRST, TAGGED],
            Self::TwoCards | Self::Routed => &[FIRST, SECOND],
        }
    }

    /// The cards of one space in a network, as many as have cables.
    pub(super) fn cards(self, space: &str, network: &Network) -> Vec<&'static str> {
        match self {
            Self::Bond if space != "client" => vec![network.card, "eth1"],
            _ if network.vlan().is_some() => Vec::new(),
            _ => vec![network.card],
        }
    }

    /// Whether the wire is a router with a cable to each card, and not a bridge.
    pub(super) fn is_routed(self) -> bool {
        matches!(self, Self::Routed | Self::Narrow | Self::SmallMtu)
    }

    /// A node's addresses besides those of its networks.
    pub(super) fn more(self) -> &'static [Address] {
        match self {
            Self::Multihomed => &MORE,
            Self::OneCard
            | Self::TwoCards
            | Self::Bridge
            | Self::Routed
            | Self::Wireguard
            | Self::Narrow
            | Self::SmallMtu
            | Self::Nat
            | Self::Vlan
            | Self::Bond => &[],
        }
    }

    /// All addresses of a node: the default route's first, the cluster's last.
    pub(super) fn addresses(self, subnet: u8, host: u8) -> Vec<String> {
        let networks = self.networks().iter();
        let more = self.more().iter();
        networks
            .map(|network| network.address(subnet, host))
            .chain(more.map(|address| address.of(subnet, host)))
            .chain(self.wireguard_address(subnet, host))
            .chain((self == Self::Nat).then(|| translated_address(subnet, host)))
            .collect()
    }

    /// The address of a node or client on its WireGuard device, where it has one.
    pub(super) fn wireguard_address(self, subnet: u8, host: u8) -> Option<String> {
        match self {
            Self::Wireguard => Some(format!("10.{WIREGUARD}.{subnet}.{host}")),
            Self::OneCard
            | Self::TwoCards
            | Self::Bridge
            | Self::Routed
            | Self::Multihomed
            | Self::Narrow
            | Self::SmallMtu
            | Self::Nat
            | Self::Vlan
            | Self::Bond => None,
        }
    }
}

impl Network {
    /// A node's or client's address.
    pub(super) fn address(&self, subnet: u8, host: u8) -> String {
        format!("10.{}.{subnet}.{host}", self.second_byte)
    }

    /// The name of the wire's end of its card.
    pub(super) fn port(&self, space: &str) -> String {
        port(space, self.card)
    }

    /// The IPv6 address of the same host.
    pub(super) fn ipv6_address(&self, subnet: u8, host: u8) -> String {
        format!("fd00:{:x}:{subnet:x}::{host:x}", self.second_byte)
    }

    /// The card below a VLAN, and its number.
    pub(super) fn vlan(&self) -> Option<(&'static str, &'static str)> {
        self.card.split_once('.')
    }
}

/// The name of the wire's end of a card.
pub(super) fn port(space: &str, card: &str) -> String {
    match card {
        "eth0" => space.to_owned(),
        card => format!("{space}-{card}"),
    }
}
