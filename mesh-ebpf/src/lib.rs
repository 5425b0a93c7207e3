//! The packet path of the mesh: types that kernel and agent share, and the pure packet logic.
//!
//! `no_std`, no I/O. The logic is generic over the packet it works on ([`frame::Frame`]) and over the
//! maps it consults ([`tables::Tables`]), so the same functions run in XDP, in tc and in a host's unit
//! tests. Imports nothing of ours; the programs in `programs/` (built for BPF only) and the agent's
//! data path import it.
#![cfg_attr(not(test), no_std)]

pub mod abi;
pub mod bytes;
pub mod checksum;
pub mod encapsulation;
pub mod entry;
pub mod errors;
pub mod execute;
pub mod flow_state;
pub mod frame;
pub mod headers;
pub mod ipv4;
pub mod mss;
pub mod open;
pub mod parse;
pub mod pipeline;
pub mod reply;
pub mod select;
pub mod tables;
#[cfg(test)]
mod testing;
pub mod tunnel;
pub mod verdict;
