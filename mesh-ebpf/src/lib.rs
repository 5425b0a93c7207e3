//! The packet path of the mesh: types that kernel and agent share, and the pure packet logic.
//!
//! `no_std`, no I/O. The logic is generic over the packet ([`frame::Frame`]) and the maps
//! ([`tables::Tables`]), so the same functions run in XDP, in tc and in the host's unit tests. The programs
//! in `programs/` (built for BPF only) and the agent's data path import it; it imports nothing of ours.
#![cfg_attr(not(test), no_std)]

pub mod abi;
pub mod affinity;
pub mod affinity_tables;
pub mod breaker;
pub mod bytes;
pub mod checksum;
pub mod encapsulation;
pub mod entry;
pub mod errors;
pub mod exceptional;
pub mod execute;
pub mod flood;
pub mod flood_tables;
pub mod flow_entry;
pub mod flow_state;
pub mod fragment;
pub mod frame;
pub mod hash;
pub mod headers;
pub mod icmp;
pub mod ipv4;
pub mod ipv6;
pub mod layer3;
pub mod left_over;
pub mod mapped;
pub mod mapped_tables;
pub mod mss;
pub mod observe;
pub mod onward;
pub mod open;
pub mod parse;
pub mod pipeline;
pub mod probe;
pub mod reply;
pub mod select;
pub mod signal_tables;
pub mod signals;
pub mod source_rules;
pub mod tables;
#[cfg(test)]
mod testing;
pub mod to_ipv4;
pub mod to_ipv6;
pub mod translated_error;
pub mod tunnel;
pub mod verdict;
pub mod way;
