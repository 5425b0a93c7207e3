//! An XDP program that passes everything, for the wire's ends of veths.
//!
//! A veth hands what XDP sends out of it (`XDP_TX`, `XDP_REDIRECT`) to its peer only when an XDP program is
//! on the peer as well (`veth_xdp_flush`, drivers/net/veth.c); otherwise the frames lie in a ring until
//! something else wakes it. A real NIC has no such need.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use crate::bpf::{self, Instruction};

const PROGRAM_TYPE_XDP: u32 = 6;
const ATTACH_TYPE_XDP: u32 = 37;
const XDP_PASS: u32 = 2;

/// Loads the program.
///
/// # Errors
/// The kernel's refusal.
pub fn load() -> io::Result<OwnedFd> {
    let instructions = [Instruction::set(0, XDP_PASS), Instruction::EXIT];
    bpf::load_program(PROGRAM_TYPE_XDP, 0, &instructions)
}

/// Attaches it to an interface of the calling thread's network namespace, until the link that is returned is
/// closed.
///
/// # Errors
/// The kernel's refusal.
pub fn attach(interface: u32) -> io::Result<OwnedFd> {
    bpf::create_link(load()?.as_fd(), interface, ATTACH_TYPE_XDP)
}
