//! The kernel's IPVS itself. Needs root and a kernel with IPVS, so `cargo test` runs it only by name
//! (`--test ipvs`); `cargo xtask vm test` runs it in a virtual machine.

mod kernel;
