//! Network namespaces, and the commands that the tests run in them.

use std::{
    thread,
    time::{Duration, Instant},
};

use mesh_support::{
    command,
    namespace::{self, disable_ipv6},
};

/// A network namespace without a name; it is gone when the value and the sockets inside are.
pub(crate) struct Namespace(namespace::Namespace);

impl Namespace {
    /// Makes one that forwards, with loopback up and without IPv6 (which would send packets of its own).
    #[track_caller]
    pub(crate) fn new() -> Self {
        let namespace =
            namespace::Namespace::new().expect("this test makes network namespaces: run it as root");
        namespace.enter(|| {
            disable_ipv6().expect("IPv6 can be turned off");
            sysctl("net/ipv4/ip_forward", "1");
            ip("link set lo up");
        });
        Self(namespace)
    }

    /// Runs `work` inside.
    #[track_caller]
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.0.enter(work)
    }

    /// Joins two namespaces by a veth pair with these names and addresses.
    pub(crate) fn wire(&self, other: &Self, near: (&str, &str), far: (&str, &str)) {
        self.run(|| {
            ip(&format!(
                "link add {} type veth peer name {} netns {}",
                near.0,
                far.0,
                other.0.path()
            ));
        });
        for (namespace, (name, address)) in [(self, near), (other, far)] {
            namespace.run(|| {
                ip(&format!("link set {name} up"));
                if !address.is_empty() {
                    ip(&format!("address add {address} dev {name}"));
                }
            });
        }
        for (namespace, (name, _)) in [(self, near), (other, far)] {
            namespace.run(|| until_it_carries(name));
        }
    }

    /// Adds a container: a namespace behind a veth on `docker_gwbridge`, with the bridge as its gateway.
    pub(crate) fn container(&self, name: &str, address: &str) -> Self {
        let container = Self::new();
        self.wire(&container, (name, ""), ("eth0", &format!("{address}/16")));
        self.run(|| {
            ip(&format!("link set {name} master docker_gwbridge"));
            until_it_carries("docker_gwbridge");
        });
        container.run(|| ip("route add default via 172.18.0.1"));
        container
    }
}

/// Makes Docker's bridge, as on each node of a Swarm.
pub(crate) fn docker_bridge() {
    ip("link add docker_gwbridge address 02:42:00:00:00:01 type bridge");
    ip("address add 172.18.0.1/16 dev docker_gwbridge");
    ip("link set docker_gwbridge up");
}

/// Waits until an interface's carrier is there: the kernel may take a second to report it, and its routes are
/// down meanwhile.
#[track_caller]
pub(crate) fn until_it_carries(name: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while ip(&format!("link show {name}")).contains("NO-CARRIER") {
        assert!(Instant::now() < deadline, "{name} has no carrier");
        thread::sleep(Duration::from_millis(10));
    }
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
    let arguments: Vec<&str> = arguments.split_whitespace().collect();
    command::output(program, &arguments, input).unwrap_or_else(|error| panic!("{error}"))
}

/// Writes a setting of the calling thread's network namespace.
#[track_caller]
pub(crate) fn sysctl(name: &str, value: &str) {
    namespace::sysctl(name, value).unwrap_or_else(|error| panic!("{error}"));
}

/// All parts of the network that the mesh changes.
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

/// An interface, or all of them, in full except for a bridge's timers.
pub(crate) fn link(name: &str) -> String {
    let mut lines = String::new();
    for line in ip(&format!("-d link show {name}")).lines() {
        let mut timer = false;
        for field in line.split_whitespace() {
            if !timer {
                lines.push_str(field);
                lines.push(' ');
            }
            timer = field.ends_with("_timer");
        }
        lines.push('\n');
    }
    lines
}
