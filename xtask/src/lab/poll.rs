//! An XDP program that passes everything, at the wire's end of each veth.
//!
//! A veth hands what XDP sends out of it (`XDP_TX`, `XDP_REDIRECT`) to its peer only when an XDP program is on
//! the peer as well (`veth_xdp_flush`, drivers/net/veth.c); otherwise the frames lie in a ring until
//! something else wakes it. A real NIC has no such need. Depends on `space`.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
    thread,
};

use anyhow::{Context, Result, anyhow};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use super::{space::enter_network, state::SpaceRecord};
use crate::command::run;

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_PROG_TYPE_XDP: u32 = 6;
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

/// The part of `union bpf_attr` that pins an object.
#[repr(C)]
#[derive(Default)]
struct PinAttributes {
    path: u64,
    descriptor: u32,
    flags: u32,
}

/// Puts the program on devices of a space. It goes with the device.
///
/// # Errors
/// When the kernel refuses a step.
pub(super) fn pass_all(space: &SpaceRecord, devices: &[&str]) -> Result<()> {
    thread::scope(|scope| {
        scope
            .spawn(|| attach(space, devices))
            .join()
            .map_err(|_| anyhow!("the thread that attaches XDP to the wire panicked"))?
    })
}

/// `ip` takes a pinned program only, so it is pinned on a bpf file system that nobody but this thread
/// (and the `ip` it starts) sees, and that is gone with the thread.
fn attach(space: &SpaceRecord, devices: &[&str]) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("could not get mounts of our own")?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("could not make mounts private")?;
    let directory = Path::new("/run");
    mount(Some("bpf"), directory, Some("bpf"), MsFlags::empty(), none)
        .context("could not mount a bpf file system")?;
    let program = load().context("could not load an XDP program that passes everything")?;
    let pin = directory.join("pass");
    pin_at(&program, &pin).context("could not pin it")?;
    for device in devices {
        let pin = pin.to_string_lossy();
        run(&mut enter_network(
            space,
            ["ip", "link", "set", "dev", device, "xdp", "pinned", &pin],
        ))?;
    }
    Ok(())
}

fn load() -> io::Result<OwnedFd> {
    let license = c"GPL";
    let mut attributes = LoadAttributes {
        program_type: BPF_PROG_TYPE_XDP,
        instruction_count: PASS.len() as u32,
        instructions: PASS.as_ptr() as u64,
        license: license.as_ptr() as u64,
        ..LoadAttributes::default()
    };
    let size = size_of::<LoadAttributes>();
    // SAFETY: the attributes and what they point to (two instructions, a C string) outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw mut attributes, size) };
    let descriptor = i32::try_from(result).ok().filter(|descriptor| *descriptor >= 0);
    // SAFETY: the kernel has just made this descriptor, and nobody else has it.
    descriptor
        .map(|descriptor| unsafe { OwnedFd::from_raw_fd(descriptor) })
        .ok_or_else(io::Error::last_os_error)
}

fn pin_at(program: &OwnedFd, path: &Path) -> Result<()> {
    let path = CString::new(path.to_string_lossy().into_owned())?;
    let mut attributes = PinAttributes {
        path: path.as_ptr() as u64,
        descriptor: program.as_raw_fd() as u32,
        ..Default::default()
    };
    let size = size_of::<PinAttributes>();
    // SAFETY: the attributes and the path outlive the call.
    match unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_PIN, &raw mut attributes, size) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error().into()),
    }
}
