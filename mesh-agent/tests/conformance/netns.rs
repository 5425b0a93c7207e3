//! The namespaces of nodes, containers and the client, and the cgroup of this process. Knows nothing of the
//! mesh.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use mesh_support::{
    command,
    namespace::{Namespace, disable_ipv6, mount_new, sysctl, unshare_mounts},
};

/// A network namespace with a `/run/mesh` and a bpf file system of its own. It is gone when this value and
/// the last socket in it are.
pub(crate) struct Netns {
    pub(crate) name: String,
    namespace: Namespace,
}

impl Netns {
    /// Makes one, without IPv6 (which would send packets of its own) and with loopback up.
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

    /// Runs `work` inside: sockets opened there stay there.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.namespace.enter(work)
    }

    /// Runs a program inside and returns its output.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        self.enter(|| run(program, arguments))
            .with_context(|| format!("in {}", self.name))
    }

    /// The same, from a command line without quotes.
    pub(crate) fn run_line(&self, line: &str) -> Result<String> {
        let mut arguments = line.split_whitespace();
        let program = arguments.next().context("an empty command")?;
        self.run(program, &arguments.collect::<Vec<_>>())
    }

    /// Runs a program inside, with a script on its standard input.
    pub(crate) fn run_with_input(&self, program: &str, arguments: &[&str], script: &str) -> Result<String> {
        self.enter(|| command::output(program, arguments, script))
            .with_context(|| format!("in {}", self.name))
    }

    /// Lets it have IPv6 addresses: those that it is given, and no more.
    pub(crate) fn enable_ipv6(&self) -> Result<()> {
        for (setting, value) in [
            ("default/accept_ra", "0"),
            ("default/addr_gen_mode", "1"),
            ("default/disable_ipv6", "0"),
            ("all/disable_ipv6", "0"),
        ] {
            self.sysctl(&format!("ipv6/conf/{setting}"), value)?;
        }
        Ok(())
    }

    /// Writes a setting below `/proc/sys/net`.
    pub(crate) fn sysctl(&self, setting: &str, value: &str) -> Result<()> {
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

/// The cgroup that this process moves into: hooks on it see the sockets of this suite only.
pub(crate) struct OwnCgroup {
    pub(crate) path: PathBuf,
    home: PathBuf,
}

impl OwnCgroup {
    /// Gives this process mounts of its own, with a cgroup2 hierarchy in them. Call it before any thread is
    /// started.
    pub(crate) fn new() -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!("this suite makes network namespaces and programs their packet paths: run it as root");
        }
        unshare_mounts().context("could not unshare the mounts")?;
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
        let cgroup = Self {
            path: root.join(format!("mesh-conformance-{}", std::process::id())),
            home: root.join(own),
        };
        fs::create_dir(&cgroup.path)
            .with_context(|| format!("could not make the cgroup {}", cgroup.path.display()))?;
        move_to(&cgroup.path)?;
        Ok(cgroup)
    }
}

impl Drop for OwnCgroup {
    fn drop(&mut self) {
        let removed = move_to(&self.home)
            .and_then(|()| fs::remove_dir(&self.path).context("could not remove the suite's cgroup"));
        if let Err(error) = removed {
            eprintln!("{error:#}");
        }
    }
}

fn move_to(cgroup: &Path) -> Result<()> {
    fs::write(cgroup.join("cgroup.procs"), "0")
        .with_context(|| format!("could not move into the cgroup {}", cgroup.display()))
}
