//! The data path without eBPF: the kernel's IPVS, programmed over netlink.

pub mod kernel;
pub mod netlink;
