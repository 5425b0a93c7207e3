//! Backends, their load, and the way to the nodes they run on.

use crate::bytes::{Be16, Be32};

/// A backend's cluster-wide name, as Geneve packets carry it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(8))]
pub struct BackendKey {
    /// The task's address on the ingress network.
    pub address: Be32,
    /// Published port.
    pub port: Be16,
    /// IP protocol number.
    pub protocol: u16,
}

/// [`Backend::location`] of a container of this node.
pub const BACKEND_LOCAL: u16 = 1;
/// [`Backend::location`] of a container of another node.
pub const BACKEND_REMOTE: u16 = 2;

/// One backend. Written once per generation: a change is a new generation in another slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Backend {
    /// 0 while the slot is empty; otherwise different for each backend that occupies it.
    pub generation: u32,
    /// Index of its service.
    pub service: u32,
    /// Its cluster-wide name.
    pub key: BackendKey,
    /// Port inside the container.
    pub target_port: Be16,
    /// Fingerprint of the task's id.
    pub tag: Be16,
    /// `BACKEND_LOCAL` or `BACKEND_REMOTE`.
    pub location: u16,
    /// Zero.
    pub padding: u16,
    /// Local: address of the container on the bridge that leads to the host.
    pub address: Be32,
    /// Local: host end of its veth.
    pub interface: u32,
    /// Local: its MAC address on that bridge.
    pub mac: [u8; 6],
    /// Local: the bridge's MAC address.
    pub gateway_mac: [u8; 6],
    /// Remote: index of the node it runs on.
    pub peer: u32,
}

/// A backend's load, for services that choose by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Load {
    /// Open flows times [`Self::step`]: written by the agent, increased by the programs in between.
    pub value: u64,
    /// The load of one flow: the smaller, the more flows the backend gets.
    pub step: u64,
}

/// What is known of a backend that does not answer. Each field is written on its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Breaker {
    /// TCP flows opened since a flow of this node was last answered.
    pub unanswered: u64,
    /// When the first of those was opened, in the kernel's nanoseconds.
    pub since: u64,
    /// When a flow was last sent to it in spite of that.
    pub tried: u64,
}

/// Opens without an answer after which a backend is passed over.
pub const BREAKER_LIMIT: u64 = 3;

/// How to reach a peer node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct NextHop {
    /// The peer's address; zero while the slot is empty.
    pub address: Be32,
    /// Interface to send from; 0 while the next hop is not resolved.
    pub interface: u32,
    /// MAC address of that interface; zeros on a layer 3 device.
    pub source_mac: [u8; 6],
    /// MAC address of the peer, or of the router before it; zeros on a layer 3 device.
    pub destination_mac: [u8; 6],
    /// Largest packet, in bytes from its IP header on, that reaches the peer through the tunnel; 0 while that
    /// is unknown.
    pub inner_mtu: u16,
    /// Which of this node's [`super::Keys`] its packets carry, from 1; 0 for none, because it holds none.
    pub key: u16,
}

impl NextHop {
    /// Whether XDP can send to it: it is resolved, and its interface takes Ethernet frames.
    #[inline(always)]
    pub fn takes_frames(&self) -> bool {
        self.interface != 0 && self.destination_mac != [0; 6]
    }
}

const _: () = assert!(size_of::<BackendKey>() == 8);
const _: () = assert!(size_of::<Backend>() == 48);
const _: () = assert!(size_of::<Load>() == 16);
const _: () = assert!(size_of::<Breaker>() == 24);
const _: () = assert!(size_of::<NextHop>() == 24);
