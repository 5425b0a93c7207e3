//! The kernel's IPVS as it really is. Needs root and a kernel that has IPVS, so that `cargo test` runs it by
//! name only (`--test ipvs`); `cargo xtask vm test` does, in a virtual machine.

mod kernel;
