//! What the running agent does when something has happened: waits for it, acts on it, shows what came of it.

use std::time::{Duration, Instant};

use mesh_support::error_chain;
use tokio::time::sleep_until;
use tracing::{info, warn};

use super::{Agent, notify, notify_reloading};

use crate::{
    admin::{View, control},
    agent::membership::Membership,
    datapath::{DatapathChoice, DatapathKind},
    discovery::network::Interest,
    mesh0,
    model::NodeRole,
};

/// How many rounds of upkeep lie between two looks at whether mesh0 is still what it should be.
const MESH0_EVERY: u32 = 10;
/// How long the other nodes may take to learn that this one has changed its kind of data path, for which
/// both are in the kernel: managers tell the others within some 10 ms when they have been told.
const FOLLOWING_LIMIT: Duration = Duration::from_secs(1);

/// Why the loop acts.
pub(super) enum Reason {
    /// Something that the data path depends on has changed, or a refused change is due again.
    News,
    /// A node has connected to the feed or left it, or was refused.
    Workers,
    /// The data path's upkeep is due.
    Maintenance,
    /// The admin socket asks for something.
    Command(control::Command),
}

impl Agent {
    /// Waits for the next reason to act. Cancel safe.
    pub(super) async fn reason(&mut self) -> Reason {
        let retry_at = self.ladder.lock().retry_at();
        let retry_at = retry_at.into_iter().chain(self.retire_at);
        let retry_at = retry_at.map(tokio::time::Instant::from);
        let retry_at = retry_at.chain(self.announcement.retry_at()).min();
        let retry = async {
            match retry_at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        // A sender that is gone belongs to a part that has ended; the supervisor says so.
        tokio::select! {
            Ok(()) = self.parts.engine.changed() => Reason::News,
            Ok(()) = self.parts.source.changed() => Reason::News,
            Ok(()) = self.parts.containers.changed() => Reason::News,
            Ok(()) = self.parts.network.changed() => Reason::News,
            Ok(()) = self.parts.workers.changed() => Reason::Workers,
            Some(command) = self.parts.commands.recv() => Reason::Command(command),
            () = retry => Reason::News,
            _ = self.maintenance.tick() => Reason::Maintenance,
        }
    }

    pub(super) async fn act(&mut self, reason: Reason) {
        let command = match reason {
            Reason::News => None,
            Reason::Workers => return self.count_refused(),
            Reason::Maintenance => {
                if !self.maintain() {
                    return;
                }
                None
            }
            Reason::Command(command) => Some(command),
        };
        self.note_membership();
        self.state_interest();
        let kind = self.ladder.lock().kind();
        if kind == DatapathKind::Ebpf || command.as_ref().is_some_and(may_lead_to_ebpf) {
            self.ensure_device().await;
        }
        let answer = command.map(|command| (self.obey(command.request), command.answer));
        self.converge();
        self.change_over().await;
        self.publish();
        if let Some((result, answer)) = answer {
            // Whoever asked may have gone.
            let _ = answer.send(result.map(|()| self.ladder.lock().status()));
        }
    }

    /// Changes the data path as somebody asks.
    fn obey(&mut self, request: control::Request) -> Result<(), String> {
        let source = self.parts.source.borrow().clone();
        let plan = self.inputs(&source).map_err(|missing| {
            format!("the agent is still waiting for {missing}: ask again when it has it")
        })?;
        self.ladder
            .lock()
            .obey(request, &|kind| plan.desired(kind), Instant::now())
    }

    /// Ends a change from one data path to another: the new one is whole, and the old one goes when the
    /// other nodes have had the time to follow.
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
        // Before the first state stands, an earlier agent's eBPF may still be carrying traffic.
        if kind != DatapathKind::Ebpf && !retiring && self.desired.is_some() {
            self.device.release().await;
        }
    }

    /// Upkeep; true when there is more to look at than the data path.
    fn maintain(&mut self) -> bool {
        if let Err(error) = self.ladder.lock().maintain() {
            warn!(error = error_chain(&error), "the data path's upkeep failed");
        }
        if sd_notify::watchdog_enabled().is_some() {
            notify(&[sd_notify::NotifyState::Watchdog]);
        }
        self.maintenances = self.maintenances.wrapping_add(1);
        let due = self.maintenances.is_multiple_of(MESH0_EVERY);
        if due {
            // Somebody may have removed or changed it behind the agent's back.
            self.device.doubt();
        }
        due
    }

    /// Where the node stands now, or stood when Docker last could tell.
    fn note_membership(&mut self) {
        let now = self
            .parts
            .engine
            .borrow_and_update()
            .membership(self.options.docker_root.as_ref());
        if now != Membership::Unknown {
            self.membership = now;
        }
    }

    /// Tells the network watcher which peers to find.
    fn state_interest(&self) {
        let source = self.parts.source.borrow();
        let new = match &self.membership {
            Membership::Member(member) => Interest {
                node_address: Some(member.address),
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

    async fn ensure_device(&mut self) {
        let Some(node_address) = self.parts.interest.borrow().node_address else {
            return;
        };
        let uplink_mtu = self
            .parts
            .network
            .borrow()
            .as_ref()
            .and_then(|network| network.uplinks.values().map(|uplink| uplink.mtu).min());
        let Some(uplink_mtu) = uplink_mtu else {
            return;
        };
        let settings = mesh0::Settings {
            service_address: self.options.service_address,
            node_address,
            uplink_mtu,
        };
        self.device.ensure(settings).await;
    }

    fn count_refused(&mut self) {
        let total: u64 = self.parts.workers.borrow_and_update().refused.values().sum();
        // A new server, after a change of role, counts from zero.
        let more = total.checked_sub(self.refused_seen).unwrap_or(total);
        self.metrics.feed_refused().inc_by(more);
        self.refused_seen = total;
    }

    pub(super) fn publish(&self) {
        let membership = self.parts.engine.borrow();
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
        let (kind, status, modes, mut datapath_errors) = {
            let ladder = self.ladder.lock();
            (ladder.kind(), ladder.status(), ladder.modes(), ladder.failures())
        };
        datapath_errors.extend(self.device.trouble());
        self.introspection.publish(View {
            node,
            role,
            source: self.parts.source.borrow().clone(),
            desired: self.desired.clone().unwrap_or_default(),
            applied_revision: self.applied_revision,
            datapath: kind.into(),
            datapath_status: status,
            modes,
            datapath_errors,
            return_mode: self.options.return_mode,
            docker_trouble: membership
                .trouble
                .clone()
                .or_else(|| self.parts.containers.borrow().trouble.clone()),
            started: self.started,
        });
    }

    /// SIGHUP: certificates, cluster and network are read anew.
    pub(super) fn reload(&self) {
        info!("reloading");
        notify_reloading();
        self.parts.hints.reload();
        self.parts.ask_docker.hint();
        // Asked anew, routes and neighbours are read anew.
        self.parts.interest.send_modify(|_| {});
        notify(&[sd_notify::NotifyState::Ready]);
    }
}

/// Whether the data path may be eBPF after a command though it is not now.
fn may_lead_to_ebpf(command: &control::Command) -> bool {
    match command.request {
        control::Request::Retry => true,
        control::Request::Use(choice) => choice != DatapathChoice::Ipvs,
    }
}
