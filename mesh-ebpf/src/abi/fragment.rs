//! Fragments of IP packets: which packet each belongs to, and those that came before the first one.

use crate::bytes::{Be16, Be32, Zeros};

/// Packets whose fragments are known to belong together at a time.
pub const MAX_DATAGRAMS: u32 = 4_096;
/// Fragments that wait for the first one at a time.
pub const MAX_HELD: u32 = 512;
/// Fragments of one packet that wait for the first one at most: more than 64 KiB have at the smallest MTU
/// that every host takes, 576 bytes (RFC 791), or when routers split those of Ethernet's MTU once more.
pub const HELD_PER_DATAGRAM: u64 = 128;
/// Bytes of a fragment, IP header included, that can be held, or split off from another one.
pub const HELD_LENGTH: usize = 2_048;

/// What all fragments of one packet have in common (RFC 791, 3.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(8))]
pub struct DatagramKey {
    /// Sender.
    pub source: Be32,
    /// Receiver.
    pub destination: Be32,
    /// The sender's number of the packet.
    pub identification: Be16,
    /// IP protocol number.
    pub protocol: u16,
    /// Zero.
    pub padding: u32,
}

/// A packet of which a fragment has been seen. Its fragments may arrive on several processors at a time, so
/// the counters are changed atomically, and the other fields one by one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Datagram {
    /// The kernel's clock when the first of them was seen, nanoseconds.
    pub since: u64,
    /// How many fragments came before the first one.
    pub held: u64,
    /// 0 until the first one comes, then 1 and how many of those have followed it.
    pub released: u64,
    /// What is known of it.
    pub state: DatagramState,
    /// How often they may yet wait, the first one being split and its parts on their way.
    pub waits: u32,
    /// Sender's port, once its first fragment was seen.
    pub source_port: Be16,
    /// Receiver's port, the same.
    pub destination_port: Be16,
    /// Where the first fragment ends, in bytes of the packet behind its IP header, once that was seen.
    pub first_end: u16,
    /// Zero.
    pub padding: u16,
}

// SAFETY: `align(8)`, so its size is a multiple of that, too; integers, of which all zeros are valid.
unsafe impl Zeros for Datagram {}

/// What is known of a packet of which a fragment has been seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct DatagramState(u32);

impl DatagramState {
    /// Its first fragment has not been seen.
    pub const WAITING: Self = Self(0);
    /// It is of a flow.
    pub const OURS: Self = Self(1);
    /// It is none of the mesh's.
    pub const OTHER: Self = Self(2);
}

/// One of the fragments that wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(8))]
pub struct HeldKey {
    /// Of this packet.
    pub datagram: DatagramKey,
    /// In the order of arrival.
    pub number: u64,
}

/// A fragment that waits, or the second part of one that is split.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub struct Held {
    /// Bytes, from the IP header on.
    pub length: u64,
    /// Those bytes, and undefined ones behind.
    pub bytes: [u8; HELD_LENGTH],
}

const _: () = assert!(size_of::<DatagramKey>() == 16);
const _: () = assert!(size_of::<Datagram>() == 40);
const _: () = assert!(size_of::<HeldKey>() == 24);
