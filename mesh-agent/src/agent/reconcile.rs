//! Brings the data path from the applied state to the desired one, and retries what it refused. Knows neither
//! the origin of the desired state nor the clock.

mod refusals;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use mesh_support::error_chain;

use self::refusals::Refusals;
use crate::{
    datapath::{ChangeError, Datapath},
    model::{Backend, BackendKey, Desired, ServiceKey},
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
    refusals: Refusals,
}

/// The outcome of one round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round {
    /// Changes that were applied.
    pub applied: usize,
    /// Changes that the data path refused and that are not about one service; they are retried.
    pub failed: usize,
    /// Whether the data path does not work: something was refused that every service depends on, and not only
    /// because a device is being removed, or several services were refused, and each one.
    pub crippled: bool,
}

impl Reconciler {
    /// Applies the difference between the accepted and the desired state. A service about which a change is
    /// refused is yielded, alone, and tried again later.
    ///
    /// When the first state is complete, everything else that an earlier agent has left is removed.
    pub fn reconcile(&mut self, desired: &Desired, datapath: &mut dyn Datapath, now: Instant) -> Round {
        if let Some(key) = self.refusals.start(desired, now) {
            self.forget(key, desired);
        }
        let mut applied = Vec::new();
        // Each pass but the last yields a service, of which the next pass removes what is there.
        let errors = loop {
            let changes = plan(&self.applied, &self.refusals.served(desired));
            let errors = datapath.apply(&changes);
            let refused = self.refusals.refuse(&errors, desired, &self.applied, now);
            applied.extend(self.accept(changes, &errors, &refused));
            if refused.is_empty() {
                break errors;
            }
        };
        self.refusals.finish(&applied, now);
        let round = Round {
            applied: applied.len(),
            failed: errors.len(),
            crippled: errors.iter().any(cripples) || self.refusals.is_total(desired),
        };
        self.refused_uplinks = errors
            .iter()
            .filter_map(|error| match &error.change {
                DatapathChange::AttachUplink(name, _) => Some((name.clone(), error_chain(&error.source))),
                _ => None,
            })
            .collect();
        let mut failures: Vec<String> = errors.iter().map(|error| error_chain(error)).collect();
        if round.failed == 0 && !self.pruned {
            match datapath.prune(&self.refusals.served(desired)) {
                Ok(()) => self.pruned = true,
                Err(error) => failures.push(error_chain(&error)),
            }
        }
        self.schedule(!failures.is_empty(), now);
        for (key, reason) in self.refused_services() {
            let name = desired
                .services
                .get(&key)
                .map_or("a service", |service| &service.name);
            failures.push(format!("{name} ({key}) is left to Docker's own mesh: {reason}"));
        }
        self.failures = failures;
        round
    }

    /// Makes the next plan apply everything of a service again, and remove what is no longer wanted.
    fn forget(&mut self, key: ServiceKey, desired: &Desired) {
        let is_wanted = |backend: &BackendKey, old: &Backend| {
            let new = desired.backends.get(backend);
            new.is_some_and(|new| new.task == old.task)
        };
        self.applied.frontends.retain(|frontend| frontend.service != key);
        self.applied
            .backends
            .retain(|backend, old| backend.service != key || !is_wanted(backend, old));
        self.applied.services.remove(&key);
    }

    /// Takes over what was applied, and returns it. Of a service that was refused, something may be in the
    /// data path all the same: all changes about it count, so that they are taken back.
    fn accept(
        &mut self,
        changes: Vec<DatapathChange>,
        errors: &[ChangeError],
        refused: &BTreeSet<ServiceKey>,
    ) -> Vec<DatapathChange> {
        let mut accepted = Vec::new();
        for change in changes {
            let error = errors.iter().find(|error| error.change == change);
            let about = error.and_then(|error| error.service);
            let is_taken_back = about.is_some_and(|key| refused.contains(&key)) && !change.is_removal();
            if error.is_none() || is_taken_back {
                fold(&mut self.applied, change.clone());
            }
            if error.is_none() {
                accepted.push(change);
            }
        }
        accepted
    }

    fn schedule(&mut self, failed: bool, now: Instant) {
        if failed {
            self.wait = (self.wait * 2).clamp(FIRST_RETRY, LAST_RETRY);
            self.retry_at = Some(now + self.wait);
        } else {
            self.wait = Duration::ZERO;
            self.retry_at = None;
        }
    }

    /// When to retry what was refused; `None` if nothing was.
    #[must_use]
    pub fn retry_at(&self) -> Option<Instant> {
        self.retry_at.into_iter().chain(self.refusals.retry_at()).min()
    }

    /// The services that are yielded because the data path refuses something about them, and why.
    #[must_use]
    pub fn refused_services(&self) -> BTreeMap<ServiceKey, String> {
        self.refusals.reasons()
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

/// Whether no service can be served as it should be if a change is refused. Leftovers, and what only local
/// processes or clients of IPv6 need, do no such harm; without a peer, the services with replicas there are
/// refused.
fn cripples(error: &ChangeError) -> bool {
    let harms = match &error.change {
        DatapathChange::UpsertBackend(..)
        | DatapathChange::UpsertService(..)
        | DatapathChange::AddFrontend(_)
        | DatapathChange::AttachContainer(_)
        | DatapathChange::AttachUplink(..) => true,
        DatapathChange::Configure(_)
        | DatapathChange::SetMacs(_)
        | DatapathChange::UpsertPeer(..)
        | DatapathChange::UpsertMasquerade(..)
        | DatapathChange::RemoveMasquerade(_)
        | DatapathChange::AddOwnIpv6(..)
        | DatapathChange::RemoveOwnIpv6(..)
        | DatapathChange::DetachUplink(_)
        | DatapathChange::RemoveFrontend(_)
        | DatapathChange::RemoveService(_)
        | DatapathChange::RemoveBackend(_)
        | DatapathChange::DetachContainer(_)
        | DatapathChange::RemovePeer(_) => false,
    };
    harms && error.service.is_none() && !error.source.is_missing_device()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::{
        datapath::{Counters, DatapathError, InterfaceMode, dump::Dump, memory::MemoryDatapath},
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
                        service: None,
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
            has_vlans: false,
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
