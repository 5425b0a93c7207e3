//! The cluster's objects in a store: mirrored in memory, and changed by transactions that commit only if no
//! other writer was faster. Imports `objects`, `commands` and the store's trait.
//!
//! ```text
//! store ─ list, watch ─► mirror ─► read, changes, events
//!   ▲                      │
//!   └─ commit ◄─ draft ◄─ plan (a function of the mirror's state)
//! ```
//!
//! Invariants:
//! - Only the store's watch changes the mirror. After a change, the caller waits until the mirror has it.
//! - Every transaction expects each object that it writes to be as the mirror had it, and no backup to be
//!   being restored. Names and ports of services are unique because each change of a specification also
//!   writes one common key.
//! - A change that turns out empty or refused is planned from a state that is at least as new as the call:
//!   nothing is committed, so only the store's revision shows that the mirror was behind.
//! - An unavailable store stops changes and nothing else.

mod chores;
mod clock;
mod commit;
mod control;
mod draft;
mod error;
mod event;
mod history;
mod leader;
mod liveness;
mod member;
mod mirror;
mod registration;
mod reports;
mod stored;
#[cfg(test)]
mod tests;
mod upkeep;
mod workers;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use tokio::{
    sync::{broadcast, watch},
    time::{Instant, timeout},
};

use self::{
    mirror::{Mirror, Update},
    reports::Reports,
};
use crate::{
    commands::CommandError,
    objects::{NodeId, ObjectChange, ServiceId, State, Timestamp},
    store::{
        Expected, Key, Revision, Store, StoreError, Transaction,
        revisions::{Author, RevisionId},
    },
};

pub use self::{
    chores::BackupSchedule,
    clock::{Clock, SystemClock},
    error::{ChangeError, MissingSpec, OpenError, Unreadable},
    event::{Event, EventAction, EventKind},
    leader::LeaderConfig,
    member::Member,
    registration::Registration,
    upkeep::Upkeep,
    workers::{WorkerError, WorkerFeed},
};

/// How many events a listener may be behind before it misses some.
const EVENTS: usize = 4096;

/// How many transactions the control loops may be behind before they start over.
const UPDATES: usize = 1024;

/// How often a change is planned again because other writers were faster.
const ATTEMPTS: u32 = 32;

/// The time limit of all these attempts together.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long to wait until the mirror has a committed transaction.
const CATCH_UP: Duration = Duration::from_secs(5);

/// A handle on the cluster's objects. Clones share them.
#[derive(Clone)]
pub struct Cluster {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    mirror: RwLock<Mirror>,
    revision: watch::Sender<Revision>,
    events: broadcast::Sender<Event>,
    updates: broadcast::Sender<Arc<Update>>,
    available: watch::Sender<bool>,
    reports: Reports,
}

/// A change that was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// The store's revision after it.
    pub revision: Revision,
    /// The new revisions of the services whose specification it changed.
    pub services: BTreeMap<ServiceId, RevisionId>,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Cluster")
            .field("store", &self.inner.store.describe())
            .field("revision", &self.revision())
            .finish_non_exhaustive()
    }
}

impl Cluster {
    /// Reads all objects of a store. The returned [`Upkeep`] must be run.
    ///
    /// # Errors
    /// When the store is unavailable, or has an object that cannot be read.
    pub async fn open(store: Arc<dyn Store>, clock: Arc<dyn Clock>) -> Result<(Self, Upkeep), OpenError> {
        let (mirror, watch) = upkeep::begin(store.as_ref(), clock.as_ref()).await?;
        let cluster = Self {
            inner: Arc::new(Inner {
                store,
                clock,
                revision: watch::Sender::new(mirror.revision()),
                mirror: RwLock::new(mirror),
                events: broadcast::Sender::new(EVENTS),
                updates: broadcast::Sender::new(UPDATES),
                available: watch::Sender::new(true),
                reports: Reports::default(),
            }),
        };
        let upkeep = Upkeep::new(cluster.clone(), watch);
        Ok((cluster, upkeep))
    }

    /// Reads the objects. They are locked meanwhile, so `read` must be quick and must not call the cluster.
    pub fn read<R>(&self, read: impl FnOnce(&State) -> R) -> R {
        read(self.mirror().state())
    }

    /// The store's revision of the objects.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.mirror().revision()
    }

    /// Notifies of every change of an object or a node's registration.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Revision> {
        self.inner.revision.subscribe()
    }

    /// The changes, object by object. A listener that is too slow learns how many it missed.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.inner.events.subscribe()
    }

    /// The registered nodes.
    #[must_use]
    pub fn registrations(&self) -> BTreeMap<NodeId, Registration> {
        self.mirror().registrations().clone()
    }

    /// A node's registration, while its agent sends heartbeats.
    #[must_use]
    pub fn registration(&self, node: &NodeId) -> Option<Registration> {
        self.mirror().registrations().get(node).cloned()
    }

    /// The node that runs the control loops; `None` between two terms.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        let mirror = self.mirror();
        mirror.leader().map(|leader| leader.candidate.as_str().into())
    }

    /// Whether a backup is being restored: what is missing now may come back.
    #[must_use]
    pub fn is_restoring(&self) -> bool {
        self.mirror().is_restoring()
    }

    /// The store, for what does not concern the control loops: secrets, tokens, webhooks.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.inner.store
    }

    /// The source of time and randomness.
    #[must_use]
    pub fn clock(&self) -> &dyn Clock {
        self.inner.clock.as_ref()
    }

    /// Whether the last request to the store succeeded.
    #[must_use]
    pub fn available(&self) -> watch::Receiver<bool> {
        self.inner.available.subscribe()
    }

    /// An identifier for a new service.
    #[must_use]
    pub fn new_service_id(&self) -> ServiceId {
        ServiceId::derive(self.clock().seed(), &["service"])
    }

    /// The author of a change made now.
    #[must_use]
    pub fn author(&self, by: impl Into<String>, action: impl Into<String>) -> Author {
        Author {
            by: by.into(),
            at: self.clock().now(),
            action: action.into(),
        }
    }

    /// Makes a change, which `plan` derives from the state and the time with one or several of the
    /// [`crate::commands`]. It is called again if others change the same objects at the same time. When this
    /// returns, [`Self::read`] shows the change.
    ///
    /// A change of more than a hundred objects is committed in several transactions.
    ///
    /// # Errors
    /// [`ChangeError::Command`] when the plan refuses. [`ChangeError::Store`] when the store is unavailable:
    /// it says whether something may have changed nevertheless. [`ChangeError::Contended`] when others were
    /// always faster. [`ChangeError::Behind`] when the plan changes nothing in a state that is too old.
    pub async fn change<P>(&self, author: Author, plan: P) -> Result<Changed, ChangeError>
    where
        P: Fn(&State, Timestamp) -> Result<Vec<ObjectChange>, CommandError>,
    {
        let until = Instant::now() + PATIENCE;
        let mut attempts = 0;
        let mut is_fresh = false;
        loop {
            attempts += 1;
            let (drafted, seen) = {
                let mirror = self.mirror();
                if mirror.is_restoring() {
                    return Err(ChangeError::Restoring);
                }
                let drafted = plan(mirror.state(), self.clock().now())
                    .map_err(ChangeError::from)
                    .and_then(|changes| draft::draft(&mirror, &author, &changes, self.clock().seed()));
                (drafted, mirror.revision())
            };
            let drafted = match drafted {
                Ok(drafted) if !drafted.batches.is_empty() => drafted,
                // Nothing will be committed, so no condition shows that the mirror is behind the store.
                answer => {
                    if !is_fresh && seen < self.newest().await? {
                        self.freshen(stored::guard()?).await?;
                        is_fresh = true;
                        continue;
                    }
                    return answer.map(|drafted| Changed {
                        revision: seen,
                        services: drafted.services,
                    });
                }
            };
            let (revision, committed) = self.commit(&drafted.batches, None).await;
            self.catch_up_to(revision).await;
            match committed {
                Ok(()) => {
                    return Ok(Changed {
                        revision,
                        services: drafted.services,
                    });
                }
                Err(ChangeError::Store(StoreError::Conflict { key, found, .. })) => {
                    if attempts >= ATTEMPTS || Instant::now() > until {
                        return Err(ChangeError::Contended { key, attempts });
                    }
                    self.catch_up(&key, found).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The current revision of a service.
    #[must_use]
    pub fn service_revision(&self, service: &ServiceId) -> Option<(RevisionId, Author)> {
        let mirror = self.mirror();
        let head = mirror.head(service)?;
        Some((head.revision, head.author.clone()))
    }

    /// The store's revision now; other programs may have made it.
    async fn newest(&self) -> Result<Revision, StoreError> {
        let newest = self.store().newest().await;
        self.note(newest.as_ref().err());
        newest
    }

    /// Waits until the mirror has everything that was committed before: a transaction that changes no object
    /// is the last that it has to see.
    async fn freshen(&self, key: Key) -> Result<(), ChangeError> {
        let last = Transaction::new()
            .expect(stored::restore()?, Expected::Absent)
            .put(key, "read");
        let committed = self.store().commit(last).await;
        self.note(committed.as_ref().err());
        let revision = match committed {
            Ok(revision) => revision,
            Err(StoreError::Conflict { .. }) => return Err(ChangeError::Restoring),
            Err(error) => return Err(error.into()),
        };
        timeout(CATCH_UP, self.wait_for(revision))
            .await
            .map_err(|_| ChangeError::Behind {
                seen: self.revision(),
                newest: revision,
            })
    }

    /// Waits until the mirror has a revision, for a limited time: the transaction is committed either way.
    async fn catch_up_to(&self, revision: Revision) {
        if timeout(CATCH_UP, self.wait_for(revision)).await.is_err() {
            tracing::warn!(%revision, "the store's watch has not delivered a committed transaction");
        }
    }

    /// Waits until the mirror has a revision.
    async fn wait_for(&self, revision: Revision) {
        let mut changes = self.inner.revision.subscribe();
        // The sender is in `self`, so the channel is open.
        let _ = changes.wait_for(|reached| *reached >= revision).await;
    }

    /// Waits until the mirror has another writer's change of a key.
    async fn catch_up(&self, key: &Key, found: Option<Revision>) {
        let has = || {
            let mirror = self.mirror();
            let modified = mirror.modified(key);
            modified == found || found.is_some_and(|found| mirror.revision() >= found)
        };
        let mut changes = self.inner.revision.subscribe();
        let wait = changes.wait_for(|_| has());
        if timeout(CATCH_UP, wait).await.is_err() {
            tracing::warn!(%key, "the store's watch has not delivered another writer's change");
        }
    }

    fn mirror(&self) -> RwLockReadGuard<'_, Mirror> {
        self.inner.mirror.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn mirror_mut(&self) -> RwLockWriteGuard<'_, Mirror> {
        self.inner.mirror.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs once that the store is unavailable, and once that it is available again.
    fn note(&self, error: Option<&StoreError>) {
        let is_available = !error.is_some_and(StoreError::is_unavailable);
        let has_changed = self.inner.available.send_if_modified(|available| {
            let has_changed = *available != is_available;
            *available = is_available;
            has_changed
        });
        if has_changed && is_available {
            tracing::info!(
                store = self.inner.store.describe(),
                "the store is available again"
            );
        } else if has_changed && let Some(error) = error {
            let error = error as &dyn std::error::Error;
            tracing::warn!(
                error,
                "the store is unavailable: changes wait, tasks and traffic go on"
            );
        }
    }
}
