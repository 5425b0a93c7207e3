//! What a node finds on itself: addresses, interfaces, containers, and the next hop to each peer.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{
    Drained, FailedChecks, Node, NodeDatapath, NodeId, NodePolicy, PortPolicies, ReservedPort, Subnet, TaskId,
};

/// Everything on this node that determines its data path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Local {
    /// This node's id in the cluster; empty until Docker has reported it.
    pub node: NodeId,
    /// This node's data path; it can only send to nodes with the same kind.
    pub datapath: NodeDatapath,
    /// Whether its data path is about to be removed: open flows continue, new ones are left to whatever
    /// answers afterwards.
    pub leaving: bool,
    /// Every IPv4 address of the host's network namespace except 127.0.0.0/8.
    pub addresses: BTreeSet<Ipv4Addr>,
    /// The IPv6 addresses of that namespace at which services are answered; empty where IPv6 is not served.
    #[serde(default)]
    pub ipv6_addresses: BTreeSet<Ipv6Addr>,
    /// Running containers of Swarm tasks, by task.
    pub containers: BTreeMap<TaskId, Container>,
    /// The networks of those containers, by the host ends of their veths.
    #[serde(default)]
    pub attached: BTreeMap<u32, Attached>,
    /// The MAC addresses of the host's interfaces, those of containers' veths excepted.
    #[serde(default)]
    pub macs: BTreeSet<MacAddress>,
    /// Interfaces that traffic from outside arrives on, by name.
    pub uplinks: BTreeMap<String, HostInterface>,
    /// Ports of containers' bridges on this node: the host ends of containers' veths. Packets from containers
    /// to a published port of their own node are caught there: on the bridge itself, netfilter, which
    /// Docker enables for bridged packets, would be first.
    pub container_interfaces: BTreeSet<u32>,
    /// The device that carries local processes' connections to the service address; `None` until it exists.
    pub mesh0: Option<HostInterface>,
    /// The next hop to each peer node's address, resolved from routes and neighbours.
    pub next_hops: BTreeMap<Ipv4Addr, NextHop>,
    /// The peers to and from which packets would pass an interface without a hook: they are sent nothing.
    pub without_hook: BTreeMap<Ipv4Addr, NoHook>,
    /// The largest packets that were found to reach the peers, bytes from the outer IP header on.
    #[serde(default)]
    pub path_mtus: BTreeMap<Ipv4Addr, u16>,
    /// Addresses of peers whose data path has answered this node's probes since its agent started: one of
    /// this node's kind serves there, whether or not its agent has announced it.
    #[serde(default)]
    pub answered: BTreeSet<Ipv4Addr>,
    /// Those of them that no longer do: they get no new flows if possible.
    #[serde(default)]
    pub silent: BTreeSet<Ipv4Addr>,
    /// Those of the silent ones that have been so for so long that flows to them are given up.
    #[serde(default)]
    pub lost: BTreeSet<Ipv4Addr>,
    /// The replicas that an operator drains on this node.
    #[serde(default)]
    pub drained: Drained,
    /// The replicas on this node that fail the check that their service asks for.
    #[serde(default)]
    pub failed: FailedChecks,
    /// The shares of new replicas, of ten parts, where their services let them start slowly.
    #[serde(default)]
    pub starting: BTreeMap<TaskId, u8>,
    /// The tasks that have drained for as long as they may: what is open there is reset.
    #[serde(default)]
    pub drained_out: BTreeSet<TaskId>,
    /// The ports that are never frontends.
    #[serde(default)]
    pub reserved: Vec<ReservedPort>,
    /// What the host's own firewall means for published ports.
    #[serde(skip)]
    pub host_firewall: Arc<PortPolicies>,
    /// The node's own policy on who may come in to published ports.
    #[serde(skip)]
    pub policy: Arc<NodePolicy>,
    /// How replies of remote backends travel.
    pub return_mode: ReturnMode,
}

impl Local {
    /// Treats every peer as one that has never been probed.
    pub fn forget_probes(&mut self) {
        self.path_mtus.clear();
        self.answered.clear();
        self.silent.clear();
        self.lost.clear();
    }

    /// The data path that a peer is taken to have: what it announced or, while this node knows of no
    /// announcement, what its answers to probes prove. A data path lives on in the kernel when its agent is
    /// dead, and then no one announces it to a manager that has restarted.
    #[must_use]
    pub fn datapath_of(&self, peer: &Node) -> NodeDatapath {
        match peer.datapath {
            // Each kind has probes of its own.
            NodeDatapath::Unknown if self.answered.contains(&peer.address) => self.datapath,
            announced => announced,
        }
    }
}

/// An interface on which the mesh sees no packets, though it leads to a peer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NoHook {
    /// Its name.
    pub interface: String,
    /// Why there is no hook, e.g. the kernel's error.
    pub reason: String,
}

/// A network interface of the host's namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostInterface {
    /// Kernel interface index.
    pub index: u32,
    /// Its own MAC address; `None` on a layer 3 device (WireGuard, tun, PPP).
    pub mac: Option<MacAddress>,
    /// MTU in bytes, L3.
    pub mtu: u32,
    /// Whether VLAN devices are on it, to which a part of its frames belongs.
    #[serde(default)]
    pub has_vlans: bool,
}

/// How frames reach a peer node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextHop {
    /// Interface the route leaves by.
    pub interface: u32,
    /// That interface's MAC address; zeros on a layer 3 device.
    pub source_mac: MacAddress,
    /// MAC address of the peer, or of the router on the way; zeros on a layer 3 device.
    pub destination_mac: MacAddress,
    /// Largest packet that reaches the peer, in bytes from its (outer) IP header on; `None` while that is
    /// unknown.
    #[serde(default)]
    pub mtu: Option<u32>,
}

impl NextHop {
    /// The next hop by a layer 3 device, which has no MAC addresses.
    #[must_use]
    pub fn layer3(interface: u32, mtu: Option<u32>) -> Self {
        Self {
            interface,
            source_mac: MacAddress::default(),
            destination_mac: MacAddress::default(),
            mtu,
        }
    }
}

impl fmt::Display for NextHop {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            interface,
            source_mac,
            destination_mac,
            mtu,
        } = self;
        if *self == Self::layer3(*interface, *mtu) {
            write!(formatter, "interface {interface} without MAC addresses")?;
        } else {
            write!(
                formatter,
                "interface {interface} from {source_mac} to {destination_mac}"
            )?;
        }
        match mtu {
            Some(mtu) => write!(formatter, " mtu {mtu}"),
            None => Ok(()),
        }
    }
}

/// How to reach a running container of this node without the overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// The task's address on the ingress network, as the managers know it; for an orchestrated task, the
    /// address that identifies it in the mesh.
    pub ingress_address: Ipv4Addr,
    /// Its address on the interface that leads to the host (docker_gwbridge).
    pub address: Ipv4Addr,
    /// MAC address of that interface, inside the container.
    pub mac: MacAddress,
    /// Interface index of the host end of that veth.
    pub host_interface: u32,
    /// Source MAC address of frames to the container: that of its gateway, the bridge.
    pub gateway_mac: MacAddress,
}

/// The networks that a container answers by itself, rather than by way of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// The host, as the container's default route names it.
    pub gateway: Ipv4Addr,
    /// The networks: those it is attached to, and what else it has routes for.
    pub subnets: BTreeSet<Subnet>,
}

/// How replies of remote backends reach the client, for the whole node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ReturnMode {
    /// Back through the entry node, encapsulated: works on every network.
    #[default]
    Tunnel,
    /// From the backend's node directly to the client (direct server return).
    Dsr,
}

/// A 48-bit IEEE 802 address, in transmission order.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl fmt::Display for MacAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(formatter, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// The text was not six colon-separated pairs of hexadecimal digits.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' is not a MAC address (expected aa:bb:cc:dd:ee:ff)")]
pub struct MacAddressError(String);

impl FromStr for MacAddress {
    type Err = MacAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || MacAddressError(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts
                .next()
                .filter(|part| part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit()))
                .ok_or_else(error)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| error())?;
        }
        if parts.next().is_some() {
            return Err(error());
        }
        Ok(Self(bytes))
    }
}

impl Serialize for MacAddress {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddress {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_address_survives_its_own_text() {
        let mac = MacAddress([0x02, 0x42, 0xac, 0x12, 0x00, 0xff]);
        assert_eq!(mac.to_string().parse::<MacAddress>().unwrap(), mac);
    }

    #[test]
    fn other_texts_are_no_mac_address() {
        for text in [
            "",
            "02:42:ac:12:00",
            "02:42:ac:12:00:ff:00",
            "02:42:ac:12:00:+f",
            "2:42:ac:12:00:ff",
        ] {
            assert!(text.parse::<MacAddress>().is_err(), "{text}");
        }
    }
}
