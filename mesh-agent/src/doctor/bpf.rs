//! `bpf(2)` probes for what the running kernel supports. Loads programs of a few instructions and closes them
//! at once; attaches nothing.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use mesh_support::bpf::{self, Instruction};

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
                instructions.push(Instruction::set(1, 1));
            }
            instructions.push(Instruction::set(2, 0));
            instructions.push(Instruction::call(helper));
        }
        instructions.push(Instruction::set(0, self.verdict));
        instructions.push(Instruction::EXIT);
        bpf::load_program(self.program_type, self.attach_type, &instructions)
    }
}

/// Creates a small LRU hash map (kernel 4.10).
///
/// # Errors
/// The kernel's error.
pub(super) fn create_lru_hash() -> io::Result<OwnedFd> {
    const MAP_TYPE_LRU_HASH: u32 = 9;
    bpf::create_map(MAP_TYPE_LRU_HASH, 4, 4, 1)
}

/// Whether the kernel has tcx (6.6). Attaches nothing: for a link to an interface that cannot exist, a kernel
/// with tcx returns `ENODEV`, one without it `EINVAL`.
///
/// # Errors
/// When the tc program does not load.
pub(super) fn has_tcx() -> io::Result<bool> {
    const ATTACH_TYPE_TCX_INGRESS: u32 = 46;
    let program = Probe::TC.load()?;
    let refusal = bpf::create_link(program.as_fd(), 0, ATTACH_TYPE_TCX_INGRESS);
    Ok(refusal.is_err_and(|error| error.raw_os_error() == Some(libc::ENODEV)))
}

/// Whether the kernel compiles programs to machine code.
///
/// # Errors
/// When the tc program does not load, or the kernel does not describe it.
pub(super) fn has_jit() -> io::Result<bool> {
    bpf::is_jited(Probe::TC.load()?.as_fd())
}

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
