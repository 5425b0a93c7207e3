//! Network namespaces that a test enters and leaves, and the process's own corner of the machine. Knows
//! nothing of the mesh.

use std::{
    fs::{self, File},
    io::Write,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, Result, bail};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};

/// A network namespace with a `/run/mesh` and a bpf file system of its own. It ends with this value and
/// the last socket in it.
pub(crate) struct Space {
    pub(crate) name: String,
    network: File,
    mounts: File,
}

impl Space {
    /// Makes one, without IPv6 (which would send packets of its own) and with its loopback up.
    pub(crate) fn new(name: &str) -> Result<Self> {
        let make = || -> Result<Self> {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
                .context("could not make namespaces")?;
            fs::create_dir_all("/run/mesh").context("could not make /run/mesh")?;
            mount_new("tmpfs", Path::new("/run/mesh"))?;
            mount_new("bpf", Path::new("/sys/fs/bpf"))?;
            for scope in ["all", "default"] {
                let switch = format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6");
                if Path::new(&switch).exists() {
                    fs::write(&switch, "1").with_context(|| format!("could not write {switch}"))?;
                }
            }
            run("ip", &["link", "set", "lo", "up"])?;
            Ok(Self {
                name: name.to_owned(),
                network: File::open("/proc/thread-self/ns/net")?,
                mounts: File::open("/proc/thread-self/ns/mnt")?,
            })
        };
        in_a_thread(make).with_context(|| format!("could not make the namespace {name}"))
    }

    /// Does something inside: sockets opened there stay there.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        in_a_thread(|| {
            // Mounts are entered by threads that share no file system state with others.
            unshare(CloneFlags::CLONE_FS).expect("a thread may stand alone");
            setns(&self.mounts, CloneFlags::CLONE_NEWNS).expect("the mounts can be entered");
            setns(&self.network, CloneFlags::CLONE_NEWNET).expect("the network can be entered");
            work()
        })
    }

    /// Runs a program inside and returns what it said.
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
        self.enter(|| feed(program, arguments, script))
            .with_context(|| format!("in {}", self.name))
    }

    /// Writes a setting below `/proc/sys/net`.
    pub(crate) fn set(&self, setting: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/net/{setting}");
        self.enter(|| fs::write(&path, value))
            .with_context(|| format!("could not write {path} in {}", self.name))
    }

    /// A path by which other processes find the network namespace.
    pub(crate) fn network_path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.network.as_raw_fd())
    }
}

fn in_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| match scope.spawn(work).join() {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

fn mount_new(kind: &str, place: &Path) -> Result<()> {
    let none: Option<&str> = None;
    mount(Some(kind), place, Some(kind), MsFlags::empty(), none)
        .with_context(|| format!("could not mount a {kind} on {}", place.display()))
}

/// Runs a program in this thread's namespaces and returns what it said.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<String> {
    feed(program, arguments, "")
}

fn feed(program: &str, arguments: &[&str], script: &str) -> Result<String> {
    let doing = || format!("{program} {}", arguments.join(" "));
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("could not run `{}`; is it installed?", doing()))?;
    let mut input = child.stdin.take().context("no standard input")?;
    input.write_all(script.as_bytes())?;
    drop(input);
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!(
            "`{}` failed: {}{script}",
            doing(),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
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
        unshare(CloneFlags::CLONE_NEWNS).context("could not make mounts of our own")?;
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
            .context("could not make the mounts private")?;
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
