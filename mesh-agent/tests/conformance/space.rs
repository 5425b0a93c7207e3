//! Network namespaces that a test enters and leaves, and the process's own corner of the machine. Knows
//! nothing of the mesh.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use mesh_support::{
    command,
    namespace::{Namespace, disable_ipv6, mount_new, sysctl, unshare_mounts},
};

/// A network namespace with a `/run/mesh` and a bpf file system of its own. It ends with this value and
/// the last socket in it.
pub(crate) struct Space {
    pub(crate) name: String,
    namespace: Namespace,
}

impl Space {
    /// Makes one, without IPv6 (which would send packets of its own) and with its loopback up.
    pub(crate) fn new(name: &str) -> Result<Self> {
        let make = || -> Result<Namespace> {
            let namespace = Namespace::with_mounts()?;
            namespace.enter(|| -> Result<()> {
                fs::create_dir_all("/run/mesh").context("could not make /run/mesh")?;
                mount_new("tmpfs", Path::new("/run/mesh"))?;
                mount_new("bpf", Path::new("/sys/fs/bpf"))?;
                disable_ipv6()?;
                run("ip", &["link", "set", "lo", "up"])?;
                Ok(())
            })?;
            Ok(namespace)
        };
        Ok(Self {
            name: name.to_owned(),
            namespace: make().with_context(|| format!("could not make the namespace {name}"))?,
        })
    }

    /// Does something inside: sockets opened there stay there.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.namespace.enter(work)
    }

    /// Runs a program inside and returns its output.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        self.enter(|| run(program, arguments))
            .with_context(|| format!("in {}", self.name))
    }

    /// The same with arguments separated by blanks.
    pub(crate) fn say(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let program = words.next().context("an empty command")?;
        self.run(program, &words.collect::<Vec<_>>())
    }

    /// Runs a program inside that reads a script.
    pub(crate) fn feed(&self, program: &str, arguments: &[&str], script: &str) -> Result<String> {
        self.enter(|| command::output(program, arguments, script))
            .with_context(|| format!("in {}", self.name))
    }

    /// Writes a setting below `/proc/sys/net`.
    pub(crate) fn set(&self, setting: &str, value: &str) -> Result<()> {
        self.enter(|| sysctl(&format!("net/{setting}"), value))
            .with_context(|| format!("in {}", self.name))
    }

    /// A path by which other processes find the network namespace.
    pub(crate) fn network_path(&self) -> String {
        self.namespace.path()
    }
}

/// Runs a program in this thread's namespaces and returns its output.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<String> {
    Ok(command::output(program, arguments, "")?)
}

/// The control group this process moves into: hooks on it see the suite's sockets only.
pub(crate) struct Corner {
    pub(crate) cgroup: PathBuf,
    home: PathBuf,
}

impl Corner {
    /// Gives this process mounts of its own, with a hierarchy of control groups in them. To be called
    /// before any thread is started.
    pub(crate) fn new() -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!("this suite makes network namespaces and programs their packet paths: run it as root");
        }
        unshare_mounts().context("could not make mounts of our own")?;
        mount_new("tmpfs", Path::new("/run"))?;
        let root = Path::new("/run/cgroup2");
        fs::create_dir(root)?;
        mount_new("cgroup2", root)?;
        fs::create_dir_all("/sys/fs/bpf").context("this kernel has no /sys/fs/bpf")?;
        let table = fs::read_to_string("/proc/self/cgroup").context("could not read /proc/self/cgroup")?;
        let own = table
            .lines()
            .find_map(|line| line.strip_prefix("0::/"))
            .context("this process is in no cgroup of the second version")?;
        let corner = Self {
            cgroup: root.join(format!("mesh-conformance-{}", std::process::id())),
            home: root.join(own),
        };
        fs::create_dir(&corner.cgroup)
            .with_context(|| format!("could not make the cgroup {}", corner.cgroup.display()))?;
        move_to(&corner.cgroup)?;
        Ok(corner)
    }
}

impl Drop for Corner {
    fn drop(&mut self) {
        let removed = move_to(&self.home)
            .and_then(|()| fs::remove_dir(&self.cgroup).context("could not remove the suite's cgroup"));
        if let Err(error) = removed {
            eprintln!("{error:#}");
        }
    }
}

fn move_to(cgroup: &Path) -> Result<()> {
    fs::write(cgroup.join("cgroup.procs"), "0")
        .with_context(|| format!("could not move into the cgroup {}", cgroup.display()))
}
