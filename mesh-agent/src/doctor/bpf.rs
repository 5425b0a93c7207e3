//! `bpf(2)` probes for what the running kernel supports. Loads programs of a few instructions and closes them at
//! once; attaches nothing.

use std::{
    io, mem,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    ptr,
};

// Numbers of the kernel's UAPI, linux/bpf.h.
const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_LINK_CREATE: libc::c_long = 28;

const BPF_MAP_TYPE_LRU_HASH: u32 = 9;

/// A program to load as a test: its type, its attach type, and the helper that it calls.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probe {
    program_type: u32,
    attach_type: u32,
    helper: Option<u32>,
    verdict: u32,
}

impl Probe {
    /// XDP; returns `XDP_PASS`.
    pub(super) const XDP: Self = Self::new(6, 0, 2);
    /// tc; returns `TC_ACT_OK`.
    pub(super) const TC: Self = Self::new(3, 0, 0);
    /// tc calling `bpf_redirect_peer` (kernel 5.10).
    pub(super) const TC_REDIRECT_PEER: Self = Self::TC.calling(155);
    /// cgroup connect4 calling `bpf_get_netns_cookie` (kernel 5.7).
    pub(super) const NETNS_COOKIE: Self = Self::CONNECT4.calling(122);
    /// cgroup connect4 (kernel 4.17).
    pub(super) const CONNECT4: Self = Self::new(18, 10, 1);
    /// cgroup sendmsg4 (kernel 4.18).
    pub(super) const SENDMSG4: Self = Self::new(18, 14, 1);
    /// cgroup recvmsg4 (kernel 5.2).
    pub(super) const RECVMSG4: Self = Self::new(18, 19, 1);
    /// cgroup getpeername4 (kernel 5.8).
    pub(super) const GETPEERNAME4: Self = Self::new(18, 29, 1);

    const fn new(program_type: u32, attach_type: u32, verdict: u32) -> Self {
        Self {
            program_type,
            attach_type,
            helper: None,
            verdict,
        }
    }

    const fn calling(self, helper: u32) -> Self {
        Self {
            helper: Some(helper),
            ..self
        }
    }

    /// Loads the program.
    ///
    /// # Errors
    /// The kernel's error: `EPERM` without the capability, `EINVAL` for anything it does not support.
    pub(super) fn load(self) -> io::Result<OwnedFd> {
        let mut instructions = Vec::new();
        if let Some(helper) = self.helper {
            // r1 holds the context for helpers that take one; bpf_redirect_peer takes (interface, flags).
            if self.program_type == Self::TC.program_type {
                instructions.push(instruction(0xb7, 1, 1));
            }
            instructions.push(instruction(0xb7, 2, 0));
            instructions.push(instruction(0x85, 0, helper));
        }
        instructions.push(instruction(0xb7, 0, self.verdict));
        instructions.push(instruction(0x95, 0, 0));
        let attributes = ProgramLoad {
            program_type: self.program_type,
            instruction_count: instructions.len() as u32,
            instructions: instructions.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            expected_attach_type: self.attach_type,
            ..ProgramLoad::default()
        };
        create(BPF_PROG_LOAD, &attributes)
    }
}

/// Creates a small LRU hash map (kernel 4.10).
///
/// # Errors
/// The kernel's error.
pub(super) fn create_lru_hash() -> io::Result<OwnedFd> {
    let attributes = MapCreate {
        map_type: BPF_MAP_TYPE_LRU_HASH,
        key_size: 4,
        value_size: 4,
        max_entries: 1,
        ..MapCreate::default()
    };
    create(BPF_MAP_CREATE, &attributes)
}

/// Whether the kernel has tcx (6.6). Attaches nothing: for a link to an interface that cannot exist, a kernel with
/// tcx returns `ENODEV`, one without it `EINVAL`.
///
/// # Errors
/// When the tc program does not load.
pub(super) fn has_tcx() -> io::Result<bool> {
    const BPF_TCX_INGRESS: u32 = 46;
    let program = Probe::TC.load()?;
    let attributes = LinkCreate {
        program: program.as_raw_fd() as u32,
        interface: 0,
        attach_type: BPF_TCX_INGRESS,
        ..LinkCreate::default()
    };
    Ok(create(BPF_LINK_CREATE, &attributes).is_err_and(|error| error.raw_os_error() == Some(libc::ENODEV)))
}

/// Whether the kernel compiled the program to machine code.
///
/// # Errors
/// The kernel's error.
pub(super) fn is_jited(program: &OwnedFd) -> io::Result<bool> {
    let mut info = ProgramInfo::default();
    let attributes = InfoByFd {
        fd: program.as_raw_fd() as u32,
        length: mem::size_of::<ProgramInfo>() as u32,
        info: ptr::from_mut(&mut info) as u64,
    };
    call(BPF_OBJ_GET_INFO_BY_FD, &attributes)?;
    Ok(info.jited_length > 0)
}

fn create<T: Attributes>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    let fd = call(command, attributes)?;
    // SAFETY: the commands this is called with return a descriptor that nobody else owns, and `call`
    // has turned every negative value into an error.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn call<T: Attributes>(command: libc::c_long, attributes: &T) -> io::Result<i32> {
    // SAFETY: `T` is one of the `repr(C)` types below, a prefix of the kernel's `union bpf_attr` without
    // implicit padding, and its true size is passed. The addresses in it are of values that its makers
    // above keep alive over the call, each with the length that the attributes state; the kernel writes
    // through none but `InfoByFd::info`, made from a mutable reference.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            ptr::from_ref(attributes),
            mem::size_of::<T>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(io::Error::other)
}

/// `struct bpf_insn` for little-endian machines, as a number.
fn instruction(code: u8, destination: u8, immediate: u32) -> u64 {
    u64::from(code) | u64::from(destination & 0xf) << 8 | u64::from(immediate) << 32
}

/// Types that are a prefix of `union bpf_attr`.
trait Attributes {}

#[repr(C)]
#[derive(Default)]
struct ProgramLoad {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach_type: u32,
}
impl Attributes for ProgramLoad {}
const _: () = assert!(mem::size_of::<ProgramLoad>() == 72);

#[repr(C)]
#[derive(Default)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}
impl Attributes for MapCreate {}
const _: () = assert!(mem::size_of::<MapCreate>() == 20);

#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    program: u32,
    interface: u32,
    attach_type: u32,
    flags: u32,
}
impl Attributes for LinkCreate {}
const _: () = assert!(mem::size_of::<LinkCreate>() == 16);

#[repr(C)]
struct InfoByFd {
    fd: u32,
    length: u32,
    info: u64,
}
impl Attributes for InfoByFd {}
const _: () = assert!(mem::size_of::<InfoByFd>() == 16);

/// The first fields of `struct bpf_prog_info`; the kernel fills as much as fits.
#[repr(C)]
#[derive(Default)]
struct ProgramInfo {
    program_type: u32,
    id: u32,
    tag: [u8; 8],
    jited_length: u32,
    translated_length: u32,
}
const _: () = assert!(mem::size_of::<ProgramInfo>() == 24);

#[cfg(test)]
mod tests {
    use super::*;

    /// Needs root (CAP_BPF and CAP_NET_ADMIN) and a kernel of 5.10 or newer.
    #[test]
    fn this_kernel_accepts_every_probe() {
        for probe in [
            Probe::XDP,
            Probe::TC,
            Probe::TC_REDIRECT_PEER,
            Probe::NETNS_COOKIE,
            Probe::CONNECT4,
            Probe::SENDMSG4,
            Probe::RECVMSG4,
            Probe::GETPEERNAME4,
        ] {
            probe
                .load()
                .unwrap_or_else(|error| panic!("{probe:?} (needs root): {error}"));
        }
        create_lru_hash().unwrap();
    }

    /// Needs root.
    #[test]
    fn unknown_helpers_and_attach_types_are_refused() {
        let unknown_helper = Probe::TC.calling(100_000);
        assert_eq!(
            unknown_helper.load().unwrap_err().raw_os_error(),
            Some(libc::EINVAL)
        );
        let unknown_hook = Probe::new(18, 9_999, 1);
        assert_eq!(
            unknown_hook.load().unwrap_err().raw_os_error(),
            Some(libc::EINVAL)
        );
    }
}
