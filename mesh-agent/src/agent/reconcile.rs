//! Brings the data path from what has been made true to what is desired, and again what it refused.
//! Knows neither where the desired state comes from nor the clock.

use std::time::{Duration, Instant};

use crate::{
    datapath::{Datapath, DatapathError},
    model::Desired,
    plan::{DatapathChange, fold, plan},
};

/// The first wait after a refusal; doubled by each further one.
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// The longest wait.
const LAST_RETRY: Duration = Duration::from_secs(10);

/// Keeps what the data path has accepted.
#[derive(Debug, Default)]
pub struct Reconciler {
    applied: Desired,
    pruned: bool,
    wait: Duration,
    retry_at: Option<Instant>,
    failures: Vec<String>,
}

/// What one round did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round {
    /// Changes that were made true.
    pub applied: usize,
    /// Changes that the data path refused; they are tried again.
    pub failed: usize,
    /// Whether ports are dead for that: a refusal of something that clients depend on, and not because a
    /// device is just going away.
    pub crippled: bool,
}

impl Reconciler {
    /// Applies the difference between what has been accepted and what is desired.
    ///
    /// Once the first state stands, whatever else an earlier agent has left is removed.
    pub fn reconcile(&mut self, desired: &Desired, datapath: &mut dyn Datapath, now: Instant) -> Round {
        let changes = plan(&self.applied, desired);
        let errors = datapath.apply(&changes);
        self.failures = errors
            .iter()
            .map(|error| mesh_support::error_chain(error))
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

    /// When to try again what was refused; `None` while everything stands.
    #[must_use]
    pub fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// What the data path has accepted.
    #[must_use]
    pub fn applied(&self) -> &Desired {
        &self.applied
    }

    /// What was refused in the last round, each in one line.
    #[must_use]
    pub fn failures(&self) -> &[String] {
        &self.failures
    }
}

/// Whether clients are not served where a change is refused. What is only left over, and what local
/// processes alone lack, does no such harm.
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
    fn what_was_refused_is_tried_again_and_nothing_else() {
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
            "nothing is removed before everything stands"
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
        assert_eq!(datapath.memory.state, state());
        assert_eq!(reconciler.applied(), &state());
    }

    #[test]
    fn leftovers_are_removed_once_when_the_first_state_stands() {
        let mut datapath = Reluctant::default();
        let mut reconciler = Reconciler::default();
        reconciler.reconcile(&state(), &mut datapath, Instant::now());
        reconciler.reconcile(&Desired::default(), &mut datapath, Instant::now());
        assert_eq!(datapath.prunings, 1);
        assert_eq!(datapath.memory.state, Desired::default());
    }

    #[test]
    fn the_wait_between_attempts_is_bounded() {
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
