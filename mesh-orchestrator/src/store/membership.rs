//! Who is there and who leads: nodes register under a lease, candidates campaign for one lead. The same
//! over every store. Depends on the store's trait and leases.

use std::{fmt, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::{sync::watch, task::JoinHandle, time::sleep};

use super::{
    EPHEMERAL, Entry, Event, Expected, Heartbeat, InvalidKey, Key, Lease, PAGE, Prefix, Revision, Store,
    StoreError, Transaction,
};

/// How long to wait before an unavailable store is asked again.
const RETRY: Duration = Duration::from_millis(500);

/// Where one node registers.
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
    wish: watch::Sender<Wish>,
}

/// The registration that the session's owner asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Wish {
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
        let (wish, wishes) = watch::channel(Wish::Value(value));
        let keeping = Keeping {
            store,
            key,
            heartbeat,
            registered,
            wishes,
        };
        Self {
            present,
            task: tokio::spawn(keeping.keep()),
            wish,
        }
    }

    /// Gives it another value, as soon as that can be.
    pub fn set(&self, value: Vec<u8>) {
        let value = Wish::Value(value);
        self.wish.send_if_modified(|wish| {
            let has_changed = *wish != value;
            *wish = value;
            has_changed
        });
    }

    /// Whether the node is registered, as far as is known; follow it to tell people when it is cut off.
    #[must_use]
    pub fn present(&self) -> watch::Receiver<bool> {
        self.present.clone()
    }

    /// Takes the node out and waits until the store knows, if it can be told.
    pub async fn withdraw(self) {
        self.wish.send_replace(Wish::Withdrawn);
        // It can only fail if the runtime ends.
        let _ = self.task.await;
    }
}

/// The keeping side of a registration.
struct Keeping {
    store: Arc<dyn Store>,
    key: Key,
    heartbeat: Heartbeat,
    registered: watch::Sender<bool>,
    wishes: watch::Receiver<Wish>,
}

impl Keeping {
    async fn keep(mut self) {
        let mut refused = false;
        // The value is gone when the registration is withdrawn or dropped.
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
                // Said once: it is tried until it succeeds.
                Err(error) => {
                    if !std::mem::replace(&mut refused, true) {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(key = %self.key, error, "could not register the node; tries again");
                    }
                }
            }
            if self.value().is_some() {
                tokio::select! {
                    () = sleep(RETRY) => {}
                    _ = self.wishes.changed() => {}
                }
            }
        }
    }

    /// What is to be put now; nothing if the registration is to end.
    fn value(&mut self) -> Option<Vec<u8>> {
        if self.wishes.has_changed().is_err() {
            return None;
        }
        match &*self.wishes.borrow_and_update() {
            Wish::Value(value) => Some(value.clone()),
            Wish::Withdrawn => None,
        }
    }

    async fn put(&self, lease: &Lease, value: Vec<u8>) -> Result<(), StoreError> {
        let transaction = Transaction::new().put(self.key.clone(), value);
        self.store.commit_under(lease, transaction).await.map(drop)
    }

    /// Keeps the value up to date under a lease. True if the registration ends, false if the lease has.
    async fn stay(&mut self, lease: &Lease) -> bool {
        loop {
            tokio::select! {
                () = lease.lost() => return false,
                changed = self.wishes.changed() => {
                    if changed.is_err() {
                        return true;
                    }
                }
            }
            let Some(value) = self.value() else {
                return true;
            };
            while let Err(error) = self.put(lease, value.clone()).await {
                tracing::debug!(key = %self.key, error = &error as &dyn std::error::Error, "could not change what the node says of itself");
                tokio::select! {
                    () = lease.lost() => return false,
                    () = sleep(RETRY) => {}
                }
                // Another one takes its place, or none.
                if self.wishes.has_changed().unwrap_or(true) {
                    break;
                }
            }
        }
    }
}

/// Who leads; what an election's key holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Leader {
    /// The candidate's name: its node.
    pub candidate: String,
    /// Its lease, which tells one term of a candidate from the next.
    pub lease: i64,
}

/// The lead of one election, held until it is dropped, resigned or lost.
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
    /// Lets a transaction commit only while the lead is held: whoever was leader and does not know yet
    /// that it no longer is cannot change anything.
    #[must_use]
    pub fn fence(&self, transaction: Transaction) -> Transaction {
        transaction.expect(self.key.clone(), Expected::At(self.revision))
    }

    /// The key that [`Self::fence`] looks at: a conflict there means that the lead is lost.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// The revision at which the lead was won; higher for each later term.
    #[must_use]
    pub fn term(&self) -> Revision {
        self.revision
    }

    /// Waits until the lead is lost. The loops must stop then.
    pub async fn lost(&self) {
        self.lease.lost().await;
    }

    /// Gives the lead up, so that another candidate has it at once.
    pub async fn resign(self) {
        self.lease.revoke().await;
    }
}

/// Where the leader of an election is named, while there is one.
///
/// # Errors
/// When the election's name has characters that a key may not have.
pub fn election_key(election: &str) -> Result<Key, InvalidKey> {
    Key::new([EPHEMERAL, "elections", election, "leader"])
}

/// Why a campaign could not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CampaignError {
    /// The election's name cannot be part of a key.
    #[error("could not campaign: the election's name is not allowed")]
    Name(#[from] InvalidKey),
    /// The store failed in a way that waiting does not help.
    #[error("could not campaign in the store")]
    Store(#[from] StoreError),
}

/// Stands for an election until it is won, however long the store is out of reach meanwhile.
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
        match stand(store.as_ref(), &key, candidate, heartbeat).await {
            Ok(leadership) => return Ok(leadership),
            Err(error) if error.is_unavailable() || matches!(error, StoreError::Compacted { .. }) => {
                // Said once: it is tried until it succeeds.
                if !std::mem::replace(&mut waits, true) {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(%key, error, "an election waits for the store");
                }
                sleep(RETRY).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Stands with one lease, as long as that lasts.
async fn stand(
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
            // An answer was lost, but we had won.
            break won(entry.modified);
        }
    };
    Ok(Leadership { key, revision, lease })
}

/// Waits until nobody leads; answers at once with the entry if we do.
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
