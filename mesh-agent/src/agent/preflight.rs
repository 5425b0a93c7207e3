//! The preconditions of a start. An error names the first one that is missing, and its remedy, in one line.
//! Reads only. The full examination is the doctor's.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use caps::{CapSet, Capability};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use tracing::warn;

use crate::{config::RunOptions, host_facts};

/// A precondition of the agent is missing.
#[derive(Debug, thiserror::Error)]
pub enum PreflightError {
    /// A capability is missing.
    #[error(
        "the agent lacks {0}: run it as root, or give it the capability (cap_add in the stack file, \
         AmbientCapabilities= in the unit)"
    )]
    Capability(&'static str),
    /// The process's capabilities cannot be read.
    #[error("cannot read the agent's own capabilities; is /proc mounted?")]
    ReadCapabilities(#[source] caps::errors::CapsError),
    /// No bpf file system.
    #[error(
        "no bpf file system is mounted at {} (--bpffs): run 'mount -t bpf bpf {}' on the host",
        .0.display(), .0.display()
    )]
    Bpffs(PathBuf),
    /// Another agent programs this kernel.
    #[error(
        "another agent is running on this node (it locks {}): stop it first, or give this one other folders \
         (--admin-socket, --bpffs)", .0.display()
    )]
    AlreadyRunning(PathBuf),
    /// The lock cannot be taken.
    #[error("cannot lock {} (--admin-socket, --bpffs)", path.display())]
    Lock {
        /// The folder.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The folder of the admin socket, which is locked, cannot be created.
    #[error("cannot create the folder of the admin socket (--admin-socket)")]
    Folder(#[from] crate::admin::ServerError),
    /// The given path is not a cgroup2 hierarchy.
    #[error(
        "{} is not a cgroup2 hierarchy (--cgroup): name one, or run 'mount -t cgroup2 none PATH'",
        .0.display()
    )]
    Cgroup(PathBuf),
    /// No cgroup2 anywhere.
    #[error(
        "no cgroup2 hierarchy is mounted: run 'mount -t cgroup2 none /sys/fs/cgroup/unified' on the host, or \
         name one that the mount table does not show with --cgroup"
    )]
    NoCgroup,
    /// The mount table cannot be read.
    #[error("cannot read the mount table /proc/self/mountinfo; is /proc mounted?")]
    MountTable(#[source] std::io::Error),
}

/// Held while an agent runs; the kernel releases it however the agent ends.
pub(super) type Lock = Flock<File>;

/// What eBPF needs from the host.
pub(super) struct EbpfHost {
    /// The cgroup2 hierarchy to attach to.
    pub(super) cgroup: PathBuf,
    /// Cookie of the agent's network namespace; `None` before Linux 5.14, where local processes cannot be
    /// distinguished from containers' and are not served.
    pub(super) netns_cookie: Option<u64>,
    /// Lock on the bpf file system.
    pub(super) lock: Lock,
}

/// Checks what every data path needs, and makes sure that this is the only agent.
///
/// # Errors
/// The first thing that is missing.
pub(super) fn preflight(options: &RunOptions) -> Result<Lock, PreflightError> {
    if !has(Capability::CAP_NET_ADMIN)? {
        return Err(PreflightError::Capability("CAP_NET_ADMIN"));
    }
    if !has(Capability::CAP_SYS_ADMIN)? {
        // To enter containers' network namespaces.
        return Err(PreflightError::Capability("CAP_SYS_ADMIN"));
    }
    lock_run_folder(&options.admin_socket)
}

/// Makes sure that no agent runs that uses this admin socket.
///
/// # Errors
/// When one does, or the socket's folder cannot be locked.
pub(super) fn lock_run_folder(admin_socket: &Path) -> Result<Lock, PreflightError> {
    lock(crate::admin::ensure_folder(admin_socket)?)
}

/// Checks what eBPF needs in addition, and finds what the options do not specify. `held` is the lock from an
/// earlier call.
///
/// # Errors
/// The first thing that is missing.
pub(super) fn ebpf_host(options: &RunOptions, held: Option<Lock>) -> Result<EbpfHost, PreflightError> {
    // Before Linux 5.8 there is no CAP_BPF; CAP_SYS_ADMIN includes it.
    if !has(Capability::CAP_SYS_ADMIN)? && !has(Capability::CAP_BPF)? {
        return Err(PreflightError::Capability("CAP_BPF"));
    }
    let is_bpffs = statfs(&options.bpffs).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC);
    if !is_bpffs {
        return Err(PreflightError::Bpffs(options.bpffs.clone()));
    }
    let cgroup = find_cgroup(options)?;
    let lock = match held {
        Some(lock) => lock,
        None => lock(&options.bpffs)?,
    };
    let netns_cookie = host_facts::own_netns_cookie()
        .inspect_err(|error| {
            warn!(
                %error,
                "the kernel has no cookies for network namespaces (Linux 5.14 has): processes of this node \
                 cannot reach published ports on its own addresses"
            );
        })
        .ok();
    Ok(EbpfHost {
        cgroup,
        netns_cookie,
        lock,
    })
}

fn has(capability: Capability) -> Result<bool, PreflightError> {
    caps::has_cap(None, CapSet::Effective, capability).map_err(PreflightError::ReadCapabilities)
}

/// The configured cgroup2 hierarchy, or else the one in the mount table.
///
/// # Errors
/// When there is none.
pub(super) fn find_cgroup(options: &RunOptions) -> Result<PathBuf, PreflightError> {
    match &options.cgroup {
        Some(path) if host_facts::is_cgroup2(path) => Ok(path.clone()),
        Some(path) => Err(PreflightError::Cgroup(path.clone())),
        None => host_facts::find_cgroup2()
            .map_err(PreflightError::MountTable)?
            .ok_or(PreflightError::NoCgroup),
    }
}

/// Locks a folder that a running agent holds locked.
///
/// # Errors
/// When an agent does, or the folder cannot be opened.
pub(super) fn lock(path: &Path) -> Result<Lock, PreflightError> {
    let failed = |source| PreflightError::Lock {
        path: path.to_owned(),
        source,
    };
    let folder = File::open(path).map_err(failed)?;
    Flock::lock(folder, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        Errno::EWOULDBLOCK => PreflightError::AlreadyRunning(path.to_owned()),
        error => failed(error.into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_agent_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let first = lock(folder.path()).unwrap();
        assert!(matches!(
            lock(folder.path()),
            Err(PreflightError::AlreadyRunning(_))
        ));
        drop(first);
        lock(folder.path()).unwrap();
    }
}
