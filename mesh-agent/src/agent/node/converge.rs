//! Brings the data path to the state that follows from everything the agent knows.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
    time::{Instant, SystemTime},
};

use tracing::{debug, error, info, warn};

use mesh_support::watched::{Newest as _, Watched as _};

use super::{Agent, ipv6::Ipv6Choice};
use crate::{
    agent::{
        hooks::{may_announce, peers_without_hook},
        inputs::Inputs,
        membership::Membership,
        reserved_ports::reserved_ports,
        service_manager,
    },
    config::HostFirewall,
    model::{Checks, Desired, Draining, Local, NoHook, NodeDatapath, ServiceKey, TunnelKeys},
    source::SourceState,
};

/// What the agent waits for when everything else is known.
pub(super) const FIRST_SNAPSHOT: &str = "the first snapshot of the cluster";

impl Agent {
    /// Computes the desired state and applies it.
    pub(super) fn converge(&mut self) {
        let refused = self.ladder.lock().refused_uplinks();
        self.converge_once();
        // Which peers can be sent to depends on which uplinks the kernel accepts.
        if self.ladder.lock().refused_uplinks() != refused {
            self.converge_once();
        }
    }

    /// Does nothing before every part has reported once: an adopted data path is worth more than a plan from
    /// half the facts.
    fn converge_once(&mut self) {
        let source = self.parts.source.newest();
        let inputs = match self.inputs(&source) {
            Ok(inputs) => inputs,
            Err(waiting_for) => {
                if self.logged_waiting != Some(waiting_for) {
                    info!("waiting for {waiting_for}");
                    self.logged_waiting = Some(waiting_for);
                }
                self.count_as_ready_without_snapshot();
                return;
            }
        };
        self.logged_waiting = None;
        // Before the next hops that follow from the same snapshot, and before they are announced.
        if let Membership::Member(member) = &self.membership {
            let keys = tunnel_keys(&source, &member.node);
            let taken = self.ladder.lock().set_keys(keys);
            self.announcement.announce_keys(taken);
        }
        let first = self.desired.is_none();
        let (round, desired, kind) = {
            let mut ladder = self.ladder.lock();
            let (round, desired) = ladder.reconcile(&|kind| inputs.desired(kind), Instant::now());
            (round, desired, ladder.kind())
        };
        if round.applied > 0 {
            debug!(
                changes = round.applied,
                revision = source.revision,
                "data path updated"
            );
        }
        if first {
            info!(
                services = desired.services.len(),
                backends = desired.backends.len(),
                peers = desired.peers.len(),
                uplinks = ?desired.uplinks.keys().collect::<Vec<_>>(),
                revision = source.revision,
                "the data path is up"
            );
        }
        self.log_failures();
        self.log_failing_services(&inputs, &desired);
        if round.failed == 0 && source.revision != self.applied_revision {
            // The first snapshot may describe an old change, so its age is not a programming time.
            if !first
                && round.applied > 0
                && let Some(changed) = source.changed
                && let Ok(duration) = SystemTime::now().duration_since(changed)
            {
                self.metrics.observe_programming(duration);
            }
            self.applied_revision = source.revision;
        }
        self.set_without_hook(inputs.without_hook(kind));
        match &self.membership {
            Membership::Member(member) if may_announce(&source.cluster, &member.node, &self.without_hook) => {
                if round.failed == 0 {
                    self.announcement.announce(kind.into());
                }
            }
            Membership::Member(_) | Membership::Unknown | Membership::Outside => {
                self.announcement.announce(NodeDatapath::None);
            }
        }
        if round.failed == 0
            && self
                .is_up
                .send_if_modified(|is_up| !std::mem::replace(is_up, true))
        {
            info!("this node is ready");
            service_manager::ready();
        }
        self.desired = Some(Arc::new(desired));
    }

    fn count_as_ready_without_snapshot(&mut self) {
        let why = self.ready_without_snapshot();
        if let Some(why) = why.as_ref().filter(|_| !self.ready_without_snapshot) {
            warn!("this node counts as ready without a snapshot of the cluster: {why}");
            service_manager::ready();
        }
        self.ready_without_snapshot = why.is_some();
    }

    /// Keeps which peers there is no hook towards, and logs each interface once.
    fn set_without_hook(&mut self, without_hook: BTreeMap<Ipv4Addr, NoHook>) {
        let before: BTreeSet<_> = self.without_hook.values().cloned().collect();
        let now: BTreeSet<_> = without_hook.values().cloned().collect();
        for NoHook { interface, reason } in now.difference(&before) {
            warn!(
                interface,
                reason,
                "there is no hook on an interface that leads to other nodes: the mesh sends nothing by it, and \
                 this node announces no data path"
            );
        }
        if now.is_empty() && !before.is_empty() {
            info!("all routes to the other nodes leave by interfaces with hooks again");
        }
        self.without_hook = without_hook;
    }

    /// The inputs of the desired state, or which of them is still missing.
    pub(super) fn inputs(&mut self, source: &SourceState) -> Result<Inputs, &'static str> {
        let member = match &self.membership {
            Membership::Unknown => return Err("Docker to report this node's membership in a Swarm"),
            Membership::Outside => return Ok(Inputs::Outside),
            Membership::Member(member) => member,
        };
        let containers = self.parts.containers.current();
        if !containers.listed {
            return Err("the first list of this node's containers");
        }
        let network = self.parts.network.current();
        let Some(network) = network.as_ref() else {
            return Err("the first listing of this node's network");
        };
        // A snapshot without a cluster's id is of no cluster: packets with its VNI would reach no other node.
        if source.confirmed.is_none() || source.cluster.cluster_id.is_empty() {
            return Err(FIRST_SNAPSHOT);
        }
        // Which interfaces are uplinks depends on the peers. A plan before that is known would detach those
        // of an adopted data path.
        if self.desired.is_none() && network.interest != self.parts.interest.current() {
            return Err("the routes to the other nodes");
        }
        let probes = self.parts.probes.newest();
        let answered = probes.answered();
        if !self
            .announcement
            .may_plan(&source.cluster, &member.node, &answered)
        {
            return Err("the other nodes' agents to announce their data paths");
        }
        self.drains.forget(|task| {
            containers.containers.contains_key(task) || source.cluster.tasks.contains_key(task)
        });
        let host_firewall = match self.options.host_firewall {
            HostFirewall::Translate => self.parts.host_firewall.newest(),
            HostFirewall::Ignore => Some(Arc::default()),
        };
        let Some(host_firewall) = host_firewall else {
            return Err("the first look at the host's firewall");
        };
        if self.ipv6() == Ipv6Choice::Unknown {
            return Err("the first look at the host's rules for IPv6");
        }
        let failed = self.parts.failed.newest();
        let checks = Checks {
            cluster: &source.cluster,
            own: &member.node,
            failed: &failed,
        };
        let now = Instant::now();
        let shares = self.slow_start.observe(checks, now);
        let drained = self.drains.current();
        let draining = Draining {
            cluster: &source.cluster,
            own: &member.node,
            drained: &drained,
        };
        let ended = self.drain_times.observe(draining, now);
        self.due_at = shares.next.into_iter().chain(ended.next).min();
        let local = Local {
            node: member.node.clone(),
            // Depends on the kind of data path: see `Inputs::desired`.
            datapath: NodeDatapath::Unknown,
            leaving: self.announcement.is_leaving(),
            addresses: network.addresses.clone(),
            ipv6_addresses: self.ipv6_addresses(),
            containers: containers.containers.clone(),
            attached: containers.attached.clone(),
            uplinks: network.uplinks.clone(),
            macs: network.macs.clone(),
            container_interfaces: network.container_interfaces.clone(),
            mesh0: self.device.interface(),
            next_hops: network.next_hops.clone(),
            without_hook: peers_without_hook(network, &self.ladder.lock().refused_uplinks()),
            answered,
            path_mtus: probes.path_mtus(),
            silent: probes.silent(),
            lost: probes.lost(),
            drained,
            drained_out: ended.tasks,
            failed,
            starting: shares.of_new,
            reserved: reserved_ports(
                &self.options,
                self.parts.engine.current().info.as_ref(),
                source.cluster.data_path_port,
            ),
            host_firewall,
            policy: Arc::clone(&self.policy),
            return_mode: self.options.return_mode,
        };
        Ok(Inputs::Member {
            cluster: Arc::clone(&source.cluster),
            local: Box::new(local),
            probed: self.ladder.lock().kind(),
            service_address: self.options.service_address,
        })
    }

    /// Logs once that all replicas of a service fail their check, and once that one passes again.
    fn log_failing_services(&mut self, inputs: &Inputs, desired: &Desired) {
        let failing: BTreeSet<_> = inputs.failing_services(desired).into_iter().collect();
        let name = |key: &ServiceKey| desired.services.get(key).map(|service| service.name.clone());
        for key in failing.difference(&self.failing_services) {
            error!(
                service = name(key),
                port = key.port,
                "every replica of a service fails its check: new connections go to all of them"
            );
        }
        for key in self.failing_services.difference(&failing) {
            info!(
                service = name(key),
                port = key.port,
                "not every replica of the service fails its check any more"
            );
        }
        self.failing_services = failing;
    }

    /// Logs each refusal once, and once that there is none any more.
    fn log_failures(&mut self) {
        let failures = self.ladder.lock().failures();
        for failure in &failures {
            if !self.logged_failures.contains(failure) {
                error!("{failure}; retrying");
            }
        }
        if failures.is_empty() && !self.logged_failures.is_empty() {
            info!("the data path has accepted what it refused before");
        }
        self.logged_failures = failures;
    }
}

/// The cluster's key, and those that the peers' data paths take.
fn tunnel_keys(source: &SourceState, own: &str) -> TunnelKeys {
    let peers = |datapath| {
        let nodes = source.cluster.nodes.iter();
        let peers = nodes.filter(move |(id, node)| *id != own && node.datapath == datapath);
        peers.map(|(_, node)| node)
    };
    TunnelKeys {
        current: source.key,
        peers: peers(NodeDatapath::Ebpf)
            .filter_map(|node| Some((node.address, node.keys.clone()?)))
            .collect(),
        without_datapath: peers(NodeDatapath::None).map(|node| node.address).collect(),
    }
}
