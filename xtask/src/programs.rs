//! Every external program that the code or a test runs, with its Debian package and what needs it. Set-up
//! installs from this table, the test suite checks it before the first test, and `cargo xtask tidy` fails
//! where a program is run that is not in it. Data only, but for the look-up.

use std::path::Path;

use anyhow::{Result, bail};

use crate::command::exists;

/// What a program is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Compiling what runs on the host.
    Check,
    /// Building the eBPF programs and the static programs.
    Build,
    /// Bringing a lab up and driving it: the demo, the end-to-end tests, the measurements.
    Lab,
    /// The tests.
    Tests,
    /// Virtual machines, and what runs in one.
    Vm,
    /// The measurements.
    Bench,
}

use Need::{Bench, Build, Check, Lab, Tests, Vm};

/// A program of a Debian package.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// Its name on the path, or its path where it is in no folder for commands.
    pub name: &'static str,
    /// The Debian package that brings it.
    pub package: &'static str,
    /// What needs it.
    pub needs: &'static [Need],
}

const fn program(name: &'static str, package: &'static str, needs: &'static [Need]) -> Program {
    Program { name, package, needs }
}

/// What a program is run for everywhere: a lab, and whatever is tested or measured in one or in a virtual
/// machine.
const EVERYWHERE: &[Need] = &[Build, Lab, Tests, Vm, Bench];

/// The programs.
pub const PROGRAMS: &[Program] = &[
    // Compilers. Only `bpf-linker`'s build needs the one for C++.
    program("cc", "gcc", &[Check, Build]),
    program("c++", "g++", &[Build]),
    program("protoc", "protobuf-compiler", &[Check, Build]),
    program("llvm-objcopy-22", "llvm-22", &[Build]),
    // The engines and what they run themselves.
    program("dockerd", "docker.io", &[Lab]),
    program("docker", "docker.io", &[Lab]),
    program("containerd", "containerd", &[Lab]),
    program("ctr", "containerd", &[Lab]),
    program("runc", "runc", &[Lab]),
    program("iptables", "iptables", &[Lab, Bench]),
    program("busybox", "busybox-static", &[Lab]),
    // Networks and namespaces.
    program("ip", "iproute2", &[Lab, Tests, Bench]),
    program("tc", "iproute2", &[Tests]),
    program("bridge", "iproute2", &[Lab, Tests]),
    program("ethtool", "ethtool", &[Lab, Tests]),
    program("wg", "wireguard-tools", &[Lab]),
    program("wireguard-go", "wireguard-go", &[Lab]),
    program("nsenter", "util-linux", &[Lab]),
    program("unshare", "util-linux", &[Lab, Tests, Vm]),
    program("setsid", "util-linux", &[Lab]),
    program("setpriv", "util-linux", &[Vm]),
    program("mount", "mount", &[Lab, Tests, Vm]),
    program("hostname", "hostname", &[Lab]),
    program("iptables-save", "iptables", &[Tests]),
    program("iptables-restore", "iptables", &[Tests]),
    program("nft", "nftables", &[Tests, Bench]),
    program("ipvsadm", "ipvsadm", &[Tests, Vm]),
    program("bpftool", "bpftool", &[Tests]),
    program("sysctl", "procps", &[Tests, Vm, Bench]),
    // What tests run beside the mesh, or check its files with.
    program("etcd", "etcd-server", &[Tests]),
    program("etcdctl", "etcd-client", &[Tests]),
    program("docker-registry", "docker-registry", &[Tests]),
    program("promtool", "prometheus", &[Tests]),
    program("curl", "curl", &[Tests]),
    program("systemctl", "systemd", &[Tests]),
    program("systemd-analyze", "systemd", &[Tests]),
    program("/lib/systemd/systemd", "systemd", &[Tests]),
    // Virtual machines.
    program("qemu-system-x86_64", "qemu-system-x86", &[Vm]),
    program("depmod", "kmod", &[Vm]),
    program("modprobe", "kmod", &[Vm]),
    program("python3", "python3-venv", &[Vm]),
    // virtme-ng tells a kernel's version by it.
    program("file", "file", &[Vm]),
    program("umount", "mount", &[Vm]),
    program("findmnt", "util-linux", &[Vm]),
    program("mountpoint", "util-linux", &[Vm]),
    // What is measured beside the mesh.
    program("haproxy", "haproxy", &[Bench]),
    // Every Debian system has these.
    program("sh", "dash", EVERYWHERE),
    program("apt-get", "apt", &[Build]),
    program("apt-cache", "apt", &[Vm]),
    program("dpkg-deb", "dpkg", &[Vm]),
    program("dpkg-query", "dpkg", &[Build]),
    program("cat", "coreutils", EVERYWHERE),
    program("cp", "coreutils", &[Vm]),
    program("cut", "coreutils", &[Tests]),
    program("date", "coreutils", &[Vm]),
    program("echo", "coreutils", &[Tests]),
    program("env", "coreutils", &[Lab, Tests]),
    program("ls", "coreutils", &[Tests]),
    program("mkdir", "coreutils", EVERYWHERE),
    program("nice", "coreutils", &[Tests]),
    program("readlink", "coreutils", &[Tests]),
    program("rm", "coreutils", &[Lab]),
    program("sleep", "coreutils", EVERYWHERE),
    program("sort", "coreutils", &[Tests]),
    program("sync", "coreutils", &[Vm]),
    program("timeout", "coreutils", &[Tests]),
    program("touch", "coreutils", &[Vm]),
    program("true", "coreutils", EVERYWHERE),
    program("uname", "coreutils", &[Vm, Bench]),
    program("wc", "coreutils", &[Lab]),
    program("find", "findutils", &[Lab, Tests]),
    program("grep", "grep", &[Tests]),
    program("sed", "sed", &[Tests, Bench]),
];

/// Programs that come with Rust, by cargo or with pip: no Debian package brings them.
pub const OTHER_PROGRAMS: &[&str] = &["cargo", "rustup", "bpf-linker", "llvm-config-22", "vng", "pip"];

/// Debian packages that are needed for their files rather than for a program.
#[derive(Clone, Copy, Debug)]
pub struct Library {
    /// The package.
    pub package: &'static str,
    /// What needs it.
    pub needs: &'static [Need],
}

/// The packages without a program.
pub const LIBRARIES: &[Library] = &[
    // The definitions that etcd's protocol includes.
    Library {
        package: "libprotobuf-dev",
        needs: &[Check, Build],
    },
    // Environments of Python's.
    Library {
        package: "python3-venv",
        needs: &[Vm],
    },
];

/// Debian's Rust for eBPF, where rustup has no nightly with the standard library's source.
pub const EBPF_PACKAGES: &[&str] = &["rustc-web", "cargo-web", "rust-web-src"];

/// What bpf-linker is built with, where it is not installed.
pub const LINKER_PACKAGES: &[&str] = &["llvm-22-dev", "libzstd-dev", "libpolly-22-dev"];

impl Program {
    /// Whether one of the needs is among what needs it.
    #[must_use]
    pub fn is_needed(&self, needs: &[Need]) -> bool {
        self.needs.iter().any(|need| needs.contains(need))
    }

    /// Whether it is on this machine.
    #[must_use]
    pub fn is_present(&self) -> bool {
        if self.name.starts_with('/') {
            Path::new(self.name).exists()
        } else {
            exists(self.name)
        }
    }
}

/// The programs that are needed and are not on this machine.
pub fn missing(needs: &[Need]) -> impl Iterator<Item = &'static Program> {
    PROGRAMS
        .iter()
        .filter(move |program| program.is_needed(needs) && !program.is_present())
}

/// Fails where a program is missing.
///
/// # Errors
/// Names each program that is missing and its package.
pub fn check(needs: &[Need]) -> Result<()> {
    let missing: Vec<String> = missing(needs)
        .map(|program| format!("`{}` (Debian package {})", program.name, program.package))
        .collect();
    if !missing.is_empty() {
        bail!(
            "not installed: {}; `cargo xtask setup` installs all of them",
            missing.join(", ")
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_program_is_listed_twice() {
        let names: BTreeSet<&str> = PROGRAMS.iter().map(|program| program.name).collect();
        assert_eq!(names.len(), PROGRAMS.len());
    }

    #[test]
    fn a_program_that_is_not_installed_is_missing() {
        let absent = program("no-such-program", "no-such-package", &[Tests]);
        assert!(!absent.is_present() && absent.is_needed(&[Build, Tests]) && !absent.is_needed(&[Build]));
        assert!(program("sh", "dash", &[Tests]).is_present());
    }
}
