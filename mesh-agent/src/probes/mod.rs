//! Which peers' data paths answer: probes that take the way of the mesh's packets, and that the peer's kernel
//! answers, whatever became of its agent. Between eBPF nodes they are Geneve packets, turned round by the
//! peer's program ([`mesh_ebpf::probe`]); between IPVS nodes they are ICMP echo requests through the tunnel.
//! Imports the packet path's types only.
//!
//! `liveness` and `path_mtu` decide, without clock or sockets; `prober` sends and receives by a `socket`.

mod liveness;
mod path_mtu;
mod prober;
mod socket;
mod wire;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::{Duration, SystemTime},
};

use crate::model::TunnelKey;

pub use self::prober::probe;

/// Whom to probe, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Targets {
    /// This node's address as its peers know it.
    pub node_address: Ipv4Addr,
    /// The peers' host names by their addresses.
    pub peers: BTreeMap<Ipv4Addr, String>,
    /// What carries the probes.
    pub medium: Medium,
}

/// What carries the probes, as it carries the mesh's packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Medium {
    /// Between eBPF nodes.
    Geneve(Geneve),
    /// The tunnel between IPVS nodes: the peers' addresses in it, by their own.
    Tunnel(BTreeMap<Ipv4Addr, Ipv4Addr>),
}

/// How the packets of eBPF nodes are encapsulated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Geneve {
    /// The network identifier of the cluster.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// The keys of those that take one, as the data path sends them.
    pub keys: BTreeMap<Ipv4Addr, TunnelKey>,
    /// The routes to those whose paths are measured.
    pub routes: BTreeMap<Ipv4Addr, Route>,
}

/// A route to a peer, as far as it matters for the size of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Index of the interface.
    pub interface: u32,
    /// What it carries at most, bytes.
    pub mtu: u16,
}

/// What the probes have found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProbeReport {
    /// Every peer that is probed.
    pub peers: BTreeMap<Ipv4Addr, PeerLiveness>,
    /// Why there are no probes although there are peers.
    pub trouble: Option<String>,
}

/// What the probes of one peer have found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerLiveness {
    /// `None` until it has answered for the first time since this agent started.
    pub answers: Option<bool>,
    /// Smoothed; `None` before the first answer.
    pub round_trip: Option<Duration>,
    /// The largest packet that reaches it, bytes from the outer IP header on; `None` while that is unknown.
    pub path_mtu: Option<u16>,
    /// When it fell silent, if it is.
    pub silent_since: Option<SystemTime>,
    /// Whether it answers some probes since then: packets get lost on the way, or it has been out of reach
    /// again and again, and is kept out of rotation for a while.
    pub answers_again: bool,
    /// Whether it has been silent for so long that connections to it are given up.
    pub lost: bool,
}

impl ProbeReport {
    /// The peers that have answered, whether or not they still do.
    #[must_use]
    pub fn answered(&self) -> BTreeSet<Ipv4Addr> {
        self.with(|peer| peer.answers.is_some())
    }

    /// The peers that no longer answer.
    #[must_use]
    pub fn silent(&self) -> BTreeSet<Ipv4Addr> {
        self.with(|peer| peer.answers == Some(false))
    }

    /// Those of them to which connections are given up.
    #[must_use]
    pub fn lost(&self) -> BTreeSet<Ipv4Addr> {
        self.with(|peer| peer.lost)
    }

    /// The largest packets that reach the peers, where that is known.
    #[must_use]
    pub fn path_mtus(&self) -> BTreeMap<Ipv4Addr, u16> {
        let peers = self.peers.iter();
        peers
            .filter_map(|(address, peer)| Some((*address, peer.path_mtu?)))
            .collect()
    }

    /// Whether none of several peers answers any more: then this node may be the one that is cut off.
    #[must_use]
    pub fn is_isolated(&self) -> bool {
        let known = self.peers.values().filter_map(|peer| peer.answers);
        known.clone().count() > 1 && known.clone().all(|answers| !answers)
    }

    fn with(&self, matches: impl Fn(&PeerLiveness) -> bool) -> BTreeSet<Ipv4Addr> {
        let peers = self.peers.iter().filter(|(_, peer)| matches(peer));
        peers.map(|(address, _)| *address).collect()
    }
}
