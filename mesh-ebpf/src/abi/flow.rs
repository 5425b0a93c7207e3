//! Flows: which backend a connection is pinned to, and how its addresses are translated.

use crate::bytes::{Be16, Be32};

/// The five-tuple of a packet as it arrives: the key of its flow.
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

/// Where a flow's client packets enter the node, and hence where its replies leave it.
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
    /// Left to the kernel: of a connection that was adopted, and of which its backend knows nothing.
    pub const FOREIGN: Self = Self(4);
}

/// The state of one direction of a flow.
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
    /// Of a backend that was chosen in mid-connection, and has yet to show that it knows the connection.
    pub const UNPROVEN: Self = Self(3);

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

/// How far a flow's opening has come: whether the flow is open (bit 0), whether its backend has answered
/// (bit 1), and on its entry node how often it has moved to another backend (bits 2 and 3) and when its
/// backend was asked (bits 4 to 15, see [`Self::time`]).
///
/// As wide as it is so that the compiler does not join it with the bytes before it to a store at an odd
/// offset, which the verifier refuses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Opening(u16);

impl Opening {
    /// Its backend has answered.
    pub const ANSWERED: Self = Self(2);
    /// Client and backend talk: its entries are in the table of open flows, or about to be.
    pub const OPEN: Self = Self(3);
    /// How often a flow may move to another backend.
    pub const MOVES: u16 = 3;

    /// Its backend has yet to answer.
    #[inline(always)]
    pub const fn asked(time: u16) -> Self {
        Self(time << 4)
    }

    /// The same, of the next backend: the node of the one before could not deliver.
    #[inline(always)]
    #[must_use]
    pub const fn moved(self, time: u16) -> Self {
        Self(time << 4 | (self.moves() + 1) << 2)
    }

    /// Whether the flow is open, rather than half-open.
    #[inline(always)]
    pub const fn is_open(self) -> bool {
        self.0 & 1 != 0
    }

    /// Whether its backend has answered.
    #[inline(always)]
    pub const fn is_answered(self) -> bool {
        self.0 & Self::ANSWERED.0 != 0
    }

    /// How often the flow has moved to another backend, which has yet to answer.
    #[inline(always)]
    pub const fn moves(self) -> u16 {
        self.0 >> 2 & Self::MOVES
    }

    /// When its backend was asked. One packet passes both XDP and tc in the same instant of this clock; what
    /// a client sends again (RFC 6298: after a second) is of another.
    #[inline(always)]
    pub const fn asked_at(self) -> u16 {
        self.0 >> 4
    }

    /// The same, its backend having answered.
    #[inline(always)]
    #[must_use]
    pub const fn answered(self) -> Self {
        Self(self.0 & !0xf | Self::ANSWERED.0)
    }

    /// The same, its backend being asked once more at another time.
    #[inline(always)]
    #[must_use]
    pub const fn again(self, time: u16) -> Self {
        Self(time << 4 | self.0 & 0xf)
    }

    /// The kernel's clock as openings have it: 12 bits of 268 ms each.
    #[inline(always)]
    pub const fn time(nanoseconds: u64) -> u16 {
        (nanoseconds >> 28 & 0xfff) as u16
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
    /// The source address and port that the backend sees: the client's, except for containers that dial
    /// their own node, and where two flows would otherwise have the same tuple.
    pub presented: Endpoint,
    /// Index of the backend.
    pub backend: u32,
    /// The backend's generation; if the backend has another one now, this one is gone.
    pub generation: u32,
    /// The client's direction. Each direction has 32 bits of its own, so that a plain store suffices.
    pub from_client: Progress,
    /// The backend's direction.
    pub from_backend: Progress,
    /// For flows from a peer: its index, valid as long as the next hop there has [`Self::peer_address`]. On
    /// the entry node: the index of the backend's node, if that is another one.
    pub peer: u32,
    /// For flows from a peer: its address.
    pub peer_address: Be32,
    /// Seconds on the agent's clock ([`super::Config::now`]) when a packet was last seen.
    pub seen: u32,
    /// Where client packets come from.
    pub origin: Origin,
    /// Which entry of the flow this is.
    pub role: Role,
    /// How the flow's opening went.
    pub opening: Opening,
    /// TCP: the sequence number that the client's next packet has, give or take [`SEQUENCE_STEP`]; 0 when
    /// it is unknown. Kept in the entry that the backend's packets are found by, and with direct return,
    /// where this node does not see those, in the client's. On the entry node, until the backend answers:
    /// when it was asked ([`asked_moment`]), or 0.
    pub client_next: u32,
    /// The same of the backend's next packet.
    pub backend_next: u32,
}

/// A flow as the flow tables hold it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct FlowRecord {
    /// The flow.
    pub flow: Flow,
    /// How the backend's packets reach the client, in the entry that those are found by.
    pub way: KnownWay,
}

impl From<Flow> for FlowRecord {
    fn from(flow: Flow) -> Self {
        Self {
            flow,
            way: KnownWay::default(),
        }
    }
}

/// The way to a flow's client, as the kernel's routes and neighbours have lately shown it: to look it up
/// again costs as much as all else that is done for a reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct KnownWay {
    /// The moment at which it was looked up ([`Self::moment`]); it holds during that. 0 if it never was.
    pub moment: u32,
    /// Interface index.
    pub interface: u32,
    /// The largest packet that it carries, bytes from the IP header on.
    pub mtu: u16,
    /// The interface's MAC address.
    pub source_mac: [u16; 3],
    /// MAC address of the client, or of the router before it.
    pub destination_mac: [u16; 3],
    /// Zero.
    pub padding: u16,
}

impl KnownWay {
    /// The kernel's clock in moments of 64 jiffies: 64 ms to 0.64 s, a quarter of a second on most kernels
    /// (`CONFIG_HZ`). By that clock, as the agent's stands still when there is no agent. Never 0.
    #[inline(always)]
    pub const fn moment(jiffies: u64) -> u32 {
        (jiffies >> 6) as u32 | 1 << 31
    }
}

/// The kernel's clock as a half-open flow has it: 32 bits of 256 ns each, 18 minutes. Never 0.
#[inline(always)]
pub const fn asked_moment(nanoseconds: u64) -> u32 {
    (nanoseconds >> 8) as u32 | 1
}

/// The nanoseconds since such a moment, to 256 or two times that.
#[inline(always)]
pub const fn since_asked(moment: u32, nanoseconds: u64) -> u64 {
    (asked_moment(nanoseconds).wrapping_sub(moment) as u64) << 8
}

/// By how much a sequence number has advanced when it is noted again. Seldom, so that the cache line of
/// a busy flow does not move between CPUs for every packet.
pub const SEQUENCE_STEP: u32 = 1 << 19;

/// How far from the expected sequence number a packet that closes a flow may be: data may be lost on the way
/// before it. (RFC 5961 asks of the receiver to take a RST at the very number only; it checks for itself.)
const SEQUENCE_WINDOW: u32 = 1 << 20;

/// Whether a packet with this sequence number can be the next one of a flow: its number is near the
/// expected one (RFC 9293, 3.4: modulo 2^32), or none is expected yet.
#[inline(always)]
pub fn is_in_sequence(sequence: u32, expected: u32) -> bool {
    expected == 0 || sequence.wrapping_sub(expected.wrapping_sub(SEQUENCE_WINDOW)) <= 2 * SEQUENCE_WINDOW
}

const _: () = assert!(size_of::<FlowKey>() == 16);
const _: () = assert!(size_of::<Endpoint>() == 8);
const _: () = assert!(size_of::<KnownWay>() == 24);
const _: () = assert!(size_of::<Flow>() == 64);
const _: () = assert!(size_of::<FlowRecord>() == 88);

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn an_opening_counts_moves_and_knows_when_it_asked_last() {
        let mut opening = Opening::asked(0xfff);
        for moves in 0..Opening::MOVES {
            assert_eq!((opening.moves(), opening.is_answered()), (moves, false));
            opening = opening.moved(Opening::time(u64::from(moves) << 28));
            assert_eq!(opening.asked_at(), moves);
        }
        assert_eq!(opening.moves(), Opening::MOVES);
        assert_eq!(
            (Opening::ANSWERED.moves(), Opening::ANSWERED.is_answered()),
            (0, true)
        );
        assert_eq!(Opening::time(u64::MAX), 0xfff);
        assert!(Opening::OPEN.is_open() && Opening::OPEN.is_answered());
        assert!(!Opening::ANSWERED.is_open() && !opening.is_open());
    }

    #[test]
    fn an_opening_keeps_its_time_as_it_is_answered_and_its_moves_as_it_is_asked_again() {
        let asked = Opening::asked(7).moved(9).again(11);
        assert_eq!((asked.asked_at(), asked.moves()), (11, 1));
        assert!(!asked.is_answered() && !asked.is_open());
        let answered = asked.answered();
        assert_eq!((answered.asked_at(), answered.moves()), (11, 0));
        assert!(answered.is_answered() && !answered.is_open());
    }

    #[test]
    fn a_moment_of_asking_is_never_0_and_counts_beyond_the_end_of_its_clock() {
        assert_ne!(asked_moment(0), 0);
        for start in [0, 255, 1 << 40, (1 << 40) - 300] {
            for elapsed in [0, 256, 50_000, 3_000_000_000] {
                let found = since_asked(asked_moment(start), start + elapsed);
                assert!(found.abs_diff(elapsed) <= 512, "{start} + {elapsed}: {found}");
            }
        }
    }

    #[test]
    fn a_sequence_number_is_near_modulo_two_to_the_32() {
        for (sequence, expected, is_near) in [
            (5000, 0, true),
            (5000, 5000, true),
            (5000 + SEQUENCE_WINDOW, 5000, true),
            (5001 + SEQUENCE_WINDOW, 5000, false),
            (5000_u32.wrapping_sub(SEQUENCE_WINDOW), 5000, true),
            (4999_u32.wrapping_sub(SEQUENCE_WINDOW), 5000, false),
            (3, u32::MAX, true),
            (5000 ^ 1 << 31, 5000, false),
        ] {
            assert_eq!(
                is_in_sequence(sequence, expected),
                is_near,
                "{sequence} {expected}"
            );
        }
    }
}
