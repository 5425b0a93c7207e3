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
const SECOND: Network = Network {
    bridge: "br1",
    card: "eth1",
    second_byte: 98,
};

impl Topology {
    /// The network of the default routes first, the cluster's last.
    pub(super) fn networks(self) -> &'static [Network] {
        match self {
            Self::OneCard | Self::Bridge => &[FIRST],
            Self::TwoCards => &[FIRST, SECOND],
        }
    }

    /// All addresses of a node or client, in the networks' order.
    pub(super) fn addresses(self, subnet: u8, host: u8) -> Vec<String> {
        let networks = self.networks().iter();
        networks.map(|network| network.address(subnet, host)).collect()
    }
}

impl Network {
    /// A node's or client's address.
    pub(super) fn address(&self, subnet: u8, host: u8) -> String {
        format!("10.{}.{subnet}.{host}", self.second_byte)
    }

    /// The name of the wire's end of a card.
    pub(super) fn port(&self, space: &str) -> String {
        match self.card {
            "eth0" => space.to_owned(),
            card => format!("{space}-{card}"),
        }
    }
}
