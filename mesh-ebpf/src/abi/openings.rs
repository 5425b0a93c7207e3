//! New flows of a service: how many it may have, and how many it has.

use super::FlowKey;
use crate::bytes::Be32;

/// The kernel's clock in spans of about a second: 2^30 nanoseconds each.
#[inline(always)]
pub const fn span(nanoseconds: u64) -> u64 {
    nanoseconds >> 30
}

/// Spans after the last one with a flood in which what is in no flow table may be of a flow that was begun
/// in the flood. As long as half-open flows live.
pub const FLOOD_MEMORY: u64 = 60;
/// Clients whose new flows are counted at a time.
pub const MAX_SOURCES: u32 = 65_536;
/// Flows without entries whose replies can be under way at a time: a power of two.
pub const MAX_UNTRACKED: u32 = 65_536;

/// A service's limits and affinity, written by the agent, and its counts of the present span.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Openings {
    /// New flows in a span that enter here at most; 0 for no limit.
    pub max_new: u32,
    /// The same of one client.
    pub max_new_per_source: u32,
    /// New flows in a span past which flows get no entries; 0 for never.
    pub flood_limit: u32,
    /// Seconds after its last new flow for which a client stays with its backend; 0 for no affinity.
    pub affinity: u32,
    /// The span of the counts.
    pub span: u64,
    /// First packets of clients.
    pub opened: u64,
    /// First packets from peers.
    pub forwarded: u64,
    /// Packets in mid-connection of flows that have no entries.
    pub continued: u64,
    /// The last span in which one of the counts was past [`Self::flood_limit`]; 0 for none.
    pub flooded: u64,
    /// First packets that were dropped past [`Self::max_new`], since the service has its index.
    pub past_max_new: u64,
    /// The same past [`Self::max_new_per_source`].
    pub past_max_new_per_source: u64,
}

/// Names a client whose new flows are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(8))]
pub struct SourceKey {
    /// Index of the service.
    pub service: u32,
    /// Its address.
    pub client: Be32,
}

/// How many new flows a client has had in a span.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SourceOpenings {
    /// The span.
    pub span: u64,
    /// The flows.
    pub opened: u64,
}

/// The slot of a flow that has no entries, by the tuple of its replies as they leave the container.
#[inline(always)]
pub fn untracked_slot(reply: &FlowKey) -> u32 {
    let ports = u32::from(reply.destination_port.get()) | u32::from(reply.source_port.get()) << 16;
    crate::hash::mix(reply.destination.get() ^ crate::hash::mix(ports ^ reply.source.get() ^ reply.protocol))
        & (MAX_UNTRACKED - 1)
}

const _: () = assert!(size_of::<Openings>() == 72);
const _: () = assert!(size_of::<SourceKey>() == 8);
const _: () = assert!(size_of::<SourceOpenings>() == 16);
