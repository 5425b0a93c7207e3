//! Events: waiting for one, reacting to it, publishing the result.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use mesh_support::error_chain;
use mesh_support::watched::{Newest as _, Watched as _};
use tokio::time::sleep_until;
use tracing::{info, warn};

use super::{Agent, converge::FIRST_SNAPSHOT, ipv6::Ipv6Choice, targets::probe_targets};

use crate::{
    admin::{View, control},
    agent::{membership::Membership, service_manager},
    datapath::{DatapathChoice, DatapathKind, InterfaceMode, Mode},
    discovery::{network::Interest, not_forwarding},
    health, mesh0,
    model::{AgentConnection, Cluster, Node, NodeId, NodeRole, ServiceKey, desired::vni},
    probes::{self, Geneve},
    source::SourceState,
};

/// mesh0 is verified with every so-manieth maintenance.
const MESH0_EVERY: u32 = 10;
/// How long both data paths stay in the kernel when their kind changes, until the other nodes have learned of
/// it: managers pass an announcement on within some 10 ms.
const FOLLOWING_LIMIT: Duration = Duration::from_secs(1);

/// What the agent reacts to.
pub(super) enum Event {
    /// Something that the data path depends on has changed, or a refused change is due for a retry.
    Changed,
    /// A node has connected to the feed, disconnected, or was refused.
    Workers,
    /// Something else of the node serves a published port, or no longer does.
    Ports,
    /// The data path's maintenance is due.
    Maintenance,
    /// A command from the admin socket.
    Command(control::Command),
}

impl Agent {
    /// Waits for the next event. Cancel safe.
    pub(super) async fn event(&mut self) -> Event {
        let retry_at = self.ladder.lock().retry_at();
        let retry_at = retry_at.into_iter().chain(self.retire_at).chain(self.due_at);
        let retry_at = retry_at.map(tokio::time::Instant::from);
        let retry_at = retry_at.chain(self.announcement.retry_at()).min();
        let retry = async {
            match retry_at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        // A closed channel belongs to a part that has ended, which the supervisor reports.
        tokio::select! {
            Ok(()) = self.parts.engine.changed() => Event::Changed,
            Ok(()) = self.parts.source.changed() => Event::Changed,
            Ok(()) = self.parts.containers.changed() => Event::Changed,
            Ok(()) = self.parts.network.changed() => Event::Changed,
            Ok(()) = self.parts.host_firewall.changed() => Event::Changed,
            Ok(()) = self.parts.ipv6_rules.changed() => Event::Changed,
            Ok(()) = self.parts.probes.changed() => Event::Changed,
            Ok(()) = self.parts.failed.changed() => Event::Changed,
            Ok(()) = self.parts.occupied_ports.changed() => Event::Ports,
            Ok(()) = self.parts.workers.changed() => Event::Workers,
            Some(command) = self.parts.commands.recv() => Event::Command(command),
            () = retry => Event::Changed,
            _ = self.maintenance.tick() => Event::Maintenance,
        }
    }

    pub(super) async fn handle(&mut self, event: Event) {
        let command = match event {
            Event::Changed => None,
            Event::Workers => return self.count_refused(),
            Event::Ports => return self.publish(),
            Event::Maintenance => {
                if !self.maintain() {
                    return;
                }
                None
            }
            Event::Command(command) => Some(command),
        };
        self.update_membership();
        self.update_interest();
        let kind = self.ladder.lock().kind();
        if kind == DatapathKind::Ebpf || command.as_ref().is_some_and(can_result_in_ebpf) {
            self.ensure_device().await;
        }
        let answer = command.map(|command| (self.execute(command.request), command.answer));
        self.converge();
        self.change_over().await;
        self.update_probe_targets();
        self.update_check_targets();
        self.update_published_ports();
        self.publish();
        if let Some((result, answer)) = answer {
            // The client may have disconnected.
            let _ = answer.send(result.map(|()| self.ladder.lock().status()));
        }
    }

    /// Does what the admin socket requests.
    fn execute(&mut self, request: control::Request) -> Result<(), String> {
        match request {
            control::Request::Datapath(request) => self.change_datapath(request),
            control::Request::Drain(request) => {
                let Membership::Member(member) = &self.membership else {
                    return Err("this node is in no cluster yet, so it has no replicas to drain".to_owned());
                };
                let cluster = self.parts.source.current().cluster;
                self.drains.execute(&request, &cluster, &member.node)
            }
        }
    }

    fn change_datapath(&mut self, request: control::DatapathRequest) -> Result<(), String> {
        let source = self.parts.source.current();
        let plan = self
            .inputs(&source)
            .map_err(|missing| format!("the agent is still waiting for {missing}: try again later"))?;
        self.ladder
            .lock()
            .execute(request, &|kind| plan.desired(kind), Instant::now())
    }

    /// Ends a change from one data path to another: the new one is complete, and the old one is removed when
    /// the other nodes have had time to follow.
    async fn change_over(&mut self) {
        let (kind, retiring) = {
            let mut ladder = self.ladder.lock();
            let now = Instant::now();
            if !ladder.is_retiring() {
                self.retire_at = None;
            } else if *self.retire_at.get_or_insert(now + FOLLOWING_LIMIT) <= now {
                ladder.retire();
                self.retire_at = None;
            }
            (ladder.kind(), ladder.is_retiring())
        };
        // Before the first state is applied, an earlier agent's eBPF may still carry traffic.
        if kind != DatapathKind::Ebpf && !retiring && self.desired.is_some() {
            self.device.release().await;
        }
    }

    /// Maintains the data path; true when mesh0 is to be verified as well.
    fn maintain(&mut self) -> bool {
        let (maintained, limited) = {
            let mut ladder = self.ladder.lock();
            (ladder.maintain(), ladder.limited())
        };
        if let Err(error) = maintained {
            warn!(error = error_chain(&error), "the data path's maintenance failed");
        }
        self.introspection.set_limited(limited);
        service_manager::watchdog();
        self.maintenances = self.maintenances.wrapping_add(1);
        let due = self.maintenances.is_multiple_of(MESH0_EVERY);
        if due {
            // Something else may have removed or changed it.
            self.device.verify_next_time();
            self.look_at_forwarding();
        }
        due
    }

    /// Sees whether the kernel forwards where programs ask it for ways, or where it does all on IPVS.
    fn look_at_forwarding(&mut self) {
        let network = self.parts.network.newest();
        let (Some(network), Some(desired)) = (&network, &self.desired) else {
            return;
        };
        let found = not_forwarding(
            &self.options.sysctls,
            network.uplinks.keys().cloned(),
            &desired.container_interfaces,
        );
        if found != self.not_forwarding && !found.is_empty() {
            warn!(
                interfaces = ?found,
                "the kernel does not forward IPv4 on these interfaces, so answers to clients are lost: set \
                 net.ipv4.ip_forward to 1"
            );
        }
        self.not_forwarding = found;
    }

    /// Takes over the membership, or keeps the last known one during an outage of Docker.
    fn update_membership(&mut self) {
        let now = self
            .parts
            .engine
            .newest()
            .membership(self.options.docker_root.as_ref());
        if now != Membership::Unknown {
            self.membership = now;
        }
    }

    /// Passes to the network watcher which peers to resolve.
    fn update_interest(&self) {
        let source = self.parts.source.current();
        let new = match &self.membership {
            Membership::Member(member) => Interest {
                // The one that it announced, where data and control have addresses of their own.
                node_address: Some(
                    source
                        .cluster
                        .nodes
                        .get(&member.node)
                        .map_or(member.address, |node| node.address),
                ),
                advertised_address: Some(member.address),
                peers: source
                    .cluster
                    .nodes
                    .iter()
                    .filter(|(id, node)| **id != member.node && !node.address.is_unspecified())
                    .map(|(_, node)| node.address)
                    .collect(),
            },
            Membership::Unknown => return,
            Membership::Outside => Interest::default(),
        };
        self.parts.interest.send_if_modified(|interest| {
            let changed = *interest != new;
            *interest = new;
            changed
        });
    }

    /// Passes to the prober whom to probe, once this node has a data path of its own, be it an earlier
    /// agent's: the first plan of that one may depend on the answers.
    fn update_probe_targets(&self) {
        let is_up = self.desired.is_some() || self.announcement.is_adopted();
        let kind = self.ladder.lock().kind();
        let cluster = self.parts.source.current().cluster;
        let new = match &self.membership {
            Membership::Member(member) if is_up => probe_targets(&cluster, &member.node, kind, || Geneve {
                vni: vni(&cluster.cluster_id),
                port: self.options.geneve_port,
                keys: self.ladder.lock().sent_keys(),
                routes: self.routes_to_peers(),
            }),
            Membership::Member(_) | Membership::Unknown | Membership::Outside => None,
        };
        self.parts.probe_targets.send_if_modified(|targets| {
            let changed = *targets != new;
            *targets = new;
            changed
        });
    }

    /// Passes on which replicas of this node to check, and how.
    fn update_check_targets(&self) {
        let cluster = self.parts.source.current().cluster;
        let containers = self.parts.containers.current().containers;
        let new = match &self.membership {
            Membership::Member(member) => health::targets(&cluster, &member.node, &containers),
            Membership::Unknown => return,
            Membership::Outside => health::Targets::new(),
        };
        self.parts.check_targets.send_if_modified(|targets| {
            let changed = *targets != new;
            *targets = new;
            changed
        });
    }

    /// Passes on which ports services publish, so that others who serve them are found.
    fn update_published_ports(&self) {
        let new: BTreeSet<ServiceKey> = self
            .desired
            .iter()
            .flat_map(|desired| {
                desired
                    .services
                    .keys()
                    .filter(|key| !desired.left.contains_key(key))
            })
            .copied()
            .collect();
        self.parts.published_ports.send_if_modified(|ports| {
            let changed = *ports != new;
            *ports = new;
            changed
        });
    }

    /// The routes to the peers that are resolved.
    fn routes_to_peers(&self) -> BTreeMap<Ipv4Addr, probes::Route> {
        let network = self.parts.network.current();
        let next_hops = network.iter().flat_map(|network| &network.next_hops);
        next_hops
            .filter_map(|(address, hop)| {
                let route = probes::Route {
                    interface: hop.interface,
                    // A UDP packet has no more.
                    mtu: u16::try_from(hop.mtu?).unwrap_or(u16::MAX - 1),
                };
                Some((*address, route))
            })
            .collect()
    }

    async fn ensure_device(&mut self) {
        let Some(node_address) = self.parts.interest.current().node_address else {
            return;
        };
        let uplink_mtu = self
            .parts
            .network
            .current()
            .as_ref()
            .and_then(|network| network.uplinks.values().map(|uplink| uplink.mtu).min());
        let Some(uplink_mtu) = uplink_mtu else {
            return;
        };
        let ipv6 = match self.ipv6() {
            Ipv6Choice::Served(_) => true,
            Ipv6Choice::Left(_) => false,
            // An earlier agent's may carry connections.
            Ipv6Choice::Unknown => return,
        };
        let settings = mesh0::Settings {
            service_address: self.options.service_address,
            node_address,
            uplink_mtu,
            ipv6,
        };
        self.device.ensure(settings).await;
    }

    fn count_refused(&mut self) {
        let total: u64 = self.parts.workers.newest().refused.values().sum();
        // After a change of role, a new server counts from zero.
        let more = total.checked_sub(self.refused_seen).unwrap_or(total);
        self.metrics.feed_refused().inc_by(more);
        self.refused_seen = total;
    }

    pub(super) fn publish(&mut self) {
        let (node, role) = match &self.membership {
            Membership::Member(member) => (
                member.node.clone(),
                Some(if member.manager {
                    NodeRole::Manager
                } else {
                    NodeRole::Worker
                }),
            ),
            Membership::Unknown | Membership::Outside => (String::new(), None),
        };
        let (kind, status, mut modes, mut datapath_errors, refused_services) = {
            let ladder = self.ladder.lock();
            (
                ladder.kind(),
                ladder.status(),
                ladder.modes(),
                ladder.failures(),
                ladder.refused_services(),
            )
        };
        datapath_errors.extend(self.device.trouble());
        if kind == DatapathKind::Ebpf {
            modes.extend(self.interfaces_without_hook());
        }
        let source = self.parts.source.current();
        follow_lost(&mut self.lost_agents, &source.cluster, SystemTime::now());
        let probes = self.parts.probes.current();
        let failed = self.parts.failed.current();
        let containers_trouble = self.parts.containers.current().trouble;
        let docker_trouble = self.parts.engine.current().trouble();
        self.introspection.publish(View {
            node,
            role,
            source,
            desired: self.desired.clone().unwrap_or_default(),
            applied_revision: self.applied_revision,
            datapath: kind.into(),
            datapath_status: status,
            modes,
            without_hook: self.without_hook.clone(),
            not_forwarding: self.not_forwarding.clone(),
            datapath_errors,
            refused_services,
            // The introspection has them as of the last maintenance.
            limited: Default::default(),
            occupied_ports: self.parts.occupied_ports.current(),
            probes,
            drained: self.drains.current(),
            failed,
            lost_agents: self.lost_agents.clone(),
            policy: Arc::clone(&self.policy),
            ipv6_left: self.ipv6_left(kind),
            return_mode: self.options.return_mode,
            metrics_trouble: None,
            not_ready: self.not_ready(),
            ready_without_snapshot: self.ready_without_snapshot(),
            docker_trouble: docker_trouble.or(containers_trouble),
            started: self.started,
        });
    }

    /// The interfaces on which traffic from outside arrives unseen, and why.
    fn interfaces_without_hook(&self) -> Vec<InterfaceMode> {
        let mut reasons = self.ladder.lock().refused_uplinks();
        if let Some(network) = self.parts.network.current().as_ref() {
            reasons.extend(network.unusable_uplinks.clone());
        }
        let mode = |(interface, reason)| InterfaceMode {
            interface,
            mode: Mode::None,
            reason,
        };
        reasons.into_iter().map(mode).collect()
    }

    /// Why the data path is not up yet; `None` once it was, or if that is not for this agent to change.
    fn not_ready(&self) -> Option<String> {
        if self.is_up.current() || self.ready_without_snapshot().is_some() {
            return None;
        }
        Some(match (self.logged_waiting, self.logged_failures.first()) {
            (Some(input), _) => format!("waiting for {input}"),
            (None, Some(failure)) => failure.clone(),
            (None, None) => "the agent is starting".to_owned(),
        })
    }

    /// Why this agent counts as ready although it has no snapshot of the cluster yet: everything else is
    /// known, an earlier agent's data path carries the traffic, and no manager's agent can be reached. If
    /// this one did not count as ready, a release that is to repair the managers' agents would stop here.
    pub(super) fn ready_without_snapshot(&self) -> Option<String> {
        let adopted = self.announcement.is_adopted();
        ready_without_snapshot(self.logged_waiting, adopted, &self.parts.source.current())
    }

    /// SIGHUP: rereads settings, certificates, cluster and network.
    pub(super) fn reload(&mut self) {
        info!("reloading");
        let is_up = self.is_up.current();
        if is_up {
            service_manager::reloading();
        }
        self.reload_settings();
        self.parts.hints.reload();
        self.parts.engine_hint.hint();
        // Makes the watcher reread routes and neighbours.
        self.parts.interest.send_modify(|_| {});
        if is_up {
            service_manager::ready();
        }
    }
}

/// Brings the times up to date since when agents are lost.
fn follow_lost(lost: &mut BTreeMap<NodeId, SystemTime>, cluster: &Cluster, now: SystemTime) {
    let is_lost = |node: &Node| node.agent == AgentConnection::Lost;
    lost.retain(|id, _| cluster.nodes.get(id).is_some_and(is_lost));
    for (id, _) in cluster.nodes.iter().filter(|(_, node)| is_lost(node)) {
        lost.entry(id.clone()).or_insert(now);
    }
}

fn ready_without_snapshot(waiting: Option<&str>, adopted: bool, source: &SourceState) -> Option<String> {
    (waiting == Some(FIRST_SNAPSHOT) && adopted && source.no_manager).then(|| {
        let trouble = source.trouble.as_deref().unwrap_or_default();
        format!("the data path of an earlier agent forwards; no manager's agent can be reached: {trouble}")
    })
}

/// Whether a command can change the data path to eBPF.
fn can_result_in_ebpf(command: &control::Command) -> bool {
    match &command.request {
        control::Request::Datapath(control::DatapathRequest::Retry) => true,
        control::Request::Datapath(control::DatapathRequest::Use(choice)) => *choice != DatapathChoice::Ipvs,
        control::Request::Drain(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adopted_data_path_is_ready_without_a_snapshot_only_while_no_manager_can_be_reached() {
        let source = |no_manager| SourceState {
            trouble: Some("manager 192.0.2.1:7946: cannot connect".to_owned()),
            no_manager,
            ..SourceState::default()
        };
        let unreachable = source(true);
        let reason = ready_without_snapshot(Some(FIRST_SNAPSHOT), true, &unreachable).unwrap();
        assert!(reason.contains("192.0.2.1"), "{reason}");
        for (waiting, adopted, source) in [
            // It serves nothing.
            (Some(FIRST_SNAPSHOT), false, &unreachable),
            // A manager answers, but this agent does not get along with it.
            (Some(FIRST_SNAPSHOT), true, &source(false)),
            // Something of this node's own is missing.
            (
                Some("the first listing of this node's network"),
                true,
                &unreachable,
            ),
            (None, true, &unreachable),
        ] {
            let ready = ready_without_snapshot(waiting, adopted, source);
            assert_eq!(ready, None, "{waiting:?} {adopted} {source:?}");
        }
    }
}
