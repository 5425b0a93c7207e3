//! The cluster's objects in a store: mirrored in memory, and changed by transactions that hold only if
//! nobody else was faster. Imports `objects`, `commands` and the store's trait.
//!
//! ```text
//! store ─ list, watch ─► mirror ─► read, changes, events
//!   ▲                      │
//!   └─ commit ◄─ draft ◄─ plan (a function of the mirror's state)
//! ```
//!
//! Invariants:
//! - The mirror changes by what the store tells and by nothing else. Who has changed something waits until
//!   the mirror has it.
//! - Every transaction expects each object that it writes to be as the mirror had it, and no backup to be
//!   under restoration. Names and ports of services are unique because each change of a specification also
//!   writes one common key.
//! - A store that is away stops changes and nothing else.

mod chores;
mod clock;
mod commit;
mod control;
mod draft;
mod error;
mod event;
mod history;
mod leader;
mod member;
mod mirror;
mod registration;
mod reports;
mod silence;
mod stored;
#[cfg(test)]
mod tests;
mod upkeep;

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
    mirror::{Mirror, News},
    reports::Reports,
};
use crate::{
    commands::CommandError,
    objects::{NodeId, ObjectChange, ServiceId, State, Timestamp},
    store::{
        Key, Revision, Store, StoreError,
        revisions::{Author, RevisionId},
    },
};

pub use self::{
    chores::BackupSchedule,
    clock::{Clock, SystemClock},
    error::{ChangeError, OpenError, Unreadable},
    event::{Event, EventAction, EventKind},
    leader::LeaderConfig,
    member::Member,
    registration::Registration,
    upkeep::Upkeep,
};

/// How many events a listener may be behind before it misses some.
const EVENTS: usize = 4096;

/// How many transactions the control loops may be behind before they begin anew.
const NEWS: usize = 1024;

/// How often a change is worked out anew because others were faster.
const ATTEMPTS: u32 = 32;

/// How long all of these may take together.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long to wait until the mirror has what the store has.
const CATCH_UP: Duration = Duration::from_secs(5);

/// A handle on the cluster's objects; clones are handles on the same ones.
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
    news: broadcast::Sender<Arc<News>>,
    available: watch::Sender<bool>,
    reports: Reports,
}

/// A change that was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// The store's revision that it made, or the current one if there was nothing to change.
    pub revision: Revision,
    /// The new revisions of services whose specification it changed.
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
    /// Reads all objects of a store. The [`Upkeep`] that is answered too must be run.
    ///
    /// # Errors
    /// When the store is out of reach, or holds what cannot be read.
    pub async fn open(store: Arc<dyn Store>, clock: Arc<dyn Clock>) -> Result<(Self, Upkeep), OpenError> {
        let (mirror, watch) = upkeep::begin(store.as_ref(), clock.as_ref()).await?;
        let cluster = Self {
            inner: Arc::new(Inner {
                store,
                clock,
                revision: watch::Sender::new(mirror.revision()),
                mirror: RwLock::new(mirror),
                events: broadcast::Sender::new(EVENTS),
                news: broadcast::Sender::new(NEWS),
                available: watch::Sender::new(true),
                reports: Reports::default(),
            }),
        };
        let upkeep = Upkeep::new(cluster.clone(), watch);
        Ok((cluster, upkeep))
    }

    /// Looks at the objects. Nothing changes meanwhile, so it must not take long, nor ask the cluster for
    /// anything else.
    pub fn read<R>(&self, look: impl FnOnce(&State) -> R) -> R {
        look(self.mirror().state())
    }

    /// The store's revision that the objects are of.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.mirror().revision()
    }

    /// Wakes after every change of the objects or of a node's registration.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Revision> {
        self.inner.revision.subscribe()
    }

    /// What changes, object by object. A listener that is too slow is told how many it has missed.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.inner.events.subscribe()
    }

    /// The nodes whose agents are heard, and what they say of themselves.
    #[must_use]
    pub fn registrations(&self) -> BTreeMap<NodeId, Registration> {
        self.mirror().registrations().clone()
    }

    /// What a node's agent says of itself; nothing if it is not heard.
    #[must_use]
    pub fn registration(&self, node: &NodeId) -> Option<Registration> {
        self.mirror().registrations().get(node).cloned()
    }

    /// The node that runs the control loops; nobody between two terms.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        let mirror = self.mirror();
        mirror.leader().map(|leader| leader.candidate.as_str().into())
    }

    /// Whether a backup is being restored: what is missing now may be back in a moment.
    #[must_use]
    pub fn is_restoring(&self) -> bool {
        self.mirror().is_restoring()
    }

    /// The store, for what is no business of the control loops: secrets, tokens, webhooks, ...
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.inner.store
    }

    /// Where time and randomness come from.
    #[must_use]
    pub fn clock(&self) -> &dyn Clock {
        self.inner.clock.as_ref()
    }

    /// Whether the store took or answered what was last asked of it; follow it to tell people.
    #[must_use]
    pub fn available(&self) -> watch::Receiver<bool> {
        self.inner.available.subscribe()
    }

    /// An identifier for a new service.
    #[must_use]
    pub fn new_service_id(&self) -> ServiceId {
        ServiceId::derive(self.clock().seed(), &["service"])
    }

    /// Who changes something now, and how they would call it.
    #[must_use]
    pub fn author(&self, by: impl Into<String>, action: impl Into<String>) -> Author {
        Author {
            by: by.into(),
            at: self.clock().now(),
            action: action.into(),
        }
    }

    /// Makes a change: `plan`, which is one of the [`crate::commands`] or several of them, works it out from
    /// the state and the time. It is asked again if others change the same objects at the same time. When
    /// this returns, [`Self::read`] shows the change.
    ///
    /// What does not fit into one transaction (more than a hundred objects) is committed in several.
    ///
    /// # Errors
    /// [`ChangeError::Command`] when the plan refuses, [`ChangeError::Store`] when the store is away: it says
    /// whether something may have been changed all the same. [`ChangeError::Contended`] when others were faster all the time.
    pub async fn change<P>(&self, author: Author, plan: P) -> Result<Changed, ChangeError>
    where
        P: Fn(&State, Timestamp) -> Result<Vec<ObjectChange>, CommandError>,
    {
        let until = Instant::now() + PATIENCE;
        let mut attempts = 0;
        loop {
            attempts += 1;
            let drafted = {
                let mirror = self.mirror();
                if mirror.is_restoring() {
                    return Err(ChangeError::Restoring);
                }
                let changes = plan(mirror.state(), self.clock().now())?;
                draft::draft(&mirror, &author, &changes)?
            };
            if drafted.batches.is_empty() {
                return Ok(Changed {
                    revision: self.revision(),
                    services: drafted.services,
                });
            }
            let (revision, committed) = self.commit(&drafted.batches, None).await;
            self.reach(revision).await;
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

    /// Waits until the mirror is at a revision, but not for ever: what was committed is committed.
    async fn reach(&self, revision: Revision) {
        if timeout(CATCH_UP, self.reach_surely(revision)).await.is_err() {
            tracing::warn!(%revision, "the store does not tell of what it has committed");
        }
    }

    /// Waits until the mirror is at a revision, however long that takes.
    async fn reach_surely(&self, revision: Revision) {
        let mut changes = self.inner.revision.subscribe();
        // The sender is ours: it cannot be gone.
        let _ = changes.wait_for(|reached| *reached >= revision).await;
    }

    /// Waits until the mirror has what somebody else has done to a key.
    async fn catch_up(&self, key: &Key, found: Option<Revision>) {
        let has = || {
            let mirror = self.mirror();
            let modified = mirror.modified(key);
            modified == found || found.is_some_and(|found| mirror.revision() >= found)
        };
        let mut changes = self.inner.revision.subscribe();
        let wait = changes.wait_for(|_| has());
        if timeout(CATCH_UP, wait).await.is_err() {
            tracing::warn!(%key, "the store does not tell of what somebody else has changed");
        }
    }

    fn mirror(&self) -> RwLockReadGuard<'_, Mirror> {
        self.inner.mirror.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn mirror_mut(&self) -> RwLockWriteGuard<'_, Mirror> {
        self.inner.mirror.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says once that the store is away, and once that it is back.
    fn note(&self, error: Option<&StoreError>) {
        let is_available = !error.is_some_and(StoreError::is_unavailable);
        let has_changed = self.inner.available.send_if_modified(|available| {
            let has_changed = *available != is_available;
            *available = is_available;
            has_changed
        });
        if has_changed && is_available {
            tracing::info!(store = self.inner.store.describe(), "the store is back");
        } else if has_changed && let Some(error) = error {
            let error = error as &dyn std::error::Error;
            tracing::warn!(error, "changes wait for the store; tasks and traffic go on");
        }
    }
}
