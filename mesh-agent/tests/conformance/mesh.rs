//! The mesh under test: an agent's data path on each node, which the agent's own model and plan keep in line
//! with a cluster. Knows the kinds of data paths only by what their tables hold.

use std::{
    fmt::Write,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};
use mesh_agent::{
    datapath::{Counters, Datapath, Mode, Traffic, dump::Dump, memory::MemoryDatapath},
    mesh0::{self, Mesh0},
    model::{
        BackendKey, Cluster, Desired, HostInterface, Node as ClusterNode, NodeDatapath, NodeRole, Protocol,
        ServiceKey,
    },
    plan::plan,
    probes::ProbeReport,
};

pub(crate) use self::cluster::ingress_address;
use crate::{
    netns::Netns,
    rungs::{Rung, SERVICE_ADDRESS},
    world::{CLAIMED_TCP, CLAIMED_UDP, Family, MTU, World},
};

mod cluster;

/// How many entries of the flow table are read with the other tables.
const SOME_FLOWS: usize = 16;

/// The TCP port of the service that most stories use; Docker's own mesh has it as well.
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
    /// Whether agents that start are of a later release, with other maps.
    pub(crate) next_release: bool,
    /// Whether agents find VLAN devices on their uplinks.
    pub(crate) finds_vlans: bool,
    /// What node 1 has found out about its peer by probes.
    pub(crate) probed: ProbeReport,
    cgroup: &'a Path,
    agents: Vec<Agent>,
    idle: Vec<Agent>,
}

/// Data paths that are loaded and serve nothing. They end in the nodes where they are.
pub(crate) struct Idle {
    pub(crate) rung: &'static Rung,
    agents: Vec<Agent>,
}

/// What an agent has between changes.
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
                    datapath: rung.node_datapath(),
                    ..ClusterNode::new(node.netns.name.clone(), node.address, NodeRole::Manager)
                };
                (node.netns.name.clone(), cluster_node)
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
            next_release: false,
            finds_vlans: false,
            probed: ProbeReport::default(),
            cgroup,
            agents: world.nodes.iter().map(|_| Agent::default()).collect(),
            idle: world.nodes.iter().map(|_| Agent::default()).collect(),
        }
    }

    /// Agents that start go on with data paths that serve nothing yet: to load them takes most of a story's
    /// time.
    pub(crate) fn take(&mut self, idle: Idle) {
        self.idle = idle.agents;
    }

    /// Lets the data paths serve nothing, and keeps them; none if a story has ended one or changed its kind.
    pub(crate) fn leave(&mut self) -> Result<Option<Idle>> {
        if self.next_release || self.finds_vlans {
            return self.stop().map(|()| None);
        }
        self.cluster.services.clear();
        self.cluster.tasks.clear();
        self.probed = ProbeReport::default();
        self.apply()?;
        for (agent, idle) in self.agents.iter_mut().zip(&mut self.idle) {
            if agent.datapath.is_some() {
                *idle = std::mem::take(agent);
            }
        }
        if self.idle.iter().any(|agent| agent.datapath.is_none()) {
            return self.stop().map(|()| None);
        }
        Ok(Some(Idle {
            rung: self.rung,
            agents: std::mem::take(&mut self.idle),
        }))
    }

    /// Starts an agent on every node.
    pub(crate) fn start(&mut self) -> Result<()> {
        for number in 1..=self.agents.len() {
            self.start_on(number)?;
        }
        Ok(())
    }

    /// Starts the agent of a node, which applies the present cluster.
    pub(crate) fn start_on(&mut self, number: usize) -> Result<()> {
        let netns = &self.world.node(number).netns;
        let agent = &mut self.agents[number - 1];
        ensure!(
            agent.datapath.is_none(),
            "the agent of {} runs already",
            netns.name
        );
        let idle = std::mem::take(&mut self.idle[number - 1]);
        if idle.datapath.is_some() {
            *agent = idle;
            self.apply_on(number)?;
            return self.check_modes(number);
        }
        let (rung, cgroup, next) = (self.rung, self.cgroup, self.next_release);
        let address = self.world.node(number).address;
        let (datapath, mesh0) = netns.enter(|| -> Result<_> {
            let datapath = rung.load(cgroup, next)?;
            let mesh0 = rung
                .needs_mesh0()
                .then(|| make_mesh0(address, rung.family))
                .transpose()?;
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

    /// A node's uplinks must have the rung's hook, or tc where XDP could not tell VLANs apart.
    pub(crate) fn check_modes(&mut self, number: usize) -> Result<()> {
        let expected = match self.rung.mode() {
            Mode::XdpNative | Mode::XdpGeneric if self.finds_vlans => Mode::Tc,
            mode => mode,
        };
        let modes = self.on(number, |datapath| datapath.modes())?;
        ensure!(
            !modes.is_empty() && modes.iter().all(|found| found.mode == expected),
            "node{number} runs {modes:?}, not {}",
            expected.name()
        );
        Ok(())
    }

    /// Applies the cluster on every node whose agent runs.
    pub(crate) fn apply(&mut self) -> Result<()> {
        for number in 1..=self.agents.len() {
            if self.agents[number - 1].datapath.is_some() {
                self.apply_on(number)?;
            }
        }
        Ok(())
    }

    /// Applies the cluster on one node; the others keep what they had.
    pub(crate) fn apply_on(&mut self, number: usize) -> Result<()> {
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
            check_tables(datapath.dump(SOME_FLOWS)?, &wanted)
        })??;
        let agent = &mut self.agents[number - 1];
        agent.applied = wanted;
        agent.pruned = true;
        Ok(())
    }

    /// Applies every change again that led to the present state.
    pub(crate) fn apply_again(&mut self) -> Result<()> {
        for agent in &mut self.agents {
            agent.applied = Desired::default();
        }
        self.apply()
    }

    /// As if the agents were killed: what they put into the kernel stays.
    pub(crate) fn kill(&mut self) -> Result<()> {
        for (agent, node) in self.agents.iter_mut().zip(&self.world.nodes) {
            let datapath = agent.datapath.take();
            node.netns.enter(|| drop(datapath));
        }
        Ok(())
    }

    /// Takes all data paths out of the kernel.
    pub(crate) fn stop(&mut self) -> Result<()> {
        let running = stop(self.rung, &mut self.agents, self.world);
        running.and(stop(self.rung, &mut self.idle, self.world))
    }

    /// Runs `work` with a node's data path, in its network namespace.
    pub(crate) fn on<T: Send>(
        &mut self,
        number: usize,
        work: impl FnOnce(&mut dyn Datapath) -> T + Send,
    ) -> Result<T> {
        let Some(datapath) = self.agents[number - 1].datapath.as_mut() else {
            bail!("no agent runs on node{number}");
        };
        Ok(self.world.node(number).netns.enter(|| work(datapath.as_mut())))
    }

    /// A node's counters.
    pub(crate) fn counters(&mut self, number: usize) -> Result<Counters> {
        self.on(number, |datapath| -> Result<Counters> {
            datapath.maintain()?;
            Ok(datapath.counters()?)
        })?
    }

    /// A node's counters of a replica.
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

    /// The address of a service on a node.
    pub(crate) fn frontend(&self, number: usize, service: ServiceKey) -> SocketAddr {
        SocketAddr::new(self.world.node(number).frontend, service.port)
    }

    /// The address of a service on a node for the processes there.
    pub(crate) fn loopback(&self, service: ServiceKey) -> SocketAddr {
        SocketAddr::new(self.world.family.loopback(), service.port)
    }

    /// The client's first address.
    pub(crate) fn client(&self) -> IpAddr {
        self.world.family.clients()[0]
    }

    /// Who can ask a service of node 1, by a frontend's address.
    pub(crate) fn askers(&self) -> Vec<(&'static str, &'a Netns)> {
        let (world, node) = (self.world, self.world.node(1));
        let mut askers = vec![("the client", &world.client), ("a local process", &node.netns)];
        if world.family == Family::Ipv4 {
            askers.push(("a container", &world.container("x1").netns));
        }
        askers
    }

    /// The counters that are not zero, for a story that failed.
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
}

impl Idle {
    /// Takes them out of the kernel.
    pub(crate) fn stop(mut self, world: &World) -> Result<()> {
        stop(self.rung, &mut self.agents, world)
    }
}

fn stop(rung: &Rung, agents: &mut [Agent], world: &World) -> Result<()> {
    let mut outcome = Ok(());
    for (agent, node) in agents.iter_mut().zip(&world.nodes) {
        let Some(mut datapath) = agent.datapath.take() else {
            continue;
        };
        let stopped = node.netns.enter(|| -> Result<()> {
            let detached = datapath.detach();
            if rung.needs_mesh0() {
                with_mesh0(async |mesh0| mesh0.remove().await)?;
            }
            Ok(detached?)
        });
        outcome = outcome.and(stopped.with_context(|| format!("could not detach on {}", node.netns.name)));
    }
    outcome
}

impl Drop for Mesh<'_> {
    fn drop(&mut self) {
        // Does nothing after a story that passed.
        let _ = self.stop();
    }
}

/// The tables, read back from the kernel, must hold what the agent has asked for.
fn check_tables(mut found: Dump, wanted: &Desired) -> Result<()> {
    if found.datapath == NodeDatapath::Ipvs {
        let expected = wanted.frontends.iter().filter(|frontend| {
            let served = wanted.services.get(&frontend.service);
            frontend.address != SERVICE_ADDRESS && served.is_some_and(|service| !service.active.is_empty())
        });
        for frontend in expected {
            let served = found.virtual_services.iter().any(|service| {
                (service.address, service.protocol, service.port)
                    == (
                        frontend.address.into(),
                        frontend.service.protocol,
                        frontend.service.port,
                    )
                    && !service.destinations.is_empty()
            });
            ensure!(served, "{frontend} is not in the tables:\n{found}");
        }
        return Ok(());
    }
    found.flows.clear();
    let expected = MemoryDatapath {
        state: wanted.clone(),
    }
    .dump(0)?;
    ensure!(
        found == expected,
        "the tables are not as they should be:\n{found}\nbut should be:\n{expected}"
    );
    Ok(())
}

fn make_mesh0(node_address: Ipv4Addr, family: Family) -> Result<HostInterface> {
    let settings = mesh0::Settings {
        service_address: SERVICE_ADDRESS,
        node_address,
        uplink_mtu: MTU,
        ipv6: family == Family::Ipv6,
    };
    with_mesh0(async |mesh0| {
        let device = mesh0.ensure(settings).await?;
        mesh0.ensure_clients(settings, device).await?;
        Ok(device)
    })
}

fn with_mesh0<T>(work: impl AsyncFnOnce(&Mesh0) -> Result<T, mesh0::Mesh0Error>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async { Ok(work(&Mesh0::new(Path::new("/proc/sys"))?).await?) })
}
