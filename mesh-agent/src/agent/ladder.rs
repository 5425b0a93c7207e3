//! Keeps the node on the best data path that works: steps down by itself when the kernel refuses one, and up
//! again only on request. Knows data paths by their trait only; a factory creates them.
//!
//! When the data path changes, the new one is complete before the old one is removed. Removing it is a step
//! of its own ([`Ladder::retire`]), so that other nodes can learn of the change in between.

mod carried;
mod reason;
mod status;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    time::Instant,
};

use mesh_support::error_chain;
use tracing::{error, info, warn};

use self::{
    carried::Carried,
    reason::{one_line, shortened},
};
use super::{Reconciler, reconcile::Round};
use crate::{
    admin::control::DatapathRequest,
    datapath::{
        Counters, Datapath, DatapathChoice, DatapathError, DatapathKind, InterfaceMode, Rung,
        dump::Dump,
        explain::{Explanation, Question},
        flow_list::{FlowCursor, ListedFlow},
        limited::LimitedServices,
        mapped::MappedClient,
        monitor::Observations,
    },
    model::{Desired, KeyId, NodeDatapath, ServiceKey, TunnelKey, TunnelKeys},
};

/// After how many refusals in a row of what every service depends on a data path is abandoned. With the
/// reconciler's delays that takes some 300 ms, enough to sit out what is temporary.
const STRIKES: u32 = 3;
/// The desired state of each kind of data path.
pub(super) type DesiredFor<'a> = &'a dyn Fn(DatapathKind) -> Desired;

/// Creates data paths, and removes what earlier agents have left.
pub trait DatapathFactory: Send {
    /// Creates a data path in the kernel; each call is a new attempt.
    ///
    /// # Errors
    /// When the kernel refuses it. Nothing of the attempt is left then.
    fn make(&mut self, kind: DatapathKind) -> Result<Box<dyn Datapath>, DatapathError>;

    /// Removes everything of a kind that is not in use from the kernel.
    ///
    /// # Errors
    /// When something could not be removed; it is retried.
    fn clear(&mut self, kind: DatapathKind) -> Result<(), DatapathError>;
}

/// No data path works on this node.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(|(kind, reason)| format!("{}: {reason}", kind.title())).collect::<Vec<_>>().join("; "))]
pub struct NothingWorks(Vec<(DatapathKind, String)>);

/// The data path in use, and what is known of the others.
pub(super) struct Ladder {
    factory: Box<dyn DatapathFactory>,
    choice: DatapathChoice,
    kind: DatapathKind,
    datapath: Box<dyn Datapath>,
    reconciler: Reconciler,
    /// For the next data path, if the kind changes.
    keys: TunnelKeys,
    /// A data path that has been replaced and not yet removed.
    retiring: Option<(DatapathKind, Box<dyn Datapath>)>,
    /// Kinds that were tried and refused; retried on request only.
    refused: BTreeMap<DatapathKind, String>,
    /// Kinds of which something may be left in the kernel.
    unclear: BTreeSet<DatapathKind>,
    /// Why it could not be removed.
    clearing_failed: Option<String>,
    strikes: u32,
    steps_down: u64,
    /// The rung in use and the refused ones, as last logged.
    logged: (Option<Rung>, BTreeSet<Rung>),
    /// The counters of removed data paths.
    before: Carried,
}

impl Ladder {
    /// Creates the best data path that the choice allows and that works.
    ///
    /// # Errors
    /// When none does.
    pub(super) fn start(
        choice: DatapathChoice,
        mut factory: Box<dyn DatapathFactory>,
    ) -> Result<Self, NothingWorks> {
        let mut refused = BTreeMap::new();
        for &kind in choice.kinds() {
            match factory.make(kind) {
                Ok(datapath) => {
                    return Ok(Self {
                        factory,
                        choice,
                        kind,
                        datapath,
                        reconciler: Reconciler::default(),
                        keys: TunnelKeys::default(),
                        retiring: None,
                        steps_down: refused.len() as u64,
                        refused,
                        unclear: others(kind),
                        clearing_failed: None,
                        strikes: 0,
                        logged: (None, BTreeSet::new()),
                        before: Carried::default(),
                    });
                }
                // What serves is worth more than another kind, on which no open connection goes on.
                Err(error) if error.leaves_earlier_serving() => {
                    return Err(NothingWorks(vec![(kind, one_line(&error))]));
                }
                Err(error) => {
                    let reason = one_line(&error);
                    if choice.kinds().len() > 1 {
                        warn!(reason, "{} does not work on this node", kind.title());
                    }
                    refused.insert(kind, reason);
                }
            }
        }
        Err(NothingWorks(refused.into_iter().collect()))
    }

    pub(super) fn kind(&self) -> DatapathKind {
        self.kind
    }

    /// The kind of an earlier agent's data path that still carries traffic and was adopted.
    pub(super) fn adopted(&self) -> Option<NodeDatapath> {
        self.datapath.adopted().then(|| self.kind.into())
    }

    /// Takes over the keys of packets between nodes, before the state that follows from the same snapshot.
    /// Returns the ids of those that the data path takes.
    pub(super) fn set_keys(&mut self, keys: TunnelKeys) -> Vec<KeyId> {
        if let Err(error) = self.datapath.set_keys(&keys) {
            warn!(
                error = error_chain(&error),
                "the tunnel's keys could not be written; retrying"
            );
        }
        self.keys = keys;
        self.datapath.key_ids()
    }

    /// The key that the data path sends to each peer.
    pub(super) fn sent_keys(&self) -> BTreeMap<Ipv4Addr, TunnelKey> {
        self.datapath.sent_keys()
    }

    /// Brings the data path to the desired state. One that keeps refusing what every service depends on is
    /// abandoned for the next one that works, if the choice allows it; a refusal that is about one service
    /// takes that service out alone. Returns the desired state of the one in use then, without the frontends
    /// of refused services.
    pub(super) fn reconcile(&mut self, desired: DesiredFor<'_>, now: Instant) -> (Round, Desired) {
        let mut wanted = desired(self.kind);
        let mut round = self.reconciler.reconcile(&wanted, self.datapath.as_mut(), now);
        self.strikes = if round.crippled { self.strikes + 1 } else { 0 };
        if self.strikes >= STRIKES
            && let Some(lower) = self.step_down(desired, now)
        {
            round = lower;
            wanted = desired(self.kind);
        }
        if round.failed == 0 && self.retiring.is_none() {
            self.clear();
        }
        self.log_changes();
        let refused = self.refused_services();
        wanted
            .frontends
            .retain(|frontend| !refused.contains_key(&frontend.service));
        (round, wanted)
    }

    /// The services that the data path in use refuses, and why; they have no frontends.
    pub(super) fn refused_services(&self) -> BTreeMap<ServiceKey, String> {
        self.reconciler.refused_services()
    }

    fn step_down(&mut self, desired: DesiredFor<'_>, now: Instant) -> Option<Round> {
        let reason = shortened(&self.reconciler.failures().join("; "));
        let from = self.kind;
        let lower = self.choice.kinds().iter().copied().filter(|kind| *kind > from);
        for kind in lower {
            if self.refused.contains_key(&kind) {
                continue;
            }
            match self.change_to(kind, desired, now) {
                Ok(round) => {
                    warn!(
                        reason,
                        "{} is abandoned: {} from now on",
                        from.title(),
                        kind.title()
                    );
                    self.refused.insert(from, reason);
                    self.steps_down += 1;
                    return Some(round);
                }
                Err(refusal) => {
                    error!(
                        reason = refusal,
                        "{} cannot take over from {}",
                        kind.title(),
                        from.title()
                    );
                    self.refused.insert(kind, refusal);
                }
            }
        }
        None
    }

    /// Creates another data path completely and switches to it. The old one is left to [`Self::retire`].
    fn change_to(
        &mut self,
        kind: DatapathKind,
        desired: DesiredFor<'_>,
        now: Instant,
    ) -> Result<Round, String> {
        // One that is still to be removed may be of this kind.
        self.retire();
        let mut datapath = self.factory.make(kind).map_err(|error| one_line(&error))?;
        datapath.set_keys(&self.keys).map_err(|error| one_line(&error))?;
        let mut reconciler = Reconciler::default();
        let round = reconciler.reconcile(&desired(kind), datapath.as_mut(), now);
        if round.failed > 0 || round.crippled {
            let reason = shortened(&reconciler.failures().join("; "));
            if let Err(error) = datapath.detach() {
                self.unclear.insert(kind);
                warn!(
                    error = error_chain(&error),
                    "a failed attempt could not be removed completely"
                );
            }
            return Err(reason);
        }
        let old = std::mem::replace(&mut self.datapath, datapath);
        self.reconciler = reconciler;
        self.retiring = Some((self.kind, old));
        self.kind = kind;
        self.refused.remove(&kind);
        self.unclear.remove(&kind);
        self.strikes = 0;
        Ok(round)
    }

    /// Whether a replaced data path is still in the kernel.
    pub(super) fn is_retiring(&self) -> bool {
        self.retiring.is_some()
    }

    /// Removes the replaced data path, if any, from the kernel. Its counters are kept.
    pub(super) fn retire(&mut self) {
        let Some((kind, mut old)) = self.retiring.take() else {
            return;
        };
        match old.counters() {
            Ok(counters) => self.before.add(&counters),
            Err(error) => warn!(error = error_chain(&error), "cannot read its last counters"),
        }
        match old.detach() {
            Ok(()) => info!("{} was removed from the kernel", kind.title()),
            Err(error) => {
                self.clearing_failed = Some(error_chain(&error));
                self.unclear.insert(kind);
            }
        }
    }

    /// Removes what is left of kinds that are not in use, now that the one in use is complete.
    fn clear(&mut self) {
        for kind in std::mem::take(&mut self.unclear) {
            match self.factory.clear(kind) {
                Ok(()) => self.clearing_failed = None,
                Err(error) => {
                    let reason = error_chain(&error);
                    if self.clearing_failed.as_ref() != Some(&reason) {
                        warn!(reason, "cannot remove what is left of {}; retrying", kind.title());
                    }
                    self.clearing_failed = Some(reason);
                    self.unclear.insert(kind);
                }
            }
        }
    }

    /// Executes a request from the admin socket.
    ///
    /// # Errors
    /// Why it was refused; nothing has changed then.
    pub(super) fn execute(
        &mut self,
        request: DatapathRequest,
        desired: DesiredFor<'_>,
        now: Instant,
    ) -> Result<(), String> {
        match request {
            DatapathRequest::Retry => self.step_up(desired, now)?,
            DatapathRequest::Use(choice) => {
                if !choice.allows(self.kind) {
                    for &kind in choice.kinds() {
                        self.change_to(kind, desired, now)
                            .inspect_err(|reason| drop(self.refused.insert(kind, reason.clone())))?;
                        info!("{} from now on, as requested", kind.title());
                    }
                    self.choice = choice;
                } else {
                    self.choice = choice;
                    self.step_up(desired, now)?;
                }
            }
        }
        self.log_changes();
        Ok(())
    }

    fn step_up(&mut self, desired: DesiredFor<'_>, now: Instant) -> Result<(), String> {
        let from = self.kind;
        // On request, worse ones that were refused may be tried again too, should they be needed.
        self.refused.retain(|kind, _| *kind < from);
        for &kind in self.choice.kinds().iter().filter(|kind| **kind < from) {
            match self.change_to(kind, desired, now) {
                Ok(_) => {
                    info!("{} again, as requested", kind.title());
                    return Ok(());
                }
                Err(reason) => {
                    info!(reason, "{} is still refused", kind.title());
                    self.refused.insert(kind, reason);
                }
            }
        }
        self.datapath.climb().map_err(|error| one_line(&error))
    }

    /// Reads the counters, including those of earlier data paths.
    pub(super) fn counters(&mut self) -> Result<Counters, DatapathError> {
        let mut counters = self.datapath.counters()?;
        self.before.add_to(&mut counters);
        Ok(counters)
    }

    /// The tables of the data path in use.
    pub(super) fn dump(&mut self, flows: usize) -> Result<Dump, DatapathError> {
        self.datapath.dump(flows)
    }

    /// The next flows of the data path in use; see [`Datapath::read_flows`].
    pub(super) fn read_flows(
        &mut self,
        cursor: &mut FlowCursor,
        visit: &mut dyn FnMut(ListedFlow),
    ) -> Result<bool, DatapathError> {
        self.datapath.read_flows(cursor, visit)
    }

    /// What the data path in use would do with a packet.
    pub(super) fn explain(&mut self, question: &Question) -> Result<Explanation, DatapathError> {
        self.datapath.explain(question)
    }

    /// What the data path in use has done with packets; see [`Datapath::observe`].
    pub(super) fn observe(&mut self, since: Option<u64>) -> Result<Observations, DatapathError> {
        self.datapath.observe(since)
    }

    /// The IPv6 clients of the data path in use; see [`Datapath::mapped_clients`].
    pub(super) fn mapped_clients(&mut self, of: Option<IpAddr>) -> Result<Vec<MappedClient>, DatapathError> {
        self.datapath.mapped_clients(of)
    }

    pub(super) fn modes(&self) -> Vec<InterfaceMode> {
        self.datapath.modes()
    }

    /// Periodic maintenance, also of a replaced data path, which serves connections until it is removed.
    pub(super) fn maintain(&mut self) -> Result<(), DatapathError> {
        if let Some((_, old)) = &mut self.retiring {
            old.maintain()?;
        }
        self.datapath.maintain()
    }

    /// What the limits of new connections of the data path in use do; see [`Datapath::limited`].
    pub(super) fn limited(&self) -> LimitedServices {
        self.datapath.limited()
    }

    /// When to retry what was refused.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.reconciler.retry_at()
    }

    /// The uplinks that the data path in use refuses to attach to, and why.
    pub(super) fn refused_uplinks(&self) -> BTreeMap<String, String> {
        self.reconciler.refused_uplinks().clone()
    }

    /// The current failures, one line each.
    pub(super) fn failures(&self) -> Vec<String> {
        let mut failures = self.reconciler.failures().to_vec();
        failures.extend(self.clearing_failed.clone());
        failures
    }

    /// Removes everything from the kernel.
    pub(super) fn detach(&mut self) -> Result<(), DatapathError> {
        self.retire();
        self.clear();
        self.datapath.detach()
    }
}

fn others(kind: DatapathKind) -> BTreeSet<DatapathKind> {
    BTreeSet::from(match kind {
        DatapathKind::Ebpf => [DatapathKind::Ipvs],
        DatapathKind::Ipvs => [DatapathKind::Ebpf],
    })
}

#[cfg(test)]
mod tests;
