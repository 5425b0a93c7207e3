//! What bounds answers that the mesh makes, and what tells answers to this node's own datagrams from
//! clients'.

use super::FlowKey;
use crate::bytes::{Be16, Be32};

/// RST and ICMP errors that one processor makes in about a second (2^30 nanoseconds) at most.
pub const MAX_ANSWERS: u64 = 5_000;
/// Conversations of this node's own that are remembered at a time.
pub const MAX_OWN: u32 = 4_096;

/// How many answers a processor has made in one span of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Answered {
    /// The kernel's clock, in units of 2^30 nanoseconds.
    pub span: u64,
    /// The answers since.
    pub count: u64,
}

/// Names a conversation by UDP that a process or a container of this node has begun, from a port that is also
/// published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(8))]
pub struct OwnKey {
    /// The other side's address.
    pub remote: Be32,
    /// The other side's port.
    pub remote_port: Be16,
    /// The published port that it sends from.
    pub local_port: Be16,
}

impl OwnKey {
    /// That of a packet that this node sends.
    #[inline(always)]
    pub fn asked(key: &FlowKey) -> Self {
        Self {
            remote: key.destination,
            remote_port: key.destination_port,
            local_port: key.source_port,
        }
    }

    /// That of an answer.
    #[inline(always)]
    pub fn answered(key: &FlowKey) -> Self {
        Self::asked(&key.reversed())
    }
}

/// How long an answer is awaited after the last datagram, nanoseconds: as long as Linux' conntrack does once
/// there has been one.
pub const OWN_LIFETIME: u64 = 120_000_000_000;

const _: () = assert!(size_of::<Answered>() == 16);
const _: () = assert!(size_of::<OwnKey>() == 8);
