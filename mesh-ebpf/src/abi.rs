//! Keys and values of the maps that kernel and agent share. Imports `bytes` only.
//!
//! Invariants: no implicit padding, every size asserted, addresses and ports big-endian by type. What
//! programs build on their stack is aligned to 8 bytes: the compiler writes it in words of 8, which the
//! verifier refuses elsewhere. A change to a type here changes [`VERSION`], so that an agent does not
//! adopt maps it would misread.

use crate::bytes::{Be16, Be32};

/// Version of everything in this file; part of the pins' path.
pub const VERSION: u32 = 2;

/// Backends (one per replica and published port) a node can hold.
pub const MAX_BACKENDS: u32 = 16_384;
/// Services (published ports) a node can hold.
pub const MAX_SERVICES: u32 = 4_096;
/// Slots in the rings of all services together.
pub const MAX_RING: u32 = 262_144;
/// Frontends (addresses times published ports) a node can hold.
pub const MAX_FRONTENDS: u32 = 65_536;
/// Peer nodes.
pub const MAX_PEERS: u32 = 4_096;
/// Words of the published-port filter: 65,536 bits for each of TCP and UDP.
pub const PORT_FILTER_WORDS: u32 = 2 * 65_536 / 64;

/// The five-tuple of a packet as it arrives, and so the key of the flow it belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(8))]
pub struct FlowKey {
    /// Sender's address.
    pub source: Be32,
    /// Receiver's address.
    pub destination: Be32,
    /// Sender's port.
    pub source_port: Be16,
    /// Receiver's port.
    pub destination_port: Be16,
    /// IP protocol number; 32 bits wide so that there is no padding.
    pub protocol: u32,
}

impl FlowKey {
    /// The tuple of a packet from one endpoint to another.
    #[inline(always)]
    pub fn between(source: Endpoint, destination: Endpoint, protocol: u32) -> Self {
        Self {
            source: source.address,
            destination: destination.address,
            source_port: source.port,
            destination_port: destination.port,
            protocol,
        }
    }

    /// The tuple of a packet in the opposite direction.
    #[inline(always)]
    pub fn reversed(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: self.protocol,
        }
    }
}

/// An address and a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Endpoint {
    /// IPv4 address.
    pub address: Be32,
    /// Port.
    pub port: Be16,
    /// Zero.
    pub padding: u16,
}

impl Endpoint {
    /// An endpoint.
    #[inline(always)]
    pub const fn new(address: Be32, port: Be16) -> Self {
        Self {
            address,
            port,
            padding: 0,
        }
    }
}

/// Where a flow's client packets enter the node, and so where its replies leave it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Origin(u8);

impl Origin {
    /// From the network: this is the entry node.
    pub const UPLINK: Self = Self(1);
    /// From a process of this node.
    pub const MESH0: Self = Self(2);
    /// From a container of this node.
    pub const CONTAINER: Self = Self(3);
    /// From a peer, the entry node; replies go back to it.
    pub const TUNNEL: Self = Self(4);
    /// From a peer; replies go to the client directly (`dsr`).
    pub const TUNNEL_DIRECT: Self = Self(5);

    /// Whether another node is the flow's entry node.
    #[inline(always)]
    pub const fn is_tunnel(self) -> bool {
        self.0 >= Self::TUNNEL.0
    }
}

/// Which of a flow's entries this is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Role(u8);

impl Role {
    /// Keyed by the client's packets.
    pub const FORWARD: Self = Self(1);
    /// Keyed by a local backend's replies as they leave the container.
    pub const REPLY: Self = Self(2);
    /// Keyed by the client's packets as a remote backend sees them, where the source was translated.
    pub const ALIAS: Self = Self(3);
}

/// How far one direction of a flow has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Progress(u32);

impl Progress {
    /// Open.
    pub const OPEN: Self = Self(0);
    /// A FIN was seen.
    pub const FINISHED: Self = Self(1);
    /// A RST was seen.
    pub const RESET: Self = Self(2);

    /// Whether either side of a flow has begun to close.
    #[inline(always)]
    pub fn is_closing(client: Self, backend: Self) -> bool {
        client != Self::OPEN || backend != Self::OPEN
    }

    /// Whether both sides of a flow are done, or one has reset.
    #[inline(always)]
    pub fn is_closed(client: Self, backend: Self) -> bool {
        client == Self::RESET
            || backend == Self::RESET
            || (client == Self::FINISHED && backend == Self::FINISHED)
    }
}

/// One flow: which backend it is pinned to, and how addresses are translated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Flow {
    /// What the client dialled.
    pub frontend: Endpoint,
    /// The client.
    pub client: Endpoint,
    /// The source address and port that the backend sees: the client's, but for containers that dial
    /// their own node, and for a port two flows would otherwise share.
    pub presented: Endpoint,
    /// Index of the backend.
    pub backend: u32,
    /// The generation the backend had; another one means that this backend is gone.
    pub generation: u32,
    /// The client's direction. Each direction has a word of its own, so that a plain store suffices.
    pub from_client: Progress,
    /// The backend's direction.
    pub from_backend: Progress,
    /// For flows from a peer: its index, valid while the next hop there has [`Self::peer_address`].
    pub peer: u32,
    /// For flows from a peer: its address.
    pub peer_address: Be32,
    /// Seconds on the agent's clock ([`Config::now`]) when a packet was last seen.
    pub seen: u32,
    /// Where client packets come from.
    pub origin: Origin,
    /// Which entry of the flow this is.
    pub role: Role,
    /// Zero.
    pub padding: [u8; 2],
}

/// Names a frontend: one answered (address, port, protocol).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(8))]
pub struct FrontendKey {
    /// An address of the node, or the service address.
    pub address: Be32,
    /// Published port.
    pub port: Be16,
    /// IP protocol number.
    pub protocol: u16,
}

/// How a slot of a service's ring is chosen for a new flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Choice(u32);

impl Choice {
    /// One slot after the other.
    pub const ROTATE: Self = Self(0);
    /// By a hash of the client's address and port.
    pub const HASH_ENDPOINT: Self = Self(1);
    /// By a hash of the client's address.
    pub const HASH_ADDRESS: Self = Self(2);
    /// The less loaded of two slots.
    pub const LEAST: Self = Self(3);
}

/// A backend's load, as far as its service chooses by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Load {
    /// Open flows times [`Self::step`]; written by the agent, counted up by the programs in between.
    pub value: u64,
    /// What one flow weighs: the smaller, the more the backend can take.
    pub step: u64,
}

/// A service's range of the ring table, replaced as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Service {
    /// First slot in the ring table.
    pub ring_offset: u32,
    /// Slots; 0 when the service has no active backend.
    pub ring_length: u32,
    /// How a slot is chosen.
    pub choice: Choice,
    /// Published port and protocol, so that an agent can adopt what it finds.
    pub port: Be16,
    /// IP protocol number.
    pub protocol: u16,
}

/// Names a backend by what a Geneve packet says of it.
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

/// How to reach a peer node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct NextHop {
    /// The peer's address; zero while the slot is empty.
    pub address: Be32,
    /// Interface to leave by; 0 while the way is not resolved.
    pub interface: u32,
    /// MAC address of that interface.
    pub source_mac: [u8; 6],
    /// MAC address of the peer, or of the router on the way.
    pub destination_mac: [u8; 6],
}

/// Node-wide settings, one entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Config {
    /// Seconds since the data path was first loaded, written by the agent.
    pub now: u32,
    /// This node's address as its peers know it.
    pub node_address: Be32,
    /// The address that local processes' connections are turned to.
    pub service_address: Be32,
    /// Geneve VNI in the high 24 bits, as in the header.
    pub vni: Be32,
    /// UDP port of Geneve.
    pub geneve_port: Be16,
    /// Largest client packet, in bytes from its IP header on, that fits into the tunnel.
    pub inner_mtu: u16,
    /// 1 if replies of remote backends go to the client directly.
    pub direct_return: u32,
    /// Interface index of mesh0; 0 while there is none.
    pub mesh0: u32,
    /// MAC address of mesh0.
    pub mesh0_mac: [u8; 6],
    /// Zero.
    pub padding: [u8; 6],
    /// Cookie of the host's network namespace: sockets of others are left alone.
    pub netns_cookie: u64,
}

/// Traffic of one backend on one CPU. L3 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct BackendCounters {
    /// Flows opened.
    pub connections: u64,
    /// Packets from clients.
    pub packets_in: u64,
    /// Bytes from clients.
    pub bytes_in: u64,
    /// Packets to clients.
    pub packets_out: u64,
    /// Bytes to clients.
    pub bytes_out: u64,
}

/// What a local process dialled before its connection was turned to the service address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Dialled {
    /// Address, IPv4.
    pub address: Be32,
    /// 1 if it was `::1` rather than an IPv4 address.
    pub ipv6_loopback: u32,
}

/// The mouths of the pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Hook {
    /// XDP on an uplink.
    Xdp = 0,
    /// tc ingress of an uplink.
    TcUplink = 1,
    /// tc ingress of the host end of a container's veth.
    TcContainer = 2,
    /// tc egress of mesh0.
    TcMesh0 = 3,
}

impl Hook {
    /// Every hook, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Xdp, Self::TcUplink, Self::TcContainer, Self::TcMesh0];

    /// The name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::TcUplink => "tc_uplink",
            Self::TcContainer => "tc_container",
            Self::TcMesh0 => "tc_mesh0",
        }
    }
}

/// Why a packet was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum DropReason {
    /// The IP version is not the EtherType's.
    BadVersion = 0,
    /// A length field contradicts another, or the frame.
    BadLength = 1,
    /// The frame ends within a header.
    Truncated = 2,
    /// An IP option in a packet for a published port.
    IpOptions = 3,
    /// An IP fragment of a packet for a published port.
    Fragment = 4,
    /// A Geneve packet for our network that is not as the mesh makes them.
    BadGeneve = 5,
    /// An encapsulated packet from an address that is no peer's.
    UnknownPeer = 6,
    /// An encapsulated packet for a backend that this node does not have (any more).
    UnknownBackend = 7,
    /// A reply for a flow that this node does not know (any more).
    UnknownFlow = 8,
    /// The service has no active backend; TCP is answered with RST, UDP with ICMP.
    NoBackend = 9,
    /// The flow's backend is gone; TCP is answered with RST.
    BackendGone = 10,
    /// Larger than the tunnel takes; answered with ICMP "fragmentation needed".
    TooBig = 11,
    /// The flow table refused a new flow.
    FlowTableFull = 12,
    /// No free source port to tell two flows of one client apart.
    NoFreePort = 13,
    /// No way to the peer or client is known.
    NoRoute = 14,
    /// The kernel refused to resize or rewrite the packet.
    RewriteFailed = 15,
    /// A packet on mesh0 that is for no frontend.
    NotAFrontend = 16,
}

impl DropReason {
    /// Every reason, in the order of their numbers.
    pub const ALL: [Self; 17] = [
        Self::BadVersion,
        Self::BadLength,
        Self::Truncated,
        Self::IpOptions,
        Self::Fragment,
        Self::BadGeneve,
        Self::UnknownPeer,
        Self::UnknownBackend,
        Self::UnknownFlow,
        Self::NoBackend,
        Self::BackendGone,
        Self::TooBig,
        Self::FlowTableFull,
        Self::NoFreePort,
        Self::NoRoute,
        Self::RewriteFailed,
        Self::NotAFrontend,
    ];

    /// The name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::BadVersion => "bad_version",
            Self::BadLength => "bad_length",
            Self::Truncated => "truncated",
            Self::IpOptions => "ip_options",
            Self::Fragment => "fragment",
            Self::BadGeneve => "bad_geneve",
            Self::UnknownPeer => "unknown_peer",
            Self::UnknownBackend => "unknown_backend",
            Self::UnknownFlow => "unknown_flow",
            Self::NoBackend => "no_backend",
            Self::BackendGone => "backend_gone",
            Self::TooBig => "too_big",
            Self::FlowTableFull => "flow_table_full",
            Self::NoFreePort => "no_free_port",
            Self::NoRoute => "no_route",
            Self::RewriteFailed => "rewrite_failed",
            Self::NotAFrontend => "not_a_frontend",
        }
    }
}

/// Number of drop counters: [`drop_index`] of the last hook and reason, plus one.
pub const DROP_COUNTERS: u32 = Hook::ALL.len() as u32 * DropReason::ALL.len() as u32;

/// Where the count of a hook's drops for a reason is kept.
#[inline(always)]
pub const fn drop_index(hook: Hook, reason: DropReason) -> u32 {
    hook as u32 * DropReason::ALL.len() as u32 + reason as u32
}

/// Node-wide event counts: index of flow entries inserted under a new key.
pub const EVENT_FLOW_INSERTED: u32 = 0;
/// Number of event counters.
pub const EVENT_COUNTERS: u32 = 1;

/// Word and bit of a published port in the port filter.
#[inline(always)]
pub fn port_filter_bit(protocol: u8, port: u16) -> (u32, u32) {
    let half = if protocol == crate::headers::PROTOCOL_UDP {
        1024
    } else {
        0
    };
    (half + u32::from(port >> 6), u32::from(port & 63))
}

const _: () = assert!(size_of::<FlowKey>() == 16);
const _: () = assert!(size_of::<Endpoint>() == 8);
const _: () = assert!(size_of::<Flow>() == 56);
const _: () = assert!(size_of::<FrontendKey>() == 8);
const _: () = assert!(size_of::<Service>() == 16);
const _: () = assert!(size_of::<Load>() == 16);
const _: () = assert!(size_of::<BackendKey>() == 8);
const _: () = assert!(size_of::<Backend>() == 48);
const _: () = assert!(size_of::<NextHop>() == 20);
const _: () = assert!(size_of::<Config>() == 48);
const _: () = assert!(size_of::<BackendCounters>() == 40);
const _: () = assert!(size_of::<Dialled>() == 8);

#[cfg(feature = "agent")]
mod agent {
    use super::{
        Backend, BackendCounters, BackendKey, Config, Dialled, Flow, FlowKey, FrontendKey, Load, NextHop,
        Service,
    };

    macro_rules! pod {
        ($($name:ty),*) => { $(
            // SAFETY: `repr(C)` without padding (sizes are asserted above), integers only.
            unsafe impl aya::Pod for $name {}
        )* };
    }
    pod!(
        Backend,
        BackendCounters,
        BackendKey,
        Config,
        Dialled,
        Flow,
        FlowKey,
        FrontendKey,
        Load,
        NextHop,
        Service
    );
    // SAFETY: transparent over u32.
    unsafe impl aya::Pod for crate::bytes::Be32 {}
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::headers::{PROTOCOL_TCP, PROTOCOL_UDP};

    #[test]
    fn names_in_metrics_are_unique() {
        let hooks: BTreeSet<_> = Hook::ALL.iter().map(|hook| hook.name()).collect();
        assert_eq!(hooks.len(), Hook::ALL.len());
        let reasons: BTreeSet<_> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(reasons.len(), DropReason::ALL.len());
    }

    #[test]
    fn all_hooks_and_reasons_stand_at_their_numbers() {
        for (number, hook) in Hook::ALL.into_iter().enumerate() {
            assert_eq!(hook as usize, number);
        }
        for (number, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, number);
        }
    }

    #[test]
    fn every_hook_and_reason_has_a_drop_counter_of_its_own() {
        let mut indexes: Vec<u32> = Hook::ALL
            .into_iter()
            .flat_map(|hook| DropReason::ALL.map(|reason| drop_index(hook, reason)))
            .collect();
        indexes.sort_unstable();
        assert!(indexes.into_iter().eq(0..DROP_COUNTERS));
    }

    #[test]
    fn every_published_port_has_a_bit_of_its_own() {
        let mut bits: Vec<u32> = [PROTOCOL_TCP, PROTOCOL_UDP]
            .into_iter()
            .flat_map(|protocol| {
                (0..=u16::MAX).map(move |port| {
                    let (word, bit) = port_filter_bit(protocol, port);
                    assert!(bit < 64);
                    word * 64 + bit
                })
            })
            .collect();
        bits.sort_unstable();
        assert!(bits.into_iter().eq(0..PORT_FILTER_WORDS * 64));
    }

    #[test]
    fn a_key_reversed_twice_is_itself() {
        let key = FlowKey {
            source: Be32::new(1),
            destination: Be32::new(2),
            source_port: Be16::new(3),
            destination_port: Be16::new(4),
            protocol: 6,
        };
        assert_eq!(key.reversed().reversed(), key);
        assert_eq!(
            (key.reversed().source, key.reversed().source_port),
            (Be32::new(2), Be16::new(4))
        );
    }

    #[test]
    fn only_flows_of_peers_are_tunnelled() {
        for (origin, tunnel) in [
            (Origin::UPLINK, false),
            (Origin::MESH0, false),
            (Origin::CONTAINER, false),
            (Origin::TUNNEL, true),
            (Origin::TUNNEL_DIRECT, true),
        ] {
            assert_eq!(origin.is_tunnel(), tunnel, "{origin:?}");
        }
    }
}
