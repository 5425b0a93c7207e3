//! Network namespaces that live as long as the test, and what the tests do in them.

use std::{
    fs::File,
    io::Write,
    os::fd::AsRawFd,
    process::{Command, Stdio},
    thread,
};

use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace without a name; it goes with the value and the sockets inside.
pub(crate) struct Namespace(File);

impl Namespace {
    /// Makes one, with its loopback up, without IPv6 (which sends packets of its own) and forwarding.
    pub(crate) fn new() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "this test makes network namespaces: run it as root"
        );
        let file = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace");
            sysctl("net/ipv6/conf/all/disable_ipv6", "1");
            sysctl("net/ipv6/conf/default/disable_ipv6", "1");
            sysctl("net/ipv4/ip_forward", "1");
            ip("link set lo up");
            File::open("/proc/thread-self/ns/net").expect("the namespace has a file")
        })
        .join()
        .expect("the namespace is set up");
        Self(file)
    }

    /// Runs something inside, in a thread of its own.
    #[track_caller]
    pub(crate) fn run<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> T {
        let result = thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(&self.0, CloneFlags::CLONE_NEWNET).expect("the namespace can be entered");
                    inside()
                })
                .join()
        });
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// The name by which `ip link set … netns` takes it.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Joins two namespaces by a veth pair with these names and addresses.
    pub(crate) fn wire(&self, other: &Self, near: (&str, &str), far: (&str, &str)) {
        self.run(|| {
            ip(&format!(
                "link add {} type veth peer name {} netns {}",
                near.0,
                far.0,
                other.path()
            ));
        });
        for (space, (name, address)) in [(self, near), (other, far)] {
            space.run(|| {
                ip(&format!("link set {name} up"));
                if !address.is_empty() {
                    ip(&format!("address add {address} dev {name}"));
                }
            });
        }
    }

    /// Adds a container: a namespace behind a veth on `docker_gwbridge`, with the bridge as its gateway.
    pub(crate) fn container(&self, name: &str, address: &str) -> Self {
        let container = Self::new();
        self.wire(&container, (name, ""), ("eth0", &format!("{address}/16")));
        self.run(|| ip(&format!("link set {name} master docker_gwbridge")));
        container.run(|| ip("route add default via 172.18.0.1"));
        container
    }
}

/// Makes the bridge that Docker has on each node of a Swarm.
pub(crate) fn docker_bridge() {
    ip("link add docker_gwbridge address 02:42:00:00:00:01 type bridge");
    ip("address add 172.18.0.1/16 dev docker_gwbridge");
    ip("link set docker_gwbridge up");
}

/// Runs `ip` and gives its output.
#[track_caller]
pub(crate) fn ip(arguments: &str) -> String {
    output("ip", arguments, "")
}

/// Runs `nft` and gives its output.
#[track_caller]
pub(crate) fn nft(arguments: &str) -> String {
    output("nft", arguments, "")
}

/// Feeds a ruleset to `nft`.
#[track_caller]
pub(crate) fn nft_load(ruleset: &str) {
    output("nft", "-f -", ruleset);
}

/// Runs a program of the calling thread's namespace.
#[track_caller]
pub(crate) fn output(program: &str, arguments: &str, input: &str) -> String {
    let mut child = Command::new(program)
        .args(arguments.split_whitespace())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run `{program}`: {error}"));
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin
        .write_all(input.as_bytes())
        .expect("the program reads its input");
    drop(stdin);
    let output = child.wait_with_output().expect("the program ends");
    assert!(
        output.status.success(),
        "{program} {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("the program writes text")
}

/// Writes a setting of the calling thread's network namespace.
#[track_caller]
pub(crate) fn sysctl(name: &str, value: &str) {
    std::fs::write(format!("/proc/sys/{name}"), value)
        .unwrap_or_else(|error| panic!("cannot set {name}: {error}"));
}

/// Everything of the namespace's network that the mesh could leave a trace in.
pub(crate) fn traces() -> String {
    [
        nft("list ruleset"),
        link(""),
        output("bridge", "fdb show", ""),
        ip("route show table all"),
        ip("rule show"),
        ip("neighbour show nud all"),
    ]
    .concat()
}

/// An interface, or all of them, in full but for what a bridge's clocks show.
pub(crate) fn link(name: &str) -> String {
    let mut lines = String::new();
    for line in ip(&format!("-d link show {name}")).lines() {
        let mut clock = false;
        for word in line.split_whitespace() {
            if !clock {
                lines.push_str(word);
                lines.push(' ');
            }
            clock = word.ends_with("_timer");
        }
        lines.push('\n');
    }
    lines
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
