//! The lab: a real Docker Swarm on one machine, each node in namespaces of its own, and a client
//! without Docker beside them. Used by `cargo xtask lab|demo` and by the end-to-end tests; imports
//! nothing of the mesh.

use std::{
    collections::BTreeMap,
    process::{Child, Command},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::{Context, Result, bail};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

pub mod agent;
pub mod api;
pub mod cli;
pub mod engine;
pub mod forge;
mod poll;
pub mod process;
pub mod service;
pub mod space;
pub mod state;
pub mod topology;
pub mod traffic;
pub mod wait;
pub mod wire;
mod wireguard;

use self::state::State;
pub use self::{service::ServiceTask, topology::Topology, traffic::Reply, wait::wait_until};
use crate::paths;

/// How a lab is made.
#[derive(Clone, Debug)]
pub struct LabOptions {
    /// Its name; two labs of different names run side by side.
    pub name: String,
    /// How many nodes.
    pub nodes: usize,
    /// How many of them manage; none: the engines are plain ones, and there is no Swarm.
    pub managers: usize,
    /// Whether the wire leaves checksums and segmentation to the receiver.
    pub offloads: Offloads,
    /// How the nodes are connected.
    pub topology: Topology,
}

impl Default for LabOptions {
    fn default() -> Self {
        Self {
            name: "mesh".into(),
            nodes: 3,
            managers: 1,
            offloads: Offloads::Off,
            topology: Topology::OneCard,
        }
    }
}

/// What the ends of the wire do about checksums and segmentation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Offloads {
    /// Frames are as on a real wire, checksums finished: what XDP needs to see.
    #[default]
    Off,
    /// As a veth pair does by itself: for data paths of tc alone.
    On,
}

/// A lab that is up. Dropping it takes it down, unless it is [kept](Lab::keep).
#[derive(Debug)]
pub struct Lab {
    state: State,
    kept: bool,
    agents: Mutex<BTreeMap<String, Child>>,
}

/// Names of the labs this process takes down when it is interrupted.
static OWNED: Mutex<Vec<String>> = Mutex::new(Vec::new());

impl Lab {
    /// Brings a lab up: namespaces, wire, engines, Swarm, and the services' image on every node. What a
    /// killed lab of the same name left behind is removed first.
    ///
    /// # Errors
    /// When anything is missing or fails; what was started by then is taken down.
    pub fn up(options: &LabOptions) -> Result<Self> {
        Self::up_with(options, |_| ())
    }

    /// [`up`](Self::up), reporting each step as it begins.
    ///
    /// # Errors
    /// As `up`.
    pub fn up_with(options: &LabOptions, mut report: impl FnMut(&str)) -> Result<Self> {
        let LabOptions {
            name,
            nodes,
            managers,
            offloads,
            topology,
        } = options;
        if !(1..=100).contains(nodes) || !(0..=*nodes).contains(managers) {
            bail!("a lab has 1 to 100 nodes, and no more of them manage: not {nodes} and {managers}");
        }
        check_root()?;
        engine::check_tools()?;
        if let Some(state) = State::load(name)?
            && !state.spaces.iter().any(|space| space.init.is_alive())
            && !state.owner.is_alive()
        {
            report("removing what a killed lab left behind");
            take_down(&state)?;
        }
        watch_signals()?;
        let state = State::register(name, paths::target().join("lab").join(name), *topology)?;
        OWNED
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(name.clone());
        let mut lab = Self {
            state,
            kept: false,
            agents: Mutex::default(),
        };
        report("namespaces and wire");
        wire::lay(&mut lab.state)?;
        space::start(&mut lab.state, "client")?;
        space::furnish(&lab.state, "client")?;
        wire::plug(&lab.state, "client", wire::CLIENT, *offloads)?;
        let mut plugged = vec![("client".to_owned(), wire::CLIENT)];
        for index in 0..*nodes {
            let node = format!("node{}", index + 1);
            space::start(&mut lab.state, &node)?;
            space::furnish(&lab.state, &node)?;
            let host = u8::try_from(index + 1).context("too many nodes")?;
            wire::plug(&lab.state, &node, host, *offloads)?;
            plugged.push((node, host));
        }
        wireguard::connect(&lab.state, &plugged)?;
        report("Docker engines");
        lab.on_each_node(|node| {
            engine::start(&lab.state, node)?;
            engine::import_image(&lab.state, node)
        })?;
        if *managers > 0 {
            report("Swarm");
            engine::form_swarm(&lab.state, *managers)?;
        }
        Ok(lab)
    }

    /// A lab that another command brought up.
    ///
    /// # Errors
    /// When none of this name is up.
    pub fn attach(name: &str) -> Result<Self> {
        check_root()?;
        let state = State::load(name)?.with_context(|| {
            format!("no lab `{name}` is up; start one with `cargo xtask lab up --name {name}`")
        })?;
        Ok(Self {
            state,
            kept: true,
            agents: Mutex::default(),
        })
    }

    /// Leaves the lab up when this value or process ends.
    pub fn keep(&mut self) {
        self.kept = true;
        disown(&self.state.name);
    }

    /// Takes the lab down and removes all it has made.
    ///
    /// # Errors
    /// When something cannot be ended or removed; `cargo xtask lab down` tries again.
    pub fn down(mut self) -> Result<()> {
        self.kept = true;
        let outcome = take_down(&self.state);
        self.reap();
        disown(&self.state.name);
        outcome
    }

    /// What has been started.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The nodes' names, `node1` first; the first ones manage.
    #[must_use]
    pub fn nodes(&self) -> Vec<&str> {
        self.state.nodes()
    }

    /// A node's address on the wire, or the client's.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn address(&self, name: &str) -> Result<String> {
        self.addresses(name)?
            .into_iter()
            .next()
            .with_context(|| format!("`{name}` has no address"))
    }

    /// All addresses of a node or the client: the one with the default route first, the cluster's last.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn addresses(&self, name: &str) -> Result<Vec<String>> {
        let host = self.host(name)?;
        Ok(self.state.topology.addresses(self.state.subnet, host))
    }

    /// The IPv6 address of a node or the client beside the first one.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn ipv6_address(&self, name: &str) -> Result<String> {
        let host = self.host(name)?;
        Ok(topology::FIRST.ipv6_address(self.state.subnet, host))
    }

    /// The number of a node or the client in each of its networks.
    fn host(&self, name: &str) -> Result<u8> {
        self.state.space(name)?;
        match name {
            "client" => Ok(wire::CLIENT),
            "wire" => Ok(wire::ROUTER),
            node => node
                .trim_start_matches("node")
                .parse()
                .with_context(|| format!("`{node}` is no node")),
        }
    }

    /// A command that runs on a node, or in the client, as any process there does.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn command<'a>(&self, name: &str, arguments: impl IntoIterator<Item = &'a str>) -> Result<Command> {
        Ok(space::join(self.state.space(name)?, arguments))
    }

    /// Runs a command on a node, or in the client, and returns its output.
    ///
    /// # Errors
    /// When it fails; with its output.
    pub fn run<'a>(&self, name: &str, arguments: impl IntoIterator<Item = &'a str>) -> Result<String> {
        crate::command::run(&mut self.command(name, arguments)?)
    }

    /// Runs docker's command-line tool on a node and returns its output.
    ///
    /// # Errors
    /// When it fails; with its output.
    pub fn docker<'a>(&self, node: &str, arguments: impl IntoIterator<Item = &'a str>) -> Result<String> {
        crate::command::run(&mut engine::docker(&self.state, node, arguments)?)
    }

    /// Stops a node's dockerd, and its containers with it.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop_engine(&self, node: &str) -> Result<()> {
        engine::stop(&self.state, node)
    }

    /// Starts a node's dockerd again; it finds its Swarm and its images by itself.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn start_engine(&self, node: &str) -> Result<()> {
        engine::start(&self.state, node)
    }

    /// Does the same on all nodes at once.
    ///
    /// # Errors
    /// The first node's that fails.
    pub fn on_each_node(&self, work: impl Fn(&str) -> Result<()> + Sync) -> Result<()> {
        thread::scope(|scope| {
            let threads: Vec<_> = self
                .nodes()
                .into_iter()
                .map(|node| (node, scope.spawn(|| work(node))))
                .collect();
            for (node, thread) in threads {
                match thread.join() {
                    Ok(outcome) => outcome.with_context(|| format!("on {node}"))?,
                    Err(_) => bail!("the work on {node} panicked"),
                }
            }
            Ok(())
        })
    }

    fn reap(&self) {
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        for child in agents.values_mut() {
            // They have ended with their namespaces.
            let _ = child.wait();
        }
        agents.clear();
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if let Err(error) = take_down(&self.state) {
            eprintln!("lab `{}` is not wholly down: {error:#}", self.state.name);
        }
        self.reap();
        disown(&self.state.name);
    }
}

/// Ends and removes everything in a lab's state.
///
/// # Errors
/// When something cannot be ended or removed.
pub fn take_down(state: &State) -> Result<()> {
    // Mounts, veths, bpffs pins and BPF links go with the namespaces that the processes held.
    space::end_all(state)?;
    space::remove_cgroups(&state.name)?;
    state::remove_folder(&state.data)?;
    state.forget()
}

/// Fails with one clear line where the lab cannot work.
///
/// # Errors
/// When this process is not root.
pub fn check_root() -> Result<()> {
    if !nix::unistd::Uid::effective().is_root() {
        bail!("the lab makes network namespaces and runs Docker engines, which needs root: run this as root");
    }
    Ok(())
}

fn disown(name: &str) {
    OWNED
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .retain(|owned| owned != name);
}

/// Takes this process's labs down when it is interrupted, and ends it.
fn watch_signals() -> Result<()> {
    static WATCHING: AtomicBool = AtomicBool::new(false);
    if WATCHING.swap(true, Ordering::SeqCst) {
        return Ok(());
    }
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("could not watch for signals")?;
    thread::spawn(move || {
        let Some(signal) = signals.forever().next() else {
            return;
        };
        // From here on no namespaces are started.
        let mut closing = space::CLOSING.lock().unwrap_or_else(PoisonError::into_inner);
        *closing = true;
        let names = OWNED.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for name in names {
            eprintln!("interrupted; taking lab `{name}` down");
            let outcome =
                State::load(&name).and_then(|state| state.map_or(Ok(()), |state| take_down(&state)));
            if let Err(error) = outcome {
                eprintln!(
                    "lab `{name}` is not wholly down, run `cargo xtask lab down --name {name}`: {error:#}"
                );
            }
        }
        std::process::exit(128 + signal);
    });
    Ok(())
}
