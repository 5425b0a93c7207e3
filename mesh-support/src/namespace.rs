//! Network namespaces without a name, entered by threads that end right afterwards: no thread that does other
//! work ever changes its namespace.

use std::{
    fs::{self, File},
    io,
    os::fd::AsRawFd,
    panic::resume_unwind,
    path::Path,
    thread,
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};

/// A network namespace, and mounts where it was made with them. It ends with this value and the last socket
/// in it.
#[derive(Debug)]
pub struct Namespace {
    network: File,
    mounts: Option<File>,
}

impl Namespace {
    /// Makes one that shares this process's mounts.
    ///
    /// # Errors
    /// When the kernel refuses, e.g. without root.
    pub fn new() -> io::Result<Self> {
        in_new_network(|| {
            Ok(Self {
                network: File::open("/proc/thread-self/ns/net")?,
                mounts: None,
            })
        })?
    }

    /// Makes one with mounts of its own.
    ///
    /// # Errors
    /// When the kernel refuses, e.g. without root.
    pub fn with_mounts() -> io::Result<Self> {
        in_new_network_and_mounts(|| {
            Ok(Self {
                network: File::open("/proc/thread-self/ns/net")?,
                mounts: Some(File::open("/proc/thread-self/ns/mnt")?),
            })
        })?
    }

    /// Does something inside: sockets opened there stay there.
    ///
    /// # Panics
    /// When the namespace cannot be entered.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        in_a_thread(|| {
            if let Some(mounts) = &self.mounts {
                // Only a thread that shares no file system state with others can enter mounts.
                unshare(CloneFlags::CLONE_FS).expect("a thread can stop sharing its working directory");
                setns(mounts, CloneFlags::CLONE_NEWNS).expect("the mounts can be entered");
            }
            setns(&self.network, CloneFlags::CLONE_NEWNET).expect("the network can be entered");
            work()
        })
    }

    /// A path by which other processes find the network namespace, as `ip link set … netns` takes it.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.network.as_raw_fd())
    }
}

/// Does something in a new network namespace, which ends with it and the last socket in it.
///
/// # Errors
/// When the kernel refuses to make one, e.g. without root.
pub fn in_new_network<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    in_a_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        Ok(work())
    })
}

/// Does something in a new network namespace and with mounts that no one else sees.
///
/// # Errors
/// When the kernel refuses to make them, e.g. without root.
pub fn in_new_network_and_mounts<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    in_a_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        unshare_mounts()?;
        Ok(work())
    })
}

/// Does something with mounts that no one else sees.
///
/// # Errors
/// When the kernel refuses to make them, e.g. without root.
pub fn in_new_mounts<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    in_a_thread(|| {
        unshare_mounts()?;
        Ok(work())
    })
}

/// Gives the calling thread mounts that no one else sees; of a process's main thread, before it starts
/// others, the whole process.
///
/// # Errors
/// When the kernel refuses, e.g. without root.
pub fn unshare_mounts() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    Ok(())
}

/// Mounts a new file system of a kind that needs no device (`tmpfs`, `bpf`, `cgroup2`).
///
/// # Errors
/// When the kernel refuses; the kind and the path are in the message.
pub fn mount_new(kind: &str, path: &Path) -> io::Result<()> {
    let none: Option<&str> = None;
    mount(Some(kind), path, Some(kind), MsFlags::empty(), none)
        .map_err(|error| io::Error::other(format!("could not mount a {kind} on {}: {error}", path.display())))
}

/// Turns IPv6, which sends packets by itself, off in the calling thread's network namespace, if the kernel
/// has it.
///
/// # Errors
/// When the setting cannot be written.
pub fn disable_ipv6() -> io::Result<()> {
    for scope in ["all", "default"] {
        let setting = format!("net/ipv6/conf/{scope}/disable_ipv6");
        if Path::new("/proc/sys").join(&setting).exists() {
            sysctl(&setting, "1")?;
        }
    }
    Ok(())
}

/// Writes a setting, of the calling thread's network namespace if it is one below `net/`.
///
/// # Errors
/// When it cannot be written; the name is in the message.
pub fn sysctl(name: &str, value: &str) -> io::Result<()> {
    fs::write(Path::new("/proc/sys").join(name), value)
        .map_err(|error| io::Error::other(format!("could not set {name} to {value}: {error}")))
}

fn in_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(work).join()).unwrap_or_else(|panic| resume_unwind(panic))
}
