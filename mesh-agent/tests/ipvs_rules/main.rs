//! The nftables tables and the tunnel that IPVS needs, in this kernel and with real packets.
//!
//! Each test has network namespaces of its own. Needs root, iproute2 and nftables, but no IPVS: sockets stand
//! in for it.

mod localhost;
mod namespace;
mod probes;
mod table;
mod tunnel;
mod walk;
