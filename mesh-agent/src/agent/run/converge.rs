//! Brings the data path to what follows from all that the running agent has been told.

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use tracing::{debug, error, info};

use super::Agent;
use crate::{
    agent::{inputs::Inputs, membership::Membership},
    model::{Local, NodeDatapath},
    source::SourceState,
};

impl Agent {
    /// Computes what the data path should be and brings it there. Nothing is done before every part has
    /// spoken once: an adopted data path is worth more than half a snapshot.
    pub(super) fn converge(&mut self) {
        let source = self.parts.source.borrow_and_update().clone();
        let inputs = match self.inputs(&source) {
            Ok(inputs) => inputs,
            Err(waiting_for) => {
                if self.said_waiting != Some(waiting_for) {
                    info!("waiting for {waiting_for}");
                    self.said_waiting = Some(waiting_for);
                }
                return;
            }
        };
        self.said_waiting = None;
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
                "data path brought up to date"
            );
        }
        if first {
            info!(
                services = desired.services.len(),
                backends = desired.backends.len(),
                peers = desired.peers.len(),
                uplinks = ?desired.uplinks.keys().collect::<Vec<_>>(),
                revision = source.revision,
                "the data path stands"
            );
        }
        self.say_failures();
        if round.failed == 0 && source.revision != self.applied_revision {
            // The first snapshot may be old news; what it took the origin is not what it took the mesh.
            if !first
                && round.applied > 0
                && let Some(changed) = source.changed
                && let Ok(duration) = SystemTime::now().duration_since(changed)
            {
                self.metrics.observe_programming(duration);
            }
            self.applied_revision = source.revision;
        }
        if round.failed == 0 {
            self.announcement.announce(match self.membership {
                Membership::Member(_) => kind.into(),
                Membership::Unknown | Membership::Outside => NodeDatapath::None,
            });
            self.stands
                .send_if_modified(|stands| !std::mem::replace(stands, true));
        }
        self.desired = Some(Arc::new(desired));
    }

    /// What the data path follows from, or what is still missing to tell.
    pub(super) fn inputs(&mut self, source: &SourceState) -> Result<Inputs, &'static str> {
        let member = match &self.membership {
            Membership::Unknown => return Err("Docker to tell this node's place in the Swarm"),
            Membership::Outside => return Ok(Inputs::Outside),
            Membership::Member(member) => member,
        };
        if source.confirmed.is_none() {
            return Err("the first snapshot of the cluster");
        }
        let containers = self.parts.containers.borrow();
        if !containers.listed {
            return Err("the first list of this node's containers");
        }
        let network = self.parts.network.borrow();
        let Some(network) = network.as_ref() else {
            return Err("the first look at this node's network");
        };
        if !self.announcement.may_plan(&source.cluster, &member.node) {
            return Err("the agents of the other nodes to say what balances there");
        }
        let local = Local {
            node: member.node.clone(),
            // Each kind of data path is its own: see `Inputs::desired`.
            datapath: NodeDatapath::Unknown,
            leaving: self.announcement.is_leaving(),
            addresses: network.addresses.clone(),
            containers: containers.containers.clone(),
            uplinks: network.uplinks.clone(),
            container_interfaces: network.container_interfaces.clone(),
            mesh0: self.device.interface(),
            next_hops: network.next_hops.clone(),
            return_mode: self.options.return_mode,
        };
        Ok(Inputs::Member {
            cluster: Arc::clone(&source.cluster),
            local: Box::new(local),
            service_address: self.options.service_address,
        })
    }

    /// Each refusal once, and once that there is none any more.
    fn say_failures(&mut self) {
        let failures = self.ladder.lock().failures();
        for failure in &failures {
            if !self.said_failures.contains(failure) {
                error!("{failure}; trying again");
            }
        }
        if failures.is_empty() && !self.said_failures.is_empty() {
            info!("the data path has taken what it refused before");
        }
        self.said_failures = failures;
    }
}
