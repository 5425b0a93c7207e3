//! Which services are yielded because the kernel refuses a change about them, and when they are tried again.
//! Pure: the clock is an argument.
//!
//! A yielded service has no frontends, so that whatever else answers its ports does (Docker's own mesh). If
//! the data path served it before, what carries its open connections stays.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use mesh_support::error_chain;

use crate::{
    datapath::ChangeError,
    model::{Backend, BackendKey, Desired, ServiceEntry, ServiceKey},
    plan::DatapathChange,
};

/// The first delay before a refused service is tried again; each further refusal doubles it.
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// The longest delay.
const LAST_RETRY: Duration = Duration::from_secs(60);

/// The services that the kernel refuses.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    services: BTreeMap<ServiceKey, Refusal>,
}

#[derive(Debug)]
struct Refusal {
    reason: String,
    wait: Duration,
    retry_at: Instant,
    /// Whether this round tries it.
    trying: bool,
    /// What carries the connections from before the refusal.
    kept: Option<Kept>,
}

#[derive(Debug)]
struct Kept {
    service: ServiceEntry,
    backends: BTreeMap<BackendKey, Backend>,
}

impl Refusals {
    /// Starts a round: forgets services that are no longer wanted, and returns the one to try again, if one
    /// is due. Only one: of several, the first could take the room that another needs, and still not fit.
    pub(super) fn start(&mut self, desired: &Desired, now: Instant) -> Option<ServiceKey> {
        self.services.retain(|key, _| desired.services.contains_key(key));
        let due = self
            .services
            .iter_mut()
            .filter(|(_, refusal)| refusal.retry_at <= now);
        let (key, refusal) = due.min_by_key(|(_, refusal)| refusal.retry_at)?;
        refusal.trying = true;
        Some(*key)
    }

    /// The desired state as far as it is to be served now.
    pub(super) fn served<'a>(&self, desired: &'a Desired) -> Cow<'a, Desired> {
        if self.yielded().next().is_none() {
            return Cow::Borrowed(desired);
        }
        let mut served = desired.clone();
        served
            .frontends
            .retain(|frontend| !self.is_yielded(frontend.service));
        served.backends.retain(|key, _| !self.is_yielded(key.service));
        for (key, refusal) in self.yielded() {
            served.services.remove(key);
            let Some(kept) = &refusal.kept else { continue };
            let mut service = kept.service.clone();
            let still = |key: &BackendKey, backend: &Backend| {
                desired
                    .backends
                    .get(key)
                    .is_some_and(|now| now.task == backend.task)
            };
            for (key, backend) in kept.backends.iter().filter(|(key, backend)| still(key, backend)) {
                served.backends.insert(*key, backend.clone());
            }
            service.active.retain(|key| served.backends.contains_key(key));
            served.services.insert(*key, service);
        }
        Cow::Owned(served)
    }

    /// Yields the services that errors are about, and returns them; `before` is what the data path had
    /// accepted.
    pub(super) fn refuse(
        &mut self,
        errors: &[ChangeError],
        desired: &Desired,
        before: &Desired,
        now: Instant,
    ) -> BTreeSet<ServiceKey> {
        let mut refused = BTreeSet::new();
        for error in errors {
            let Some(key) = self.culprit(error, desired) else {
                continue;
            };
            // The first error is the cause of the others.
            if !refused.insert(key) {
                continue;
            }
            let old = self.services.remove(&key);
            let wait = old
                .as_ref()
                .map_or(FIRST_RETRY, |old| (old.wait * 2).clamp(FIRST_RETRY, LAST_RETRY));
            let kept = old.and_then(|old| old.kept).or_else(|| kept(key, before));
            self.services.insert(
                key,
                Refusal {
                    reason: error_chain(&error.source),
                    wait,
                    retry_at: now + wait,
                    trying: false,
                    kept,
                },
            );
        }
        refused
    }

    /// The service that an error takes out of the mesh: one that is wanted and not yet yielded.
    fn culprit(&self, error: &ChangeError, desired: &Desired) -> Option<ServiceKey> {
        error
            .service
            .filter(|key| desired.services.contains_key(key) && !self.is_yielded(*key))
            .filter(|_| !error.source.is_missing_device())
    }

    /// Ends a round: what was tried and not refused is accepted. Where something else was removed, there may
    /// be room for the others.
    pub(super) fn finish(&mut self, applied: &[DatapathChange], now: Instant) {
        self.services.retain(|_, refusal| !refusal.trying);
        let made_room = applied.iter().any(|change| match change {
            DatapathChange::RemoveFrontend(frontend) => !self.is_yielded(frontend.service),
            DatapathChange::RemoveService(key) => !self.is_yielded(*key),
            DatapathChange::RemoveBackend(key) => !self.is_yielded(key.service),
            _ => false,
        });
        if made_room {
            for refusal in self.services.values_mut() {
                refusal.wait = FIRST_RETRY;
                // Not at once: the data path frees some tables only with its next changes.
                refusal.retry_at = now + FIRST_RETRY;
            }
        }
    }

    /// When the next one is due.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.services.values().map(|refusal| refusal.retry_at).min()
    }

    /// Whether so many services are refused that it cannot be their own fault: several, and every one.
    pub(super) fn is_total(&self, desired: &Desired) -> bool {
        let asked: BTreeSet<_> = desired
            .frontends
            .iter()
            .map(|frontend| frontend.service)
            .collect();
        asked.len() > 1 && asked.iter().all(|key| self.is_yielded(*key))
    }

    /// The yielded services and the reasons.
    pub(super) fn reasons(&self) -> BTreeMap<ServiceKey, String> {
        self.yielded()
            .map(|(key, refusal)| (*key, refusal.reason.clone()))
            .collect()
    }

    fn yielded(&self) -> impl Iterator<Item = (&ServiceKey, &Refusal)> {
        self.services.iter().filter(|(_, refusal)| !refusal.trying)
    }

    fn is_yielded(&self, key: ServiceKey) -> bool {
        self.services.get(&key).is_some_and(|refusal| !refusal.trying)
    }
}

/// What the data path has of a service that it answers for.
fn kept(key: ServiceKey, before: &Desired) -> Option<Kept> {
    before.frontends.iter().find(|frontend| frontend.service == key)?;
    let backends = before
        .backends
        .iter()
        .filter(|(backend, _)| backend.service == key);
    Some(Kept {
        service: before.services.get(&key)?.clone(),
        backends: backends.map(|(key, backend)| (*key, backend.clone())).collect(),
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::{
        agent::Reconciler,
        datapath::{Counters, Datapath, DatapathError, InterfaceMode, dump::Dump, memory::MemoryDatapath},
        model::{BackendState, Frontend, Location, NodeDatapath, Protocol},
    };

    /// A data path with room for so many services and backends.
    struct Small {
        memory: MemoryDatapath,
        services: usize,
        backends: usize,
    }

    impl Small {
        fn accepts(&self, change: &DatapathChange) -> bool {
            let state = &self.memory.state;
            match change {
                DatapathChange::UpsertService(key, _) => {
                    state.services.contains_key(key) || state.services.len() < self.services
                }
                DatapathChange::UpsertBackend(key, _) => {
                    state.backends.contains_key(key) || state.backends.len() < self.backends
                }
                _ => true,
            }
        }
    }

    impl Datapath for Small {
        fn apply(&mut self, changes: &[DatapathChange]) -> Vec<ChangeError> {
            let mut errors = Vec::new();
            for change in changes {
                if self.accepts(change) {
                    self.memory.apply(std::slice::from_ref(change));
                } else {
                    errors.push(ChangeError {
                        change: change.clone(),
                        service: change.service(),
                        source: DatapathError {
                            operation: "write it".into(),
                            source: "the table is full".into(),
                        },
                    });
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

        fn detach(&mut self) -> Result<(), DatapathError> {
            self.memory.detach()
        }
    }

    fn key(port: u16) -> ServiceKey {
        ServiceKey {
            protocol: Protocol::Tcp,
            port,
        }
    }

    /// Services by port, each with so many replicas.
    fn state(services: &[(u16, u8)]) -> Desired {
        let mut desired = Desired::default();
        for (port, replicas) in services {
            let service = key(*port);
            let mut active = Vec::new();
            for number in 1..=*replicas {
                let backend = BackendKey {
                    service,
                    address: Ipv4Addr::new(10, 0, 0, number),
                };
                active.push(backend);
                desired.backends.insert(
                    backend,
                    Backend {
                        task: format!("task{number}"),
                        task_name: format!("web.{number}"),
                        slot: None,
                        node: "n2".to_owned(),
                        node_name: "n2".to_owned(),
                        target_port: 80,
                        location: Location::Remote(Ipv4Addr::new(192, 0, 2, 2)),
                        state: BackendState::Active,
                        weight: 1,
                        share: 10,
                    },
                );
            }
            let entry = ServiceEntry {
                id: format!("id{port}"),
                name: format!("web{port}"),
                balance: Default::default(),
                active,
                limits: Default::default(),
                policy: None,
                closed: Default::default(),
                idle: Default::default(),
            };
            desired.services.insert(service, entry);
            desired.frontends.insert(Frontend {
                address: Ipv4Addr::new(192, 0, 2, 1),
                service,
            });
        }
        desired
    }

    /// An agent's rounds on a small data path.
    struct Rig {
        datapath: Small,
        reconciler: Reconciler,
        now: Instant,
    }

    impl Rig {
        fn new(services: usize, backends: usize) -> Self {
            Self {
                datapath: Small {
                    memory: MemoryDatapath::default(),
                    services,
                    backends,
                },
                reconciler: Reconciler::default(),
                now: Instant::now(),
            }
        }

        /// A round now; whether the data path is crippled.
        fn round(&mut self, desired: &Desired) -> bool {
            let round = self.reconciler.reconcile(desired, &mut self.datapath, self.now);
            assert_eq!(round.failed, 0, "every failure is about a service");
            round.crippled
        }

        /// A round when the next one is due; the time until then.
        fn next(&mut self, desired: &Desired) -> Duration {
            let at = self.reconciler.retry_at().expect("a retry is due");
            let waited = at.saturating_duration_since(self.now);
            self.now = self.now.max(at);
            self.round(desired);
            waited
        }

        fn refused(&self) -> Vec<u16> {
            let refused = self.reconciler.refused_services();
            refused.keys().map(|key| key.port).collect()
        }
    }

    #[test]
    fn the_service_that_finds_no_room_is_yielded_alone_and_nothing_of_it_stays() {
        let mut rig = Rig::new(2, 100);
        assert!(!rig.round(&state(&[(1, 2), (2, 2), (3, 2)])));
        assert_eq!(rig.datapath.memory.state, state(&[(1, 2), (2, 2)]));
        assert_eq!(rig.refused(), [3]);
        assert_eq!(
            rig.reconciler.failures(),
            ["web3 (tcp/3) is left to Docker's own mesh: write it: the table is full"]
        );
    }

    #[test]
    fn it_is_tried_again_ever_more_rarely_and_the_others_are_not_disturbed() {
        let wanted = state(&[(1, 1), (2, 1)]);
        let mut rig = Rig::new(1, 100);
        rig.round(&wanted);
        let waits: Vec<Duration> = (0..12).map(|_| rig.next(&wanted)).collect();
        assert_eq!(waits[..3], [FIRST_RETRY, 2 * FIRST_RETRY, 4 * FIRST_RETRY]);
        assert_eq!(waits[11], LAST_RETRY);
        assert_eq!(rig.datapath.memory.state, state(&[(1, 1)]));
        assert_eq!(rig.refused(), [2]);
    }

    #[test]
    fn it_is_served_when_there_is_room() {
        let mut rig = Rig::new(1, 100);
        rig.round(&state(&[(1, 1), (2, 1)]));
        for _ in 0..8 {
            rig.next(&state(&[(1, 1), (2, 1)]));
        }
        let wanted = state(&[(2, 1)]);
        rig.round(&wanted);
        assert_eq!(rig.next(&wanted), FIRST_RETRY, "room was made: it is tried soon");
        assert_eq!(rig.datapath.memory.state, wanted);
        assert!(rig.refused().is_empty() && rig.reconciler.failures().is_empty());
        assert_eq!(rig.reconciler.retry_at(), None);
    }

    #[test]
    fn a_service_that_was_served_keeps_what_carries_its_connections() {
        let mut rig = Rig::new(10, 3);
        rig.round(&state(&[(1, 2)]));
        let mut wanted = state(&[(1, 4), (2, 1)]);
        rig.round(&wanted);
        // The first took the last room, which is not enough for it, and the second finds none.
        assert_eq!(rig.refused(), [1, 2]);
        rig.next(&wanted);
        rig.next(&wanted);
        assert_eq!(rig.refused(), [1]);
        let mut expected = state(&[(1, 2), (2, 1)]);
        expected.frontends.retain(|frontend| frontend.service == key(2));
        assert_eq!(rig.datapath.memory.state, expected);

        // A replica that is gone does not stay.
        wanted
            .backends
            .retain(|backend, _| backend.address.octets()[3] != 1);
        rig.round(&wanted);
        let left = rig.datapath.memory.state.backends.keys();
        let left: Vec<_> = left.filter(|backend| backend.service == key(1)).collect();
        assert_eq!(left.len(), 1);

        // Back by itself.
        let wanted = state(&[(1, 2), (2, 1)]);
        rig.next(&wanted);
        assert_eq!(rig.datapath.memory.state, wanted);
    }

    #[test]
    fn a_service_that_is_no_longer_wanted_is_forgotten() {
        let mut rig = Rig::new(1, 100);
        rig.round(&state(&[(1, 1), (2, 1)]));
        rig.round(&state(&[(1, 1)]));
        assert!(rig.refused().is_empty());
        assert_eq!(rig.reconciler.retry_at(), None);
    }

    #[test]
    fn several_services_and_each_refused_is_the_data_paths_own_fault() {
        assert!(Rig::new(0, 100).round(&state(&[(1, 1), (2, 1)])));
        assert!(
            !Rig::new(0, 100).round(&state(&[(1, 1)])),
            "one service says nothing"
        );
        assert!(!Rig::new(1, 100).round(&state(&[(1, 1), (2, 1)])));
    }
}
