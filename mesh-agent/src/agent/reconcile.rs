//! Brings the data path from the applied state to the desired one, and retries what it refused. Knows neither
//! the origin of the desired state nor the clock.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::{
    datapath::{Datapath, DatapathError},
    model::Desired,
    plan::{DatapathChange, fold, plan},
};

/// The first delay after a refusal; each further one doubles it.
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// The longest delay.
const LAST_RETRY: Duration = Duration::from_secs(10);

/// Keeps the state that the data path has accepted.
#[derive(Debug, Default)]
pub struct Reconciler {
    applied: Desired,
    pruned: bool,
    wait: Duration,
    retry_at: Option<Instant>,
    failures: Vec<String>,
    refused_uplinks: BTreeMap<String, String>,
}

/// The outcome of one round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round {
    /// Changes that were applied.
    pub applied: usize,
    /// Changes that the data path refused; they are retried.
    pub failed: usize,
    /// Whether ports are unreachable because of that: a change that clients depend on was refused, and not
    /// only because a device is being removed.
    pub crippled: bool,
}

impl Reconciler {
    /// Applies the difference between the accepted and the desired state.
    ///
    /// When the first state is complete, everything else that an earlier agent has left is removed.
    pub fn reconcile(&mut self, desired: &Desired, datapath: &mut dyn Datapath, now: Instant) -> Round {
        let changes = plan(&self.applied, desired);
        let errors = datapath.apply(&changes);
        self.failures = errors
            .iter()
            .map(|error| mesh_support::error_chain(error))
            .collect();
        self.refused_uplinks = errors
            .iter()
            .filter_map(|error| match &error.change {
                DatapathChange::AttachUplink(name, _) => {
                    Some((name.clone(), mesh_support::error_chain(&error.source)))
                }
                _ => None,
            })
            .collect();
        let round = Round {
            applied: changes.len().saturating_sub(errors.len()),
            failed: errors.len(),
            crippled: errors
                .iter()
                .any(|error| serves_clients(&error.change) && !error.source.is_missing_device()),
        };
        for change in changes {
            if !errors.iter().any(|error| error.change == change) {
                fold(&mut self.applied, change);
            }
        }
        if round.failed == 0 && !self.pruned {
            match datapath.prune(desired) {
                Ok(()) => self.pruned = true,
                Err(error) => self.failures.push(prune_failure(&error)),
            }
        }
        self.schedule(now);
        round
    }

    fn schedule(&mut self, now: Instant) {
        if self.failures.is_empty() {
            self.wait = Duration::ZERO;
            self.retry_at = None;
        } else {
            self.wait = (self.wait * 2).clamp(FIRST_RETRY, LAST_RETRY);
            self.retry_at = Some(now + self.wait);
        }
    }

    /// When to retry what was refused; `None` if nothing was.
    #[must_use]
    pub fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// The state that the data path has accepted.
    #[must_use]
    pub fn applied(&self) -> &Desired {
        &self.applied
    }

    /// The uplinks that the data path refused to attach to in the last round, and why.
    #[must_use]
    pub fn refused_uplinks(&self) -> &BTreeMap<String, String> {
        &self.refused_uplinks
    }

    /// The refusals of the last round, one line each.
    #[must_use]
    pub fn failures(&self) -> &[String] {
        &self.failures
    }
}

/// Whether clients are not served if a change is refused. Leftovers, and what only local processes need, do
/// no such harm.
fn serves_clients(change: &DatapathChange) -> bool {
    match change {
        DatapathChange::UpsertPeer(..)
        | DatapathChange::UpsertBackend(..)
        | DatapathChange::UpsertService(..)
        | DatapathChange::AddFrontend(_)
        | DatapathChange::AttachContainer(_)
        | DatapathChange::AttachUplink(..) => true,
        DatapathChange::Configure(_)
        | DatapathChange::DetachUplink(_)
        | DatapathChange::RemoveFrontend(_)
        | DatapathChange::RemoveService(_)
        | DatapathChange::RemoveBackend(_)
        | DatapathChange::DetachContainer(_)
        | DatapathChange::RemovePeer(_) => false,
    }
}

fn prune_failure(error: &DatapathError) -> String {
    mesh_support::error_chain(error)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::{
        datapath::{ChangeError, Counters, InterfaceMode, dump::Dump, memory::MemoryDatapath},
        model::NodeDatapath,
    };

    /// A data path that refuses uplinks for a while.
    #[derive(Default)]
    struct Reluctant {
        memory: MemoryDatapath,
        refusals: usize,
        prunings: usize,
    }

    impl Datapath for Reluctant {
        fn apply(&mut self, changes: &[DatapathChange]) -> Vec<ChangeError> {
            let mut errors = Vec::new();
            for change in changes {
                if matches!(change, DatapathChange::AttachUplink(..)) && self.refusals > 0 {
                    self.refusals -= 1;
                    errors.push(ChangeError {
                        change: change.clone(),
                        source: DatapathError {
                            operation: "attach mesh_uplink to eth0".into(),
                            source: "device or resource busy".into(),
                        },
                    });
                } else {
                    self.memory.apply(std::slice::from_ref(change));
                }
            }
            errors
        }

        fn counters(&mut self) -> Result<Counters, DatapathError> {
            self.memory.counters()
        }

        fn dump(&mut self, flows: usize) -> Result<Dump, DatapathError> {
            self.memory.dump(flows)
        }

        fn kind(&self) -> NodeDatapath {
            self.memory.kind()
        }

        fn modes(&self) -> Vec<InterfaceMode> {
            self.memory.modes()
        }

        fn maintain(&mut self) -> Result<(), DatapathError> {
            self.memory.maintain()
        }

        fn prune(&mut self, _: &Desired) -> Result<(), DatapathError> {
            self.prunings += 1;
            Ok(())
        }

        fn detach(&mut self) -> Result<(), DatapathError> {
            self.memory.detach()
        }
    }

    fn state() -> Desired {
        let mut desired = Desired::default();
        desired.peers.insert(Ipv4Addr::new(192, 0, 2, 2), None);
        let uplink = crate::model::HostInterface {
            index: 2,
            mac: Default::default(),
            mtu: 1500,
        };
        desired.uplinks.insert("eth0".into(), uplink);
        desired
    }

    #[test]
    fn refused_changes_are_retried_and_no_others() {
        let mut datapath = Reluctant {
            refusals: 2,
            ..Reluctant::default()
        };
        let mut reconciler = Reconciler::default();
        let start = Instant::now();
        assert_eq!(
            reconciler.reconcile(&state(), &mut datapath, start),
            Round {
                applied: 1,
                failed: 1,
                crippled: true
            }
        );
        assert_eq!(reconciler.retry_at(), Some(start + FIRST_RETRY));
        assert_eq!(reconciler.refused_uplinks().keys().collect::<Vec<_>>(), ["eth0"]);
        let line = &reconciler.failures()[0];
        assert!(
            line.ends_with("attach mesh_uplink to eth0: device or resource busy"),
            "{line}"
        );
        assert_eq!(
            reconciler.reconcile(&state(), &mut datapath, start),
            Round {
                applied: 0,
                failed: 1,
                crippled: true
            }
        );
        assert_eq!(reconciler.retry_at(), Some(start + 2 * FIRST_RETRY));
        assert_eq!(
            datapath.prunings, 0,
            "nothing is removed before everything is applied"
        );
        assert_eq!(
            reconciler.reconcile(&state(), &mut datapath, start),
            Round {
                applied: 1,
                failed: 0,
                crippled: false
            }
        );
        assert_eq!(reconciler.retry_at(), None);
        assert!(reconciler.refused_uplinks().is_empty());
        assert_eq!(datapath.memory.state, state());
        assert_eq!(reconciler.applied(), &state());
    }

    #[test]
    fn leftovers_are_removed_once_when_the_first_state_is_complete() {
        let mut datapath = Reluctant::default();
        let mut reconciler = Reconciler::default();
        reconciler.reconcile(&state(), &mut datapath, Instant::now());
        reconciler.reconcile(&Desired::default(), &mut datapath, Instant::now());
        assert_eq!(datapath.prunings, 1);
        assert_eq!(datapath.memory.state, Desired::default());
    }

    #[test]
    fn the_delay_between_attempts_is_bounded() {
        let mut datapath = Reluctant {
            refusals: usize::MAX,
            ..Reluctant::default()
        };
        let mut reconciler = Reconciler::default();
        let start = Instant::now();
        for _ in 0..40 {
            reconciler.reconcile(&state(), &mut datapath, start);
        }
        assert_eq!(reconciler.retry_at(), Some(start + LAST_RETRY));
    }
}
