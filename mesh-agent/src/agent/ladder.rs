//! Keeps the node on the best data path that works: steps down by itself when the kernel refuses one, up
//! again only when asked. Knows the data paths by their trait; who makes them is told from outside.
//!
//! Between two data paths the new one is whole before the old one goes. The old one's going is a step of
//! its own ([`Ladder::retire`]), so that other nodes can be told in between.

mod carried;
mod reason;

use std::{
    collections::{BTreeMap, BTreeSet},
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
    admin::control::Request,
    datapath::{
        Counters, Datapath, DatapathChoice, DatapathError, DatapathKind, DatapathStatus, InterfaceMode,
        ReachedRung, Rung, RungState, RungStatus, dump::Dump,
    },
    model::{Desired, NodeDatapath},
};

/// How often in a row a data path may refuse what clients depend on before it is given up. With the
/// reconciler's waits these are some 300 ms, enough for what is only passing.
const STRIKES: u32 = 3;
/// What each kind of data path is to be, as a node of that kind.
pub(super) type DesiredFor<'a> = &'a dyn Fn(DatapathKind) -> Desired;

/// Makes data paths, and removes what earlier agents have left.
pub trait DatapathFactory: Send {
    /// Brings a data path into the kernel; each call is a new attempt.
    ///
    /// # Errors
    /// What refused it. Nothing of the attempt is left then.
    fn make(&mut self, kind: DatapathKind) -> Result<Box<dyn Datapath>, DatapathError>;

    /// Removes whatever of a kind is in the kernel. It is not in use.
    ///
    /// # Errors
    /// When something could not be removed; it is tried again.
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
    /// A data path that has been replaced and not yet taken out.
    retiring: Option<(DatapathKind, Box<dyn Datapath>)>,
    /// Kinds that were tried and refused: not again until asked for.
    refused: BTreeMap<DatapathKind, String>,
    /// Kinds whose remains have to be looked for.
    unclear: BTreeSet<DatapathKind>,
    /// Why remains are still there.
    clearing_failed: Option<String>,
    strikes: u32,
    steps_down: u64,
    /// The rung in use and the refused ones, as they were last logged.
    said: (Option<Rung>, BTreeSet<Rung>),
    /// What data paths that are gone have counted.
    before: Carried,
}

impl Ladder {
    /// Makes the best data path that the choice allows and that works.
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
                        retiring: None,
                        steps_down: refused.len() as u64,
                        refused,
                        unclear: others(kind),
                        clearing_failed: None,
                        strikes: 0,
                        said: (None, BTreeSet::new()),
                        before: Carried::default(),
                    });
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

    /// What an earlier agent left that still carries traffic, if it is what is used now.
    pub(super) fn adopted(&self) -> Option<NodeDatapath> {
        self.datapath.adopted().then(|| self.kind.into())
    }

    /// Brings the data path to what is desired. One that keeps refusing what clients depend on is given
    /// up for the next that works, if the choice allows one.
    /// Returns what is desired of the one in use then.
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
        self.tell();
        (round, wanted)
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
                        "{} is given up: {} from now on",
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

    /// Makes another data path, whole, and puts it in charge. The old one is left to [`Self::retire`].
    fn change_to(
        &mut self,
        kind: DatapathKind,
        desired: DesiredFor<'_>,
        now: Instant,
    ) -> Result<Round, String> {
        // One that has not gone yet may be of this kind.
        self.retire();
        let mut datapath = self.factory.make(kind).map_err(|error| one_line(&error))?;
        let mut reconciler = Reconciler::default();
        let round = reconciler.reconcile(&desired(kind), datapath.as_mut(), now);
        if round.failed > 0 {
            let reason = shortened(&reconciler.failures().join("; "));
            if let Err(error) = datapath.detach() {
                self.unclear.insert(kind);
                warn!(
                    error = error_chain(&error),
                    "an attempt could not be taken back whole"
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

    /// Takes the replaced data path, if any, out of the kernel. What it counted is kept.
    pub(super) fn retire(&mut self) {
        let Some((kind, mut old)) = self.retiring.take() else {
            return;
        };
        match old.counters() {
            Ok(counters) => self.before.add(&counters),
            Err(error) => warn!(error = error_chain(&error), "the last counters are lost"),
        }
        match old.detach() {
            Ok(()) => info!("{} is out of the kernel", kind.title()),
            Err(error) => {
                self.clearing_failed = Some(error_chain(&error));
                self.unclear.insert(kind);
            }
        }
    }

    /// Removes what is left of kinds that are not in use, now that the one in use is whole.
    fn clear(&mut self) {
        for kind in std::mem::take(&mut self.unclear) {
            match self.factory.clear(kind) {
                Ok(()) => self.clearing_failed = None,
                Err(error) => {
                    let reason = error_chain(&error);
                    if self.clearing_failed.as_ref() != Some(&reason) {
                        warn!(
                            reason,
                            "what is left of {} cannot be removed; trying again",
                            kind.title()
                        );
                    }
                    self.clearing_failed = Some(reason);
                    self.unclear.insert(kind);
                }
            }
        }
    }

    /// Does what was asked for.
    ///
    /// # Errors
    /// What refused it; everything is as it was then.
    pub(super) fn obey(
        &mut self,
        request: Request,
        desired: DesiredFor<'_>,
        now: Instant,
    ) -> Result<(), String> {
        match request {
            Request::Retry => self.step_up(desired, now)?,
            Request::Use(choice) => {
                if !choice.allows(self.kind) {
                    for &kind in choice.kinds() {
                        self.change_to(kind, desired, now)
                            .inspect_err(|reason| drop(self.refused.insert(kind, reason.clone())))?;
                        info!("{} from now on, as asked", kind.title());
                    }
                    self.choice = choice;
                } else {
                    self.choice = choice;
                    self.step_up(desired, now)?;
                }
            }
        }
        self.tell();
        Ok(())
    }

    fn step_up(&mut self, desired: DesiredFor<'_>, now: Instant) -> Result<(), String> {
        let from = self.kind;
        // Asked for: worse ones that were refused get another chance too, should they be needed.
        self.refused.retain(|kind, _| *kind < from);
        for &kind in self.choice.kinds().iter().filter(|kind| **kind < from) {
            match self.change_to(kind, desired, now) {
                Ok(_) => {
                    info!("{} again, as asked", kind.title());
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

    /// Reads the counters, those of data paths before included.
    pub(super) fn counters(&mut self) -> Result<Counters, DatapathError> {
        let mut counters = self.datapath.counters()?;
        self.before.add_to(&mut counters);
        Ok(counters)
    }

    /// The tables of the data path in use.
    pub(super) fn dump(&mut self, flows: usize) -> Result<Dump, DatapathError> {
        self.datapath.dump(flows)
    }

    pub(super) fn modes(&self) -> Vec<InterfaceMode> {
        self.datapath.modes()
    }

    /// Periodic upkeep; the replaced data path serves connections until it goes, so it is kept up too.
    pub(super) fn maintain(&mut self) -> Result<(), DatapathError> {
        if let Some((_, old)) = &mut self.retiring {
            old.maintain()?;
        }
        self.datapath.maintain()
    }

    /// When to try again what was refused.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.reconciler.retry_at()
    }

    /// What is wrong just now, each in one line.
    pub(super) fn failures(&self) -> Vec<String> {
        let mut failures = self.reconciler.failures().to_vec();
        failures.extend(self.clearing_failed.clone());
        failures
    }

    /// Takes everything out of the kernel.
    pub(super) fn detach(&mut self) -> Result<(), DatapathError> {
        self.retire();
        self.clear();
        self.datapath.detach()
    }

    /// What status, metrics and JSON show.
    pub(super) fn status(&self) -> DatapathStatus {
        let reached = self.reached_rung();
        let rungs: Vec<_> = Rung::ALL
            .into_iter()
            .map(|rung| self.rung_status(rung, &reached))
            .collect();
        let mut reasons: Vec<&str> = Vec::new();
        for better in rungs.iter().take_while(|status| status.state != RungState::InUse) {
            if !better.reason.is_empty() && !reasons.contains(&better.reason.as_str()) {
                reasons.push(&better.reason);
            }
        }
        DatapathStatus {
            choice: self.choice,
            kind: self.kind,
            rung: reached.rung,
            reason: if reached.rung.is_some() {
                reasons.join("; ")
            } else {
                "no uplink is known yet".to_owned()
            },
            rungs,
            steps_down: self.steps_down,
        }
    }

    fn reached_rung(&self) -> ReachedRung {
        match self.kind {
            DatapathKind::Ebpf => self.datapath.reached_rung(),
            DatapathKind::Ipvs => ReachedRung {
                rung: Some(Rung::Ipvs),
                passed: Vec::new(),
            },
        }
    }

    fn rung_status(&self, rung: Rung, reached: &ReachedRung) -> RungStatus {
        if reached.rung == Some(rung) {
            return RungStatus {
                rung,
                state: RungState::InUse,
                reason: String::new(),
            };
        }
        if let Some(passed) = reached.passed.iter().find(|passed| passed.rung == rung) {
            return passed.clone();
        }
        let kind = rung.kind();
        let (state, reason) = match self.refused.get(&kind) {
            Some(reason) if kind != self.kind => (RungState::Refused, reason.clone()),
            _ if !self.choice.allows(kind) => (
                RungState::NotTried,
                format!("only {} is asked for", self.choice.name()),
            ),
            _ => (RungState::NotTried, String::new()),
        };
        RungStatus { rung, state, reason }
    }

    /// Logs and counts what has changed about the rungs.
    fn tell(&mut self) {
        let status = self.status();
        let refused: BTreeSet<Rung> = status
            .rungs
            .iter()
            .filter(|rung| rung.state == RungState::Refused)
            .map(|rung| rung.rung)
            .collect();
        let (said_rung, said_refused) = &self.said;
        // A step between kinds has been counted where it was made.
        let hooks_refused = refused
            .difference(said_refused)
            .any(|rung| rung.kind() == self.kind);
        if hooks_refused {
            self.steps_down += 1;
            warn!(
                rung = status.rung_name(),
                reason = status.reason,
                "a better rung of the data path is refused"
            );
        } else if status.rung != *said_rung && status.rung.is_some() {
            info!(
                rung = status.rung_name(),
                reason = status.reason,
                "the data path's rung"
            );
        }
        self.said = (status.rung, refused);
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
