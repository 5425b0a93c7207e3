//! Protocol headers as they are on the wire: Ethernet II, IPv4 (RFC 791), IPv6 (RFC 8200), TCP (RFC 9293),
//! UDP (RFC 768), ICMP (RFC 792) and Geneve (RFC 8926).
//!
//! All are packed, because headers in a frame have no alignment. Sizes are asserted below.

use crate::bytes::{Be16, Be32, Plain};

/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: Be16 = Be16::new(0x0800);
/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: Be16 = Be16::new(0x86dd);
/// IP protocol number of ICMP.
pub const PROTOCOL_ICMP: u8 = 1;
/// IP protocol number of TCP.
pub const PROTOCOL_TCP: u8 = 6;
/// IP protocol number of UDP.
pub const PROTOCOL_UDP: u8 = 17;

/// IP protocol number of ICMPv6.
pub const PROTOCOL_ICMPV6: u8 = 58;
/// Next header of IPv6's fragment header.
pub const IPV6_FRAGMENT: u8 = 44;

/// TCP's FIN flag.
pub const TCP_FIN: u8 = 0x01;
/// TCP's SYN flag.
pub const TCP_SYN: u8 = 0x02;
/// TCP's RST flag.
pub const TCP_RST: u8 = 0x04;
/// TCP's ACK flag.
pub const TCP_ACK: u8 = 0x10;

/// "Don't fragment" in [`Ipv4::fragment`].
pub const IPV4_DONT_FRAGMENT: Be16 = Be16::new(0x4000);
/// "More fragments" in [`Ipv4::fragment`].
pub const IPV4_MORE_FRAGMENTS: Be16 = Be16::new(0x2000);
/// "More fragments" and the offset in [`Ipv4::fragment`]: not zero in every fragment.
pub const IPV4_FRAGMENT_MASK: Be16 = Be16::new(0x3fff);
/// The offset alone: not zero in every fragment but the first.
pub const IPV4_FRAGMENT_OFFSET_MASK: Be16 = Be16::new(0x1fff);

/// Bytes before the IP header.
pub const ETHERNET_LENGTH: usize = size_of::<Ethernet>();
/// Bytes of an IPv4 header without options.
pub const IPV4_LENGTH: usize = size_of::<Ipv4>();
/// Bytes of an IPv6 header without extension headers.
pub const IPV6_LENGTH: usize = size_of::<Ipv6>();
/// Bytes of a TCP header without options.
pub const TCP_LENGTH: usize = size_of::<Tcp>();
/// Bytes of a UDP header.
pub const UDP_LENGTH: usize = size_of::<Udp>();
/// Offset of the L4 header in a frame whose IPv4 header has no options.
pub const L4_OFFSET: usize = ETHERNET_LENGTH + IPV4_LENGTH;
/// Offset of the L4 header in a frame whose IPv6 header has no extensions.
pub const IPV6_L4_OFFSET: usize = ETHERNET_LENGTH + IPV6_LENGTH;
/// Offset of a TCP header's checksum field within the header.
pub const TCP_CHECKSUM_OFFSET: usize = 16;
/// Offset of a UDP header's checksum field within the header.
pub const UDP_CHECKSUM_OFFSET: usize = 6;

/// An Ethernet II header.
#[derive(Clone, Copy, Debug)]
#[repr(C, packed)]
pub struct Ethernet {
    /// Receiver's MAC address.
    pub destination: [u8; 6],
    /// Sender's MAC address.
    pub source: [u8; 6],
    /// What follows.
    pub ethertype: Be16,
}

/// An IPv4 header without its options.
#[derive(Clone, Copy, Debug)]
#[repr(C, packed)]
pub struct Ipv4 {
    /// Version (high 4 bits, 4) and header length in 32-bit words (low 4 bits).
    pub version_and_length: u8,
    /// DSCP and ECN.
    pub service_type: u8,
    /// Bytes of header and payload.
    pub total_length: Be16,
    /// Identifies the fragments of one packet.
    pub identification: Be16,
    /// Flags and fragment offset.
    pub fragment: Be16,
    /// Hops left.
    pub time_to_live: u8,
    /// Protocol of the payload.
    pub protocol: u8,
    /// One's-complement checksum of the header.
    pub checksum: Be16,
    /// Sender.
    pub source: Be32,
    /// Receiver.
    pub destination: Be32,
}

/// An IPv6 header without extension headers.
#[derive(Clone, Copy, Debug)]
#[repr(C, packed)]
pub struct Ipv6 {
    /// Version (4 bits, 6), traffic class (8 bits: DSCP and ECN) and flow label (20 bits).
    pub version_class_label: Be32,
    /// Bytes behind this header.
    pub payload_length: Be16,
    /// Protocol of the payload, or the kind of the first extension header.
    pub next_header: u8,
    /// Hops left.
    pub hop_limit: u8,
    /// Sender.
    pub source: [Be32; 4],
    /// Receiver.
    pub destination: [Be32; 4],
}

/// IPv6's fragment header.
#[derive(Clone, Copy, Debug)]
#[repr(C, packed)]
pub struct Ipv6Fragment {
    /// Protocol of the payload.
    pub next_header: u8,
    /// Zero.
    pub reserved: u8,
    /// Offset in units of 8 bytes (13 bits), two zeros, and whether more fragments follow.
    pub fragment: Be16,
    /// Identifies the fragments of one packet.
    pub identification: Be32,
}

/// A TCP header without its options.
#[derive(Clone, Copy, Debug)]
#[repr(C, packed)]
pub struct Tcp {
    /// Sender's port.
    pub source: Be16,
    /// Receiver's port.
    pub destination: Be16,
    /// Sequence number.
    pub sequence: Be32,
    /// Acknowledgement number.
    pub acknowledgement: Be32,
    /// Header length in 32-bit words (high 4 bits).
    pub data_offset: u8,
    /// CWR, ECE, URG, ACK, PSH, RST, SYN, FIN, from the highest bit.
    pub flags: u8,
    /// Receive window.
    pub window: Be16,
    /// Checksum over pseudo header, header and payload.
    pub checksum: Be16,
    /// Urgent pointer.
    pub urgent: Be16,
}

/// A UDP header.
#[derive(Clone, Copy, Debug)]
#[repr(C, packed)]
pub struct Udp {
    /// Sender's port.
    pub source: Be16,
    /// Receiver's port.
    pub destination: Be16,
    /// Bytes of header and payload.
    pub length: Be16,
    /// Checksum over pseudo header, header and payload; 0 when there is none.
    pub checksum: Be16,
}

/// The ports that TCP and UDP headers both begin with.
#[derive(Clone, Copy, Debug)]
#[repr(C, packed)]
pub struct Ports {
    /// Sender's port.
    pub source: Be16,
    /// Receiver's port.
    pub destination: Be16,
}

/// An ICMP error's header.
#[derive(Clone, Copy, Debug)]
#[repr(C, packed)]
pub struct Icmp {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// Checksum over header and payload.
    pub checksum: Be16,
    /// Unused.
    pub unused: Be16,
    /// MTU of the next hop, for "fragmentation needed" (RFC 1191).
    pub next_hop_mtu: Be16,
}

/// A Geneve header without its options.
#[derive(Clone, Copy, Debug)]
#[repr(C, packed)]
pub struct GeneveBase {
    /// Version (high 2 bits) and length of the options in 32-bit words (low 6 bits).
    pub version_and_length: u8,
    /// Control and critical-option bits (the two highest).
    pub flags: u8,
    /// EtherType of the payload.
    pub protocol: Be16,
    /// Virtual network identifier (the 24 high bits).
    pub vni: Be32,
}

/// A Geneve header with the mesh's one option, up to the key that ends the option where a node has one.
#[derive(Clone, Copy, Debug)]
#[repr(C, packed)]
pub struct Geneve {
    /// Version (high 2 bits, 0) and length of the options in 32-bit words (low 6 bits; 3, or 5 with a
    /// key).
    pub version_and_length: u8,
    /// Control and critical-option bits (the two highest).
    pub flags: u8,
    /// EtherType of the payload: IPv4.
    pub protocol: Be16,
    /// Virtual network identifier (the 24 high bits); the low 8 are reserved, 0.
    pub vni: Be32,
    /// Option class; 0xFF5A is in the range for experiments.
    pub option_class: Be16,
    /// Option type: a [`GeneveKind`] with the critical bit set.
    pub option_kind: u8,
    /// Option length in 32-bit words (low 5 bits; 2, or 4 with a key).
    pub option_length: u8,
    /// The backend's address on Docker's ingress network, unique in the cluster.
    pub backend_address: Be32,
    /// The backend's port inside the container.
    pub backend_port: Be16,
    /// A fingerprint of the task's id, in case the address has since been given to another task.
    pub backend_tag: Be16,
}

/// Option class of the mesh in Geneve packets.
pub const GENEVE_CLASS: Be16 = Be16::new(0xff5a);
/// Critical bit of an option's type: a receiver that does not know the option must drop the packet.
pub const GENEVE_CRITICAL_OPTION: u8 = 0x80;
/// `version_and_length` of a packet without a key.
pub const GENEVE_VERSION_AND_LENGTH: u8 = 3;
/// `flags` of every packet that the mesh makes: critical options are present.
pub const GENEVE_FLAGS: u8 = 0x40;
/// Length of the option's data in 32-bit words.
pub const GENEVE_OPTION_LENGTH: u8 = 2;
/// [`GENEVE_VERSION_AND_LENGTH`] where the option ends with a key.
pub const KEYED_VERSION_AND_LENGTH: u8 = 5;
/// [`GENEVE_OPTION_LENGTH`] where the option ends with a key.
pub const KEYED_OPTION_LENGTH: u8 = 4;
/// Bytes of a key.
pub const KEY_LENGTH: usize = 8;

/// What a Geneve packet between nodes carries; the type of its option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum GeneveKind {
    /// A client's packet for a backend; replies come back through the tunnel.
    Forward = GENEVE_CRITICAL_OPTION | 1,
    /// A client's packet for a backend whose node answers the client directly.
    ForwardDirect = GENEVE_CRITICAL_OPTION | 2,
    /// A backend's reply on its way to the entry node.
    Reply = GENEVE_CRITICAL_OPTION | 3,
    /// A question whether the data path answers, from a peer's agent; nothing is encapsulated.
    Probe = GENEVE_CRITICAL_OPTION | 8,
    /// The same packet on its way back.
    ProbeAnswer = GENEVE_CRITICAL_OPTION | 9,
    /// A client's packet on its way back to the entry node, because the backend's node cannot deliver it.
    /// Its backend is the one that it was sent to, and the inner packet is unchanged.
    Undeliverable = GENEVE_CRITICAL_OPTION | 4,
}

impl GeneveKind {
    /// The kind of an option type, if it is one.
    #[inline(always)]
    pub fn from_option(kind: u8) -> Option<Self> {
        const FORWARD: u8 = GeneveKind::Forward as u8;
        const FORWARD_DIRECT: u8 = GeneveKind::ForwardDirect as u8;
        const REPLY: u8 = GeneveKind::Reply as u8;
        const PROBE: u8 = GeneveKind::Probe as u8;
        const PROBE_ANSWER: u8 = GeneveKind::ProbeAnswer as u8;
        const UNDELIVERABLE: u8 = GeneveKind::Undeliverable as u8;
        match kind {
            FORWARD => Some(Self::Forward),
            FORWARD_DIRECT => Some(Self::ForwardDirect),
            REPLY => Some(Self::Reply),
            PROBE => Some(Self::Probe),
            PROBE_ANSWER => Some(Self::ProbeAnswer),
            UNDELIVERABLE => Some(Self::Undeliverable),
            _ => None,
        }
    }
}

/// Everything that the mesh inserts between the Ethernet header and the inner packet.
#[derive(Clone, Copy, Debug)]
#[repr(C, packed)]
pub struct Outer {
    /// From node to node.
    pub ip: Ipv4,
    /// To the Geneve port; the source port spreads flows over paths and queues.
    pub udp: Udp,
    /// Which backend.
    pub geneve: Geneve,
}

/// Bytes of [`Outer`].
pub const OUTER_LENGTH: usize = size_of::<Outer>();
/// Bytes of [`Outer`] and the key behind it: the tunnel's share of the MTU.
pub const KEYED_OUTER_LENGTH: usize = OUTER_LENGTH + KEY_LENGTH;

const _: () = assert!(size_of::<Ethernet>() == 14);
const _: () = assert!(size_of::<Ipv4>() == 20);
const _: () = assert!(size_of::<Ipv6>() == 40);
const _: () = assert!(size_of::<Ipv6Fragment>() == 8);
const _: () = assert!(size_of::<Tcp>() == 20);
const _: () = assert!(size_of::<Udp>() == 8);
const _: () = assert!(size_of::<Icmp>() == 8);
const _: () = assert!(size_of::<Geneve>() == 20);
const _: () = assert!(OUTER_LENGTH == 48);

macro_rules! plain {
    ($($name:ty),*) => { $(
        // SAFETY: packed (alignment 1), no padding, integer fields only.
        unsafe impl Plain for $name {}
    )* };
}
plain!(
    Ethernet,
    Ipv4,
    Ipv6,
    Ipv6Fragment,
    Tcp,
    Udp,
    Ports,
    Icmp,
    GeneveBase,
    Geneve,
    Outer
);
