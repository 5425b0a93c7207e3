//! The data path without eBPF: the kernel's IPVS, programmed over netlink.

pub mod address;
pub mod netlink;
pub mod rules;
pub mod tunnel;
