//! Probes of the kernel: program types, hooks, helpers, maps, and the file systems that hold them.

use std::{fs, io, path::Path};

use nix::sys::statfs::{BPF_FS_MAGIC, CGROUP2_SUPER_MAGIC, FsType, statfs};

use super::{
    Check, Options, Outcome,
    bpf::{self, Probe},
};

/// Names of the checks that the conclusion looks at.
pub(super) mod name {
    pub(crate) const XDP: &str = "XDP programs";
    pub(crate) const TC: &str = "tc programs";
    pub(crate) const TCX: &str = "tcx attachment";
    pub(crate) const CGROUP_HOOKS: &str = "cgroup hooks";
}

const BPF_PERMISSION: &str =
    "run the agent as root with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (kernels before 5.8: CAP_SYS_ADMIN)";

/// Everything that the kernel alone decides.
pub(super) fn checks(options: &Options) -> Vec<Check> {
    vec![
        release(),
        syscall(),
        tc(),
        redirect_peer(),
        lru_hash(),
        xdp(),
        tcx(),
        jit(),
        btf(),
        cgroup_hooks(),
        cgroup2(options),
        netns_cookie(),
        bpffs(options),
    ]
}

/// The place of the cgroup2 hierarchy in a mount table in the form of `/proc/self/mounts`.
fn find_cgroup2(mounts: &str) -> Option<&str> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_device, place, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then_some(place)
    })
}

fn release() -> Check {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    Check::ok("kernel", release.trim())
}

fn syscall() -> Check {
    let name = "bpf system call";
    match Probe::TC.load() {
        Ok(_) => Check::ok(name, "programs may be loaded"),
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Check::fail(
            name,
            "the kernel has no bpf system call",
            "boot a kernel with CONFIG_BPF_SYSCALL=y",
        ),
        Err(error) => refused(name, &error, "boot a kernel with CONFIG_BPF_SYSCALL=y"),
    }
}

fn tc() -> Check {
    let remedy = "boot a kernel with CONFIG_NET_CLS_BPF and CONFIG_NET_SCH_INGRESS";
    loads(name::TC, Probe::TC, Outcome::Fail, remedy)
}

fn redirect_peer() -> Check {
    let remedy = "boot Linux 5.10 or newer: packets reach containers by this helper";
    loads(
        "bpf_redirect_peer",
        Probe::TC_REDIRECT_PEER,
        Outcome::Fail,
        remedy,
    )
}

fn lru_hash() -> Check {
    let name = "LRU hash maps";
    match bpf::create_lru_hash() {
        Ok(_) => Check::ok(name, "flows can be kept"),
        Err(error) => refused(name, &error, "boot Linux 4.10 or newer"),
    }
}

fn xdp() -> Check {
    let remedy = "optional: Linux 4.8 or newer has XDP; tc carries everything without it";
    loads(name::XDP, Probe::XDP, Outcome::Warn, remedy)
}

fn tcx() -> Check {
    match bpf::has_tcx() {
        Ok(true) => Check::ok(name::TCX, "tc programs are attached by tcx links"),
        Ok(false) => Check::warn(
            name::TCX,
            "not in this kernel: the clsact qdisc is used",
            "optional: Linux 6.6 or newer has tcx",
        ),
        Err(error) => refused(name::TCX, &error, "see the check of tc programs"),
    }
}

fn jit() -> Check {
    let name = "BPF JIT";
    match Probe::TC.load().and_then(|program| bpf::is_jited(&program)) {
        Ok(true) => Check::ok(name, "programs run as machine code"),
        Ok(false) => Check::warn(
            name,
            "off: programs are interpreted, several times slower",
            "sysctl -w net.core.bpf_jit_enable=1",
        ),
        Err(error) => Check::warn(name, format!("cannot be told: {error}"), BPF_PERMISSION),
    }
}

fn btf() -> Check {
    let path = Path::new("/sys/kernel/btf/vmlinux");
    if path.exists() {
        return Check::ok("BTF", path.display().to_string());
    }
    Check::warn(
        "BTF",
        format!("{} is missing", path.display()),
        "optional: a kernel with CONFIG_DEBUG_INFO_BTF=y lets bpftool show the maps by name of field",
    )
}

fn cgroup_hooks() -> Check {
    let hooks = [
        ("connect4", Probe::CONNECT4, "4.17"),
        ("sendmsg4", Probe::SENDMSG4, "4.18"),
        ("recvmsg4", Probe::RECVMSG4, "5.2"),
        ("getpeername4", Probe::GETPEERNAME4, "5.8"),
    ];
    for (hook, probe, since) in hooks {
        if let Err(error) = probe.load() {
            return Check::warn(
                name::CGROUP_HOOKS,
                format!("{hook} is refused: {error}"),
                format!("boot Linux {since} or newer with CONFIG_CGROUP_BPF=y"),
            );
        }
    }
    let names = hooks.map(|(hook, ..)| hook).join(", ");
    Check::ok(name::CGROUP_HOOKS, names)
}

fn cgroup2(options: &Options) -> Check {
    let name = "cgroup2 mount";
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let found = options
        .cgroup
        .clone()
        .or_else(|| find_cgroup2(&mounts).map(Into::into));
    let remedy = "mount -t cgroup2 none /sys/fs/cgroup/unified, or name it by --cgroup; in a container, \
                  bind-mount the host's cgroup2";
    match found {
        None => Check::fail(name, "not in the mount table", remedy),
        Some(path) if is_filesystem(&path, CGROUP2_SUPER_MAGIC) => {
            Check::ok(name, path.display().to_string())
        }
        Some(path) => Check::fail(name, format!("{} is no cgroup2", path.display()), remedy),
    }
}

fn netns_cookie() -> Check {
    // The socket option and the helper must agree: both name a network namespace by its cookie.
    let name = "network namespace cookie";
    let remedy = "boot Linux 5.14 or newer";
    match (Probe::NETNS_COOKIE.load(), own_netns_cookie()) {
        (Ok(_), Ok(cookie)) => Check::ok(name, format!("SO_NETNS_COOKIE is {cookie}")),
        (Err(error), _) => Check::warn(name, format!("bpf_get_netns_cookie is refused: {error}"), remedy),
        (_, Err(error)) => Check::warn(name, format!("SO_NETNS_COOKIE is refused: {error}"), remedy),
    }
}

fn bpffs(options: &Options) -> Check {
    let path = &options.bpffs;
    if is_filesystem(path, BPF_FS_MAGIC) {
        return Check::ok("bpffs mount", path.display().to_string());
    }
    Check::fail(
        "bpffs mount",
        format!("{} is no bpf file system", path.display()),
        format!(
            "mount -t bpf bpf {}; in a container, bind-mount the host's",
            path.display()
        ),
    )
}

fn is_filesystem(path: &Path, kind: FsType) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == kind)
}

fn loads(name: &'static str, probe: Probe, otherwise: Outcome, remedy: &str) -> Check {
    match probe.load() {
        Ok(_) => Check::ok(name, "the kernel takes them"),
        Err(error) => Check {
            outcome: otherwise,
            ..refused(name, &error, remedy)
        },
    }
}

fn refused(name: &'static str, error: &io::Error, remedy: &str) -> Check {
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied => BPF_PERMISSION,
        _ => remedy,
    };
    Check::fail(name, format!("the kernel refuses: {error}"), remedy)
}

/// The cookie of this thread's network namespace.
///
/// # Errors
/// When the kernel has none to tell (before Linux 5.14).
pub fn own_netns_cookie() -> io::Result<u64> {
    use std::os::fd::AsRawFd;
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the descriptor is open for as long as `socket` lives; `cookie` and `length` are live and
    // `length` is the true size of `cookie`, so the kernel writes inside it.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup2_is_found_beside_version_1() {
        let mounts = "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n";
        assert_eq!(find_cgroup2(mounts), Some("/sys/fs/cgroup/unified"));
        assert_eq!(find_cgroup2("proc /proc proc rw 0 0\n"), None);
    }

    #[test]
    fn a_folder_that_is_no_bpffs_fails_with_the_mount_command() {
        let folder = tempfile::tempdir().unwrap();
        let options = Options {
            bpffs: folder.path().to_owned(),
            ..Options::default()
        };
        let check = bpffs(&options);
        assert_eq!(check.outcome, Outcome::Fail);
        assert!(check.remedy.starts_with("mount -t bpf bpf /"), "{}", check.remedy);
    }

    #[test]
    fn a_refusal_for_lack_of_permission_names_the_capabilities() {
        let error = io::Error::from_raw_os_error(libc::EPERM);
        assert_eq!(refused("x", &error, "other").remedy, BPF_PERMISSION);
        let error = io::Error::from_raw_os_error(libc::EINVAL);
        assert_eq!(refused("x", &error, "other").remedy, "other");
    }
}
