//! An XDP program that passes everything, for the wire's ends of veths. Depends on nothing.
//!
//! A veth hands what XDP sends out of it (`XDP_TX`) to its peer only when an XDP program is on the peer as well
//! (`veth_xdp_flush`, drivers/net/veth.c); otherwise the frames lie in a ring until something else wakes it.
//! A real NIC has no such need.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
/// `r0 = XDP_PASS; exit`.
const PASS: [u64; 2] = [0x0000_0002_0000_00b7, 0x0000_0000_0000_0095];

/// The part of `union bpf_attr` that loads a program (`linux/bpf.h`).
#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
}

/// The part that attaches a program by a link.
#[repr(C)]
#[derive(Default)]
struct LinkAttributes {
    program: u32,
    interface: u32,
    attach_type: u32,
    flags: u32,
}

/// Puts the program on an interface of this thread's network namespace, for as long as the value lives.
pub(crate) fn pass_all(interface: u32) -> io::Result<OwnedFd> {
    let license = c"GPL";
    let mut load = LoadAttributes {
        program_type: BPF_PROG_TYPE_XDP,
        instruction_count: PASS.len() as u32,
        instructions: PASS.as_ptr() as u64,
        license: license.as_ptr() as u64,
        ..LoadAttributes::default()
    };
    let program = bpf(BPF_PROG_LOAD, &mut load)?;
    let mut link = LinkAttributes {
        program: program.as_raw_fd() as u32,
        interface,
        attach_type: BPF_XDP,
        flags: 0,
    };
    bpf(BPF_LINK_CREATE, &mut link)
}

/// Both commands read a `T` whose pointers, if it has any, are to statics, and make a descriptor.
fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the attributes outlive the call, and their size is given; what they point to is static.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<T>()) };
    let descriptor = i32::try_from(result).ok().filter(|descriptor| *descriptor >= 0);
    // SAFETY: the kernel has just made this descriptor, and nobody else has it.
    descriptor
        .map(|descriptor| unsafe { OwnedFd::from_raw_fd(descriptor) })
        .ok_or_else(io::Error::last_os_error)
}
