//! Helpers that several crates of the mesh need. Imports none of them.

#[cfg(feature = "namespace")]
mod at_exit;
#[cfg(feature = "bpf")]
pub mod bpf;
#[cfg(feature = "namespace")]
pub mod command;
pub mod duration;
mod error;
#[cfg(feature = "namespace")]
pub mod namespace;
#[cfg(feature = "tun")]
pub mod tun;
#[cfg(feature = "watched")]
pub mod watched;
#[cfg(feature = "bpf")]
pub mod xdp_pass;

#[cfg(feature = "namespace")]
pub use at_exit::at_exit;
pub use error::error_chain;
