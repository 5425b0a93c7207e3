//! Checks of the kernel: program types, hooks, helpers, maps, and the file systems that hold them.

use std::{fs, io, path::Path};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::{
    Check, Options, Outcome,
    bpf::{self, Probe},
};
use crate::host_facts;

/// Names of the checks that the conclusion depends on.
pub(super) mod name {
    pub(crate) const XDP: &str = "XDP programs";
    pub(crate) const TC: &str = "tc programs";
    pub(crate) const TCX: &str = "tcx attachment";
    pub(crate) const CGROUP_HOOKS: &str = "cgroup hooks";
}

const BPF_PERMISSION: &str =
    "run the agent as root with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (kernels before 5.8: CAP_SYS_ADMIN)";

/// Every check that depends on the kernel alone.
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

fn release() -> Check {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    Check::ok("kernel", release.trim())
}

fn syscall() -> Check {
    let name = "bpf system call";
    match Probe::TC.load() {
        Ok(_) => Check::ok(name, "programs can be loaded"),
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
    let remedy = "boot Linux 5.10 or newer: packets reach containers through this helper";
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
        Ok(_) => Check::ok(name, "flow tables can be created"),
        Err(error) => refused(name, &error, "boot Linux 4.10 or newer"),
    }
}

fn xdp() -> Check {
    let remedy = "optional: Linux 4.8 or newer has XDP; without it tc handles all traffic";
    loads(name::XDP, Probe::XDP, Outcome::Warn, remedy)
}

fn tcx() -> Check {
    match bpf::has_tcx() {
        Ok(true) => Check::ok(name::TCX, "tc programs are attached through tcx links"),
        Ok(false) => Check::warn(
            name::TCX,
            "not in this kernel: the clsact qdisc is used instead",
            "optional: Linux 6.6 or newer has tcx",
        ),
        Err(error) => refused(name::TCX, &error, "see the check 'tc programs'"),
    }
}

fn jit() -> Check {
    let name = "BPF JIT";
    match bpf::has_jit() {
        Ok(true) => Check::ok(name, "programs are compiled to machine code"),
        Ok(false) => Check::warn(
            name,
            "off: programs are interpreted, which is several times slower",
            "sysctl -w net.core.bpf_jit_enable=1",
        ),
        Err(error) => Check::warn(
            name,
            format!("cannot find out whether it is on: {error}"),
            BPF_PERMISSION,
        ),
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
        "optional: a kernel with CONFIG_DEBUG_INFO_BTF=y lets bpftool show map fields by name",
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
                format!("the kernel refuses {hook}: {error}"),
                format!("boot Linux {since} or newer with CONFIG_CGROUP_BPF=y"),
            );
        }
    }
    let names = hooks.map(|(hook, ..)| hook).join(", ");
    Check::ok(name::CGROUP_HOOKS, names)
}

fn cgroup2(options: &Options) -> Check {
    let name = "cgroup2 mount";
    let found = options
        .cgroup
        .clone()
        .or_else(|| host_facts::find_cgroup2().ok().flatten());
    let remedy = "mount -t cgroup2 none /sys/fs/cgroup/unified, or pass its path as --cgroup; in a container, \
                  bind-mount the host's cgroup2";
    match found {
        None => Check::fail(name, "none in the mount table", remedy),
        Some(path) if host_facts::is_cgroup2(&path) => Check::ok(name, path.display().to_string()),
        Some(path) => Check::fail(
            name,
            format!("{} is not a cgroup2 hierarchy", path.display()),
            remedy,
        ),
    }
}

fn netns_cookie() -> Check {
    // The socket option and the helper must agree: both name a network namespace by its cookie.
    let name = "network namespace cookie";
    let remedy = "boot Linux 5.14 or newer";
    match (Probe::NETNS_COOKIE.load(), host_facts::own_netns_cookie()) {
        (Ok(_), Ok(cookie)) => Check::ok(name, format!("SO_NETNS_COOKIE is {cookie}")),
        (Err(error), _) => Check::warn(
            name,
            format!("the kernel refuses bpf_get_netns_cookie: {error}"),
            remedy,
        ),
        (_, Err(error)) => Check::warn(
            name,
            format!("the kernel refuses SO_NETNS_COOKIE: {error}"),
            remedy,
        ),
    }
}

fn bpffs(options: &Options) -> Check {
    let path = &options.bpffs;
    if statfs(path).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC) {
        return Check::ok("bpffs mount", path.display().to_string());
    }
    Check::fail(
        "bpffs mount",
        format!("{} is not a bpf file system", path.display()),
        format!(
            "mount -t bpf bpf {}; in a container, bind-mount the host's",
            path.display()
        ),
    )
}

fn loads(name: &'static str, probe: Probe, otherwise: Outcome, remedy: &str) -> Check {
    match probe.load() {
        Ok(_) => Check::ok(name, "the kernel accepts them"),
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
    Check::fail(name, format!("the kernel refuses it: {error}"), remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_not_a_bpffs_fails_with_the_mount_command() {
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
    fn a_permission_error_names_the_capabilities() {
        let error = io::Error::from_raw_os_error(libc::EPERM);
        assert_eq!(refused("x", &error, "other").remedy, BPF_PERMISSION);
        let error = io::Error::from_raw_os_error(libc::EINVAL);
        assert_eq!(refused("x", &error, "other").remedy, "other");
    }
}
