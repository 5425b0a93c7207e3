//! Membership and leadership: nodes register under a lease, candidates campaign for leadership. The same on
//! every store. Depends on the store's trait and leases.

use std::{fmt, sync::Arc, time::Duration};

use mesh_support::watched::Newest as _;
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, task::JoinHandle, time::sleep};

use super::{
    EPHEMERAL, Entry, Event, Expected, Heartbeat, InvalidKey, Key, Lease, PAGE, Prefix, Revision, Store,
    StoreError, Transaction,
};

/// The pause before an unavailable store is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// The key of a node's registration.
///
/// # Errors
/// When the node's name has characters that a key may not have.
pub fn node_key(node: &str) -> Result<Key, InvalidKey> {
    Key::new([EPHEMERAL, "nodes", node])
}

/// A node's registration under a lease, renewed until this is dropped; then the node is gone at once.
///
/// A node that was cut off for longer than its time to live registers again as soon as it can.
#[derive(Debug)]
pub struct NodeSession {
    present: watch::Receiver<bool>,
    task: JoinHandle<()>,
    target: watch::Sender<Target>,
}

/// The registration that the session's owner asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    /// Present, with this value.
    Value(Vec<u8>),
    /// Absent.
    Withdrawn,
}

impl NodeSession {
    /// Registers a node with a value for others to read, and keeps it registered.
    #[must_use]
    pub fn start(store: Arc<dyn Store>, key: Key, value: Vec<u8>, heartbeat: Heartbeat) -> Self {
        let (registered, present) = watch::channel(false);
        let (target, targets) = watch::channel(Target::Value(value));
        let keeper = Keeper {
            store,
            key,
            heartbeat,
            registered,
            targets,
        };
        Self {
            present,
            task: tokio::spawn(keeper.keep()),
            target,
        }
    }

    /// Changes the value as soon as the store is available.
    pub fn set(&self, value: Vec<u8>) {
        let value = Target::Value(value);
        self.target.send_if_modified(|target| {
            let has_changed = *target != value;
            *target = value;
            has_changed
        });
    }

    /// Whether the node is registered, as far as it knows.
    #[must_use]
    pub fn present(&self) -> watch::Receiver<bool> {
        self.present.clone()
    }

    /// Removes the registration, and waits until the store has acknowledged that, if it is available.
    pub async fn withdraw(self) {
        self.target.send_replace(Target::Withdrawn);
        // It can only fail if the runtime ends.
        let _ = self.task.await;
    }
}

/// The task that keeps a node registered.
struct Keeper {
    store: Arc<dyn Store>,
    key: Key,
    heartbeat: Heartbeat,
    registered: watch::Sender<bool>,
    targets: watch::Receiver<Target>,
}

impl Keeper {
    async fn keep(mut self) {
        let mut refused = false;
        // There is no value once the registration is withdrawn or dropped.
        while let Some(value) = self.value() {
            let registered = async {
                let lease = self.store.lease(self.heartbeat).await?;
                self.put(&lease, value).await?;
                Ok::<_, StoreError>(lease)
            };
            match registered.await {
                Ok(lease) => {
                    refused = false;
                    self.registered.send_replace(true);
                    let is_over = self.stay(&lease).await;
                    if is_over {
                        lease.revoke().await;
                    }
                    self.registered.send_replace(false);
                }
                // Logged once: it is tried until it succeeds.
                Err(error) => {
                    if !std::mem::replace(&mut refused, true) {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(key = %self.key, error, "could not register the node; trying again");
                    }
                }
            }
            if self.value().is_some() {
                tokio::select! {
                    () = sleep(RETRY) => {}
                    _ = self.targets.changed() => {}
                }
            }
        }
    }

    /// The value to put; `None` if the registration is to end.
    fn value(&mut self) -> Option<Vec<u8>> {
        if self.targets.has_changed().is_err() {
            return None;
        }
        match &self.targets.newest() {
            Target::Value(value) => Some(value.clone()),
            Target::Withdrawn => None,
        }
    }

    /// Puts the value in place of what is there now. A request that the store carries out late must not: it
    /// would bring back an old value, or an old lease, which takes the registration with it when it ends.
    async fn put(&self, lease: &Lease, value: Vec<u8>) -> Result<(), StoreError> {
        let found = self.store.get(&self.key).await?;
        let expected = found.map_or(Expected::Absent, |entry| Expected::At(entry.modified));
        let transaction = Transaction::new()
            .expect(self.key.clone(), expected)
            .put(self.key.clone(), value);
        self.store.commit_under(lease, transaction).await.map(drop)
    }

    /// Keeps the value up to date under a lease. True if the registration ends, false if the lease does.
    async fn stay(&mut self, lease: &Lease) -> bool {
        loop {
            tokio::select! {
                () = lease.lost() => return false,
                changed = self.targets.changed() => {
                    if changed.is_err() {
                        return true;
                    }
                }
            }
            let Some(value) = self.value() else {
                return true;
            };
            while let Err(error) = self.put(lease, value.clone()).await {
                tracing::debug!(key = %self.key, error = &error as &dyn std::error::Error, "could not update the node's registration");
                tokio::select! {
                    () = lease.lost() => return false,
                    () = sleep(RETRY) => {}
                }
                // The value is outdated.
                if self.targets.has_changed().unwrap_or(true) {
                    break;
                }
            }
        }
    }
}

/// The leader, as stored in an election's key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Leader {
    /// The candidate's name: its node.
    pub candidate: String,
    /// Its lease, which differs between terms of the same candidate.
    pub lease: i64,
}

/// Leadership of one election, held until it is dropped, resigned or lost.
pub struct Leadership {
    key: Key,
    revision: Revision,
    lease: Lease,
}

impl fmt::Debug for Leadership {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Leadership")
            .field("key", &self.key)
            .field("revision", &self.revision)
            .field("lost", &self.lease.is_lost())
            .finish_non_exhaustive()
    }
}

impl Leadership {
    /// Lets a transaction commit only while leadership is held, so that a former leader cannot change
    /// anything, even before it notices.
    #[must_use]
    pub fn fence(&self, transaction: Transaction) -> Transaction {
        transaction.expect(self.key.clone(), Expected::At(self.revision))
    }

    /// The key that [`Self::fence`] checks: a conflict there means that leadership is lost.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// The revision at which leadership was won; each later term has a higher one.
    #[must_use]
    pub fn term(&self) -> Revision {
        self.revision
    }

    /// Waits until leadership is lost. The loops must stop then.
    pub async fn lost(&self) {
        self.lease.lost().await;
    }

    /// Resigns, so that another candidate can win immediately.
    pub async fn resign(self) {
        self.lease.revoke().await;
    }
}

/// The key of an election's leader.
///
/// # Errors
/// When the election's name has characters that a key may not have.
pub fn election_key(election: &str) -> Result<Key, InvalidKey> {
    Key::new([EPHEMERAL, "elections", election, "leader"])
}

/// Why a campaign failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CampaignError {
    /// The election's name cannot be part of a key.
    #[error("could not campaign: the election's name is not allowed")]
    Name(#[from] InvalidKey),
    /// The store failed, and waiting does not help.
    #[error("could not campaign in the store")]
    Store(#[from] StoreError),
}

/// Campaigns until the election is won, across outages of the store.
///
/// # Errors
/// When the name is not allowed, or the store is damaged.
pub async fn campaign(
    store: &Arc<dyn Store>,
    election: &str,
    candidate: &str,
    heartbeat: Heartbeat,
) -> Result<Leadership, CampaignError> {
    let key = election_key(election)?;
    let mut waits = false;
    loop {
        match campaign_once(store.as_ref(), &key, candidate, heartbeat).await {
            Ok(leadership) => return Ok(leadership),
            Err(error) if error.is_unavailable() || matches!(error, StoreError::Compacted { .. }) => {
                // Logged once: it is tried until it succeeds.
                if !std::mem::replace(&mut waits, true) {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(%key, error, "the election waits for the store");
                }
                sleep(RETRY).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Campaigns with one lease, until that is lost.
async fn campaign_once(
    store: &dyn Store,
    key: &Key,
    candidate: &str,
    heartbeat: Heartbeat,
) -> Result<Leadership, StoreError> {
    let lease = store.lease(heartbeat).await?;
    let ours = Leader {
        candidate: candidate.to_owned(),
        lease: lease.id(),
    };
    let value = serde_json::to_vec(&ours).map_err(|error| StoreError::Corrupt {
        store: store.describe(),
        detail: error.to_string(),
    })?;
    let won = |revision| (key.clone(), revision);
    let (key, revision) = loop {
        let transaction = Transaction::new()
            .expect(key.clone(), Expected::Absent)
            .put(key.clone(), value.clone());
        match store.commit_under(&lease, transaction).await {
            Ok(revision) => break won(revision),
            Err(StoreError::Conflict { .. } | StoreError::OutcomeUnknown { .. }) => {}
            Err(error) => return Err(error),
        }
        if let Some(entry) = wait_for_vacancy(store, key, &value).await? {
            // We had won, but the answer was lost.
            break won(entry.modified);
        }
    };
    Ok(Leadership { key, revision, lease })
}

/// Waits until there is no leader; returns our own entry if we are the leader.
async fn wait_for_vacancy(store: &dyn Store, key: &Key, ours: &[u8]) -> Result<Option<Entry>, StoreError> {
    let prefix = Prefix::around(key);
    let listing = store.list(&prefix, PAGE).await?;
    let revision = listing.revision;
    match listing
        .entries()
        .await?
        .into_iter()
        .find(|entry| entry.key == *key)
    {
        None => return Ok(None),
        Some(entry) if entry.value == ours => return Ok(Some(entry)),
        Some(_) => {}
    }
    let mut watch = store.watch(&prefix, revision).await?;
    while let Some(batch) = watch.next().await {
        if batch?
            .events
            .iter()
            .any(|event| matches!(event, Event::Delete(gone) if gone == key))
        {
            break;
        }
    }
    Ok(None)
}
