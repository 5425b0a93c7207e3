//! What the ladder reports to the status, the metrics and the log.

use std::collections::BTreeSet;

use tracing::{info, warn};

use super::Ladder;
use crate::datapath::{DatapathKind, DatapathStatus, ReachedRung, Rung, RungState, RungStatus};

impl Ladder {
    /// What status, metrics and JSON show.
    pub(in crate::agent) fn status(&self) -> DatapathStatus {
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
                format!("only {} is requested", self.choice.name()),
            ),
            _ => (RungState::NotTried, String::new()),
        };
        RungStatus { rung, state, reason }
    }

    /// Logs and counts what has changed about the rungs.
    pub(super) fn log_changes(&mut self) {
        let status = self.status();
        let refused: BTreeSet<Rung> = status
            .rungs
            .iter()
            .filter(|rung| rung.state == RungState::Refused)
            .map(|rung| rung.rung)
            .collect();
        let (logged_rung, logged_refused) = &self.logged;
        // A step between kinds was counted when it was made.
        let hooks_refused = refused
            .difference(logged_refused)
            .any(|rung| rung.kind() == self.kind);
        if hooks_refused {
            self.steps_down += 1;
            warn!(
                rung = status.rung_name(),
                reason = status.reason,
                "a better rung of the data path is refused"
            );
        } else if status.rung != *logged_rung && status.rung.is_some() {
            info!(
                rung = status.rung_name(),
                reason = status.reason,
                "the data path's rung"
            );
        }
        self.logged = (status.rung, refused);
    }
}
