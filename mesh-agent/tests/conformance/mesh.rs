//! The mesh under test: an agent's data path on each node, brought to what the real model and plan make
//! of a cluster. Knows no data path from another.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    net::{Ipv4Addr, SocketAddrV4},
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};
use mesh_agent::{
    datapath::{Counters, Datapath, Traffic},
    mesh0::{self, Mesh0},
    model::{
        BackendKey, Balance, Cluster, Container as LocalContainer, Desired, HostInterface, Local, NextHop,
        Node as ClusterNode, NodeRole, Protocol, PublishedPort, Service, ServiceKey, Task, TaskState,
        desired::desired,
    },
    plan::plan,
};

use crate::{
    rungs::Rung,
    talk::{TCP_PORT, UDP_PORT},
    world::{CLAIMED_TCP, CLAIMED_UDP, GATEWAY, MTU, Node, World},
};

/// What local processes' connections are turned to, by data paths that turn them.
pub(crate) const SERVICE_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 96, 1);

/// The TCP service that most stories use; Docker's own mesh claims its port as well.
pub(crate) const WEB: ServiceKey = ServiceKey {
    protocol: Protocol::Tcp,
    port: CLAIMED_TCP,
};

/// Its UDP port.
pub(crate) const ECHO: ServiceKey = ServiceKey {
    protocol: Protocol::Udp,
    port: CLAIMED_UDP,
};

/// All nodes' data paths and the cluster they should serve.
pub(crate) struct Mesh<'a> {
    pub(crate) world: &'a World,
    pub(crate) rung: &'static Rung,
    pub(crate) cluster: Cluster,
    cgroup: &'a Path,
    agents: Vec<Agent>,
}

/// What an agent keeps.
#[derive(Default)]
struct Agent {
    /// `None` while it does not run.
    datapath: Option<Box<dyn Datapath>>,
    applied: Desired,
    pruned: bool,
    mesh0: Option<HostInterface>,
}

impl<'a> Mesh<'a> {
    /// A cluster without services and without agents.
    pub(crate) fn new(world: &'a World, rung: &'static Rung, cgroup: &'a Path) -> Self {
        let nodes = world
            .nodes
            .iter()
            .map(|node| {
                let cluster_node = ClusterNode {
                    hostname: node.space.name.clone(),
                    address: node.address,
                    role: NodeRole::Manager,
                    ready: true,
                    weight: 1,
                    datapath: rung.node_datapath(),
                    silent: false,
                };
                (node.space.name.clone(), cluster_node)
            })
            .collect();
        Self {
            world,
            rung,
            cluster: Cluster {
                cluster_id: "conformance".to_owned(),
                nodes,
                ..Cluster::default()
            },
            cgroup,
            agents: world.nodes.iter().map(|_| Agent::default()).collect(),
        }
    }

    /// Starts an agent on every node.
    pub(crate) fn start(&mut self) -> Result<()> {
        for number in 1..=self.agents.len() {
            self.start_on(number)?;
        }
        Ok(())
    }

    /// Starts the agent of a node, which makes the present cluster true.
    pub(crate) fn start_on(&mut self, number: usize) -> Result<()> {
        let space = &self.world.node(number).space;
        let agent = &mut self.agents[number - 1];
        ensure!(agent.datapath.is_none(), "the agent of {} runs", space.name);
        let (rung, cgroup, address) = (self.rung, self.cgroup, self.world.node(number).address);
        let (datapath, mesh0) = space.enter(|| -> Result<_> {
            let datapath = rung.load(cgroup)?;
            let mesh0 = rung.needs_mesh0().then(|| make_mesh0(address)).transpose()?;
            Ok((datapath, mesh0))
        })?;
        *agent = Agent {
            datapath: Some(datapath),
            mesh0,
            ..Agent::default()
        };
        self.apply_on(number)?;
        self.check_modes(number)
    }

    fn check_modes(&mut self, number: usize) -> Result<()> {
        let wanted = self.rung.mode();
        let modes = self.on(number, |datapath| datapath.modes())?;
        ensure!(
            modes.len() == 1 && modes[0].mode == wanted,
            "node{number} runs {modes:?}, not {}",
            wanted.name()
        );
        Ok(())
    }

    /// Publishes a service.
    pub(crate) fn publish(&mut self, name: &str, ports: &[ServiceKey], balance: Balance) {
        let ports = ports
            .iter()
            .map(|key| PublishedPort {
                protocol: key.protocol,
                published: key.port,
                target: match key.protocol {
                    Protocol::Tcp => TCP_PORT,
                    Protocol::Udp => UDP_PORT,
                },
            })
            .collect();
        let service = Service {
            name: name.to_owned(),
            ports,
            balance,
        };
        self.cluster.services.insert(name.to_owned(), service);
    }

    /// The service of most stories: `web` on both its ports, with replicas in containers.
    pub(crate) fn publish_web(&mut self, balance: Balance, containers: &[&str]) {
        self.publish("web", &[WEB, ECHO], balance);
        for container in containers {
            self.place("web", container);
        }
    }

    /// Runs a replica of a service in a container.
    pub(crate) fn place(&mut self, service: &str, container: &str) {
        let node = format!("node{}", &container[1..]);
        let task = Task {
            service: service.to_owned(),
            name: format!("{service}.{container}"),
            slot: None,
            node,
            address: ingress_address(container),
            state: TaskState::Active,
        };
        self.cluster.tasks.insert(task_id(service, container), task);
    }

    /// Runs a replica of a service on node 2, somewhere that nobody asks for it.
    pub(crate) fn place_elsewhere(&mut self, service: &str, number: usize) {
        let container = format!("{number}");
        let task = Task {
            service: service.to_owned(),
            name: format!("{service}.{container}"),
            slot: None,
            node: "node2".to_owned(),
            address: Ipv4Addr::from_bits(Ipv4Addr::new(10, 1, 0, 0).to_bits() + number as u32),
            state: TaskState::Active,
        };
        self.cluster.tasks.insert(task_id(service, &container), task);
    }

    /// Begins to take a replica out of service.
    pub(crate) fn drain(&mut self, service: &str, container: &str) {
        if let Some(task) = self.cluster.tasks.get_mut(&task_id(service, container)) {
            task.state = TaskState::Draining;
        }
    }

    /// Forgets a replica.
    pub(crate) fn remove(&mut self, service: &str, container: &str) {
        self.cluster.tasks.remove(&task_id(service, container));
    }

    /// What a node's data path should be.
    pub(crate) fn desired(&self, number: usize) -> Desired {
        desired(&self.cluster, &self.local(number), SERVICE_ADDRESS)
    }

    /// Makes the cluster true on every node whose agent runs.
    pub(crate) fn apply(&mut self) -> Result<()> {
        for number in 1..=self.agents.len() {
            if self.agents[number - 1].datapath.is_some() {
                self.apply_on(number)?;
            }
        }
        Ok(())
    }

    fn apply_on(&mut self, number: usize) -> Result<()> {
        let wanted = self.desired(number);
        let agent = &self.agents[number - 1];
        let (changes, prune) = (plan(&agent.applied, &wanted), !agent.pruned);
        self.on(number, |datapath| -> Result<()> {
            let errors = datapath.apply(&changes);
            if let Some(error) = errors.into_iter().next() {
                return Err(error.into());
            }
            if prune {
                datapath.prune(&wanted).context("could not prune")?;
            }
            Ok(())
        })??;
        let agent = &mut self.agents[number - 1];
        agent.applied = wanted;
        agent.pruned = true;
        Ok(())
    }

    /// Makes every change again that has led to what is there.
    pub(crate) fn apply_again(&mut self) -> Result<()> {
        for agent in &mut self.agents {
            agent.applied = Desired::default();
        }
        self.apply()
    }

    /// The agents die without a word; what they have put into the kernel stays.
    pub(crate) fn kill(&mut self) -> Result<()> {
        for (agent, node) in self.agents.iter_mut().zip(&self.world.nodes) {
            let datapath = agent.datapath.take();
            node.space.enter(|| drop(datapath));
        }
        Ok(())
    }

    /// Takes all data paths out of the kernel.
    pub(crate) fn stop(&mut self) -> Result<()> {
        let mut outcome = Ok(());
        for (agent, node) in self.agents.iter_mut().zip(&self.world.nodes) {
            let Some(mut datapath) = agent.datapath.take() else {
                continue;
            };
            let needs_mesh0 = self.rung.needs_mesh0();
            let stopped = node.space.enter(|| -> Result<()> {
                let detached = datapath.detach();
                if needs_mesh0 {
                    with_mesh0(async |mesh0| mesh0.remove().await)?;
                }
                Ok(detached?)
            });
            outcome =
                outcome.and(stopped.with_context(|| format!("could not detach on {}", node.space.name)));
        }
        outcome
    }

    /// Does something with a node's data path, in its network namespace.
    pub(crate) fn on<T: Send>(
        &mut self,
        number: usize,
        work: impl FnOnce(&mut dyn Datapath) -> T + Send,
    ) -> Result<T> {
        let Some(datapath) = self.agents[number - 1].datapath.as_mut() else {
            bail!("no agent runs on node{number}");
        };
        Ok(self.world.node(number).space.enter(|| work(datapath.as_mut())))
    }

    /// A node's counters.
    pub(crate) fn counters(&mut self, number: usize) -> Result<Counters> {
        self.on(number, |datapath| -> Result<Counters> {
            datapath.maintain()?;
            Ok(datapath.counters()?)
        })?
    }

    /// What a node counts for a replica.
    pub(crate) fn traffic(&mut self, number: usize, service: ServiceKey, container: &str) -> Result<Traffic> {
        let key = BackendKey {
            service,
            address: ingress_address(container),
        };
        let counters = self.counters(number)?;
        counters
            .backends
            .get(&key)
            .copied()
            .with_context(|| format!("node{number} counts nothing for {container}: {counters:?}"))
    }

    /// Where clients dial a service on a node.
    pub(crate) fn frontend(&self, number: usize, service: ServiceKey) -> SocketAddrV4 {
        SocketAddrV4::new(self.world.node(number).address, service.port)
    }

    /// What there is to know when a story fails.
    pub(crate) fn evidence(&mut self) -> String {
        let mut evidence = String::new();
        for number in 1..=self.agents.len() {
            match self.counters(number) {
                Ok(counters) => {
                    for (key, traffic) in &counters.backends {
                        if traffic.connections_total > 0 {
                            let _ = writeln!(
                                evidence,
                                "node{number}, {} {}: {traffic:?}",
                                key.service.protocol, key.address
                            );
                        }
                    }
                    for drop in counters.drops.iter().filter(|drop| drop.packets > 0) {
                        let _ = writeln!(
                            evidence,
                            "node{number} dropped {} at {}: {}",
                            drop.packets, drop.hook, drop.reason
                        );
                    }
                }
                Err(error) => {
                    let _ = writeln!(evidence, "node{number}: {error:#}");
                }
            }
        }
        evidence
    }

    fn local(&self, number: usize) -> Local {
        let node = self.world.node(number);
        let containers = self
            .cluster
            .tasks
            .iter()
            .filter(|(_, task)| task.node == node.space.name)
            .filter_map(|(id, task)| {
                let place = node
                    .containers
                    .iter()
                    .find(|container| ingress_address(container.name) == task.address)?;
                let container = LocalContainer {
                    ingress_address: task.address,
                    address: place.address,
                    mac: place.mac,
                    host_interface: place.host_interface,
                    gateway_mac: node.gateway_mac,
                };
                Some((id.clone(), container))
            })
            .collect();
        Local {
            node: node.space.name.clone(),
            datapath: self.rung.node_datapath(),
            addresses: BTreeSet::from([node.address, GATEWAY]),
            containers,
            uplinks: BTreeMap::from([("eth0".to_owned(), node.uplink)]),
            container_interfaces: node
                .containers
                .iter()
                .map(|container| container.host_interface)
                .collect(),
            mesh0: self.agents[number - 1].mesh0,
            next_hops: self.next_hops(node),
            ..Local::default()
        }
    }

    fn next_hops(&self, node: &Node) -> BTreeMap<Ipv4Addr, NextHop> {
        self.world
            .nodes
            .iter()
            .filter(|peer| peer.address != node.address)
            .map(|peer| {
                let hop = NextHop {
                    interface: node.uplink.index,
                    source_mac: node.uplink.mac,
                    destination_mac: peer.uplink.mac,
                };
                (peer.address, hop)
            })
            .collect()
    }
}

impl Drop for Mesh<'_> {
    fn drop(&mut self) {
        // A story that succeeds has stopped it.
        let _ = self.stop();
    }
}

fn task_id(service: &str, container: &str) -> String {
    format!("{service}-{container}")
}

/// A container's address on the ingress network: no packet ever bears it here.
pub(crate) fn ingress_address(container: &str) -> Ipv4Addr {
    let name = container.as_bytes();
    Ipv4Addr::new(10, 0, name[1], name[0])
}

fn make_mesh0(node_address: Ipv4Addr) -> Result<HostInterface> {
    let settings = mesh0::Settings {
        service_address: SERVICE_ADDRESS,
        node_address,
        uplink_mtu: MTU,
    };
    with_mesh0(async |mesh0| mesh0.ensure(settings).await)
}

fn with_mesh0<T>(work: impl AsyncFnOnce(&Mesh0) -> Result<T, mesh0::Mesh0Error>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async { Ok(work(&Mesh0::new()?).await?) })
}
