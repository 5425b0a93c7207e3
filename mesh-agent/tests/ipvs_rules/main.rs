//! What IPVS needs beside it, in this kernel: the nftables tables and the tunnel, with real packets.
//!
//! Each test has network namespaces of its own. Needs root, iproute2 and nftables; IPVS is not needed, its
//! part is played by sockets.

mod localhost;
mod space;
mod table;
mod tunnel;
mod walk;
