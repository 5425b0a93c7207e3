//! Keys and values of the maps that kernel and agent share.
//!
//! Invariants: no implicit padding, every size asserted, addresses and ports big-endian by type. What
//! programs build on their stack is aligned to 8 bytes: the compiler writes it in units of 8, which the
//! verifier refuses elsewhere. A change to a type here changes [`VERSION`] and the map's number in
//! [`LAYOUTS`], so that an agent does not adopt maps it would misread.

mod affinity;
mod answers;
mod backend;
mod called;
mod config;
mod counters;
mod flow;
mod fragment;
mod keys;
mod layout;
mod mapped;
mod masquerade;
mod monitor;
mod openings;
#[cfg(feature = "agent")]
mod pod;
mod service;
mod signals;
mod source_rule;

pub use affinity::{Affinity, AffinityKey, MAX_AFFINITIES};
pub use answers::{Answered, MAX_ANSWERS, MAX_OWN, OWN_LIFETIME, OwnKey};
pub use backend::{
    BACKEND_LOCAL, BACKEND_REMOTE, BREAKER_LIMIT, Backend, BackendKey, Breaker, Load, NextHop,
};
pub use called::{CALLED_PROGRAMS, Called};
pub use config::{Config, Dialled, PORT_FILTER_ENTRIES, mac_key, port_filter_bit};
pub use counters::{BackendCounters, DROP_COUNTERS, DropReason, EVENT_COUNTERS, Event, Hook, drop_index};
pub use flow::{
    Endpoint, Flow, FlowKey, FlowRecord, KnownWay, Opening, Origin, Progress, Role, SEQUENCE_STEP,
    asked_moment, is_in_sequence, since_asked,
};
pub use fragment::{
    Datagram, DatagramKey, DatagramState, HELD_LENGTH, HELD_PER_DATAGRAM, Held, HeldKey, MAX_DATAGRAMS,
    MAX_HELD,
};
pub use keys::{KEY_COUNT, Keys};
pub use layout::LAYOUTS;
pub use mapped::{
    Ipv6Address, MAX_MAPPED_CLIENTS, MAX_NEW_CLIENTS, MAX_OWN_IPV6, MappedClient, is_mapped_client,
    is_mapped_own, mapped_client,
};
pub use masquerade::Masquerade;
pub use monitor::{
    CAPTURE_LENGTH, HEAD_LENGTH, NO_BACKEND, OBSERVATIONS_LENGTH, Observation, Observed, Report, Reported,
};
pub use openings::{
    FLOOD_MEMORY, MAX_SOURCES, MAX_UNTRACKED, Openings, SourceKey, SourceOpenings, span, untracked_slot,
};
pub use service::{Choice, FrontendKey, Service};
pub use signals::{ANSWER_TIMES, BackendSignals, Signal, answer_bucket};
pub use source_rule::{Policy, SourceRule, SourceVerdict, SourceVerdicts};

/// Version of everything in this module; part of the pins' path.
pub const VERSION: u32 = 11;

/// Backends (one per replica and published port) a node can hold.
pub const MAX_BACKENDS: u32 = 16_384;
/// Services (published ports) a node can hold.
pub const MAX_SERVICES: u32 = 4_096;
/// Slots in the rings of all services together.
pub const MAX_RING: u32 = 262_144;
/// Frontends (addresses times published ports) a node can hold.
pub const MAX_FRONTENDS: u32 = 65_536;
/// MAC addresses of a node. One that has more takes frames with any.
pub const MAX_HOST_MACS: u32 = 1_024;
/// Peer nodes.
pub const MAX_PEERS: u32 = 4_096;
/// Networks of all containers of a node. The kernel allocates only what is used.
pub const MAX_MASQUERADES: u32 = 65_536;
/// Source rules of all policies. The kernel allocates only what is used.
pub const MAX_SOURCE_RULES: u32 = 1_048_576;
