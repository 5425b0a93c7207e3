//! Nodes without access to the store: what a manager does for them. Each request is checked against the
//! worker's identity, which its certificate has proved; what is not allowed expressly is refused.
//!
//! A worker's node is an object as every node's, made by an operator's command; its identifier follows from
//! its name, and its name is the certificate's. Without that object the worker is refused.

mod feed;
mod read;
#[cfg(test)]
mod tests;
mod write;

use std::{collections::BTreeSet, net::Ipv4Addr, ops::RangeInclusive, time::Duration};

use tokio::time::{Instant, timeout_at};

pub use self::feed::WorkerFeed;
use self::write::Facts;
use super::{
    ChangeError, Cluster, Unreadable,
    stored::{self, StoredTask},
};
use crate::{
    commands::{is_worker, worker_id},
    objects::{Node, NodeId, State, TaskId},
    secrets::Kind,
    store::{
        Entry, Expected, InvalidKey, Key, Lease, Prefix, Revision, StoreError, Transaction, WatchBatch,
        Write, is_ephemeral, later,
    },
};

/// How long it may take to read what a worker has missed.
const CATCH_UP: Duration = Duration::from_secs(2);

/// Why a manager did not do what a worker asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// No operator has admitted the worker, or one has removed it.
    #[error("no worker of this name is admitted: run 'meshctl node admit NAME' on a manager")]
    NotAdmitted,
    /// It may not read or write that.
    #[error("refused: {0}")]
    Refused(String),
    /// The manager stops.
    #[error("the manager's agent stops")]
    Ended,
    /// The store.
    #[error("the manager could not do it")]
    Store(#[from] StoreError),
    /// The manager is behind the store.
    #[error("the manager is behind the store")]
    Behind(#[source] Box<ChangeError>),
    /// An object cannot be written as JSON.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    /// A name cannot be a key.
    #[error("not a name: {0}")]
    Name(#[from] InvalidKey),
}

/// The worker of a node's identifier, if it is admitted.
fn admitted<'a>(state: &'a State, worker: &NodeId) -> Result<&'a Node, WorkerError> {
    let node = state.nodes().get(worker);
    node.filter(|node| is_worker(node))
        .ok_or(WorkerError::NotAdmitted)
}

impl Cluster {
    /// The admitted worker whose certificate has a name.
    ///
    /// # Errors
    /// [`WorkerError::NotAdmitted`].
    pub fn worker(&self, name: &str) -> Result<NodeId, WorkerError> {
        let id = worker_id(name);
        self.read(|state| match admitted(state, &id)?.hostname == name {
            true => Ok(id.clone()),
            false => Err(WorkerError::NotAdmitted),
        })
    }

    /// What a worker may read, from the newest state on: a manager that is behind must not show it an earlier
    /// one, in which its tasks would be gone.
    ///
    /// # Errors
    /// When the worker is not admitted, or the store does not answer.
    pub async fn worker_feed(&self, worker: &NodeId) -> Result<WorkerFeed, WorkerError> {
        self.read(|state| admitted(state, worker).map(drop))?;
        self.freshen(stored::fresh()?)
            .await
            .map_err(|error| WorkerError::Behind(Box::new(error)))?;
        Ok(WorkerFeed::new(self, worker))
    }

    /// The objects that a worker may read, for one that has all of them up to a revision, and what it has
    /// missed since. `None` if that cannot be known: the store no longer has those changes.
    ///
    /// # Errors
    /// When the worker is not admitted, or the store does not answer.
    pub async fn worker_feed_after(
        &self,
        worker: &NodeId,
        after: Revision,
    ) -> Result<Option<(WorkerFeed, WatchBatch)>, WorkerError> {
        // It subscribes first: what changes meanwhile is seen twice, not never.
        let mut feed = self.worker_feed(worker).await?;
        if after > self.revision() {
            return Ok(None);
        }
        let Ok(mut watch) = self.store().watch(&Prefix::everything(), after).await else {
            return Ok(None);
        };
        let (mut seen, mut touched) = (after, BTreeSet::new());
        let until = Instant::now() + CATCH_UP;
        loop {
            if let Some(missed) = feed.resume(seen, &touched)? {
                return Ok(Some((feed, missed)));
            }
            match timeout_at(until, watch.next()).await {
                Ok(Some(Ok(batch))) => {
                    seen = batch.revision;
                    touched.extend(batch.events.iter().map(|event| stored::name(event.key())));
                }
                // It has all objects shown instead.
                Ok(Some(Err(_)) | None) | Err(_) => return Ok(None),
            }
        }
    }

    /// One of the objects that a worker writes, as the store has it.
    ///
    /// # Errors
    /// When it may not read it, or the store does not answer.
    pub async fn worker_get(&self, worker: &NodeId, key: &Key) -> Result<Option<Entry>, WorkerError> {
        self.read(|state| admitted(state, worker).map(drop))?;
        self.read(|state| may_expect(state, worker, key))?;
        let found = self.store().get(key).await?;
        // The store may have one of another node that the mirror does not have yet.
        let is_others = |entry: &Entry| {
            matches!(stored::name(key), stored::Name::Task(_))
                && !later::read::<StoredTask>(&entry.value)
                    .is_ok_and(|(task, _)| task.node.as_ref() == Some(worker))
        };
        match found {
            Some(entry) if is_others(&entry) => Err(not_own(key)),
            found => Ok(found),
        }
    }

    /// Commits a worker's transaction, after a check of each write against what is stored.
    ///
    /// # Errors
    /// [`WorkerError::Refused`] when it may not; as [`crate::store::Store::commit`].
    pub async fn worker_commit(
        &self,
        worker: &NodeId,
        transaction: &Transaction,
        addresses: Option<RangeInclusive<Ipv4Addr>>,
        lease: Option<&Lease>,
    ) -> Result<Revision, WorkerError> {
        transaction.check()?;
        let facts = self.read(|state| {
            admitted(state, worker)?;
            for (key, _) in transaction.conditions() {
                may_expect(state, worker, key)?;
            }
            Ok::<_, WorkerError>(Facts::of(state, worker, addresses, self.clock().now()))
        })?;
        // The node may have been removed since the mirror was read.
        let own = stored::node(worker)?;
        let Some(node) = self.store().get(&own).await? else {
            return Err(WorkerError::NotAdmitted);
        };
        let mut checked = Transaction::new()
            .expect(stored::restore()?, Expected::Absent)
            .expect(own, Expected::At(node.modified));
        for (key, write) in transaction.writes() {
            let Write::Put(new) = write else {
                return Err(WorkerError::Refused(format!("workers do not remove {key}")));
            };
            if is_ephemeral(key) && lease.is_none() {
                return Err(WorkerError::Refused(format!("{key} is written under a lease")));
            }
            let old = match is_ephemeral(key) {
                true => None,
                false => self.store().get(key).await?,
            };
            let value = old.as_ref().map(|entry| entry.value.as_slice());
            let bytes = match (&old, write::check(worker, key, value, new, &facts)) {
                // It is gone, as the worker will see.
                (None, Err(_)) if matches!(stored::name(key), stored::Name::Task(_)) => {
                    return Err(conflict(transaction, key, None).into());
                }
                (_, checked) => checked.map_err(|error| WorkerError::Refused(error.to_string()))?,
            };
            checked = checked.put(key.clone(), bytes);
            if let Some(old) = old {
                checked = checked.expect(key.clone(), Expected::At(old.modified));
                let expected = condition(transaction, key);
                if expected.is_some_and(|expected| !expected.holds(Some(old.modified))) {
                    return Err(conflict(transaction, key, Some(old.modified)).into());
                }
            }
        }
        for (key, expected) in transaction.conditions() {
            if checked.conditions().all(|(known, _)| known != key) {
                checked = checked.expect(key.clone(), expected);
            }
        }
        let committed = match lease {
            Some(lease) => self.store().commit_under(lease, checked).await,
            None => self.store().commit(checked).await,
        };
        Ok(committed?)
    }

    /// Whether a worker may have a value in clear text: a secret or config of one of its tasks that has not
    /// ended, the credential for the registry of such a task's image, as `registry` finds it, or what all
    /// agents share.
    #[must_use]
    pub fn worker_may_reveal(
        &self,
        worker: &NodeId,
        kind: Kind,
        name: &str,
        registry: impl Fn(&str) -> String,
    ) -> bool {
        self.read(|state| {
            let Ok(node) = admitted(state, worker) else {
                return false;
            };
            if kind == Kind::Agents {
                return name == crate::secrets::TUNNEL;
            }
            let index = state.tasks_on(&node.id);
            let mut tasks = index
                .into_iter()
                .flat_map(|index| &index.tasks)
                .filter_map(|id: &TaskId| state.tasks().get(id));
            tasks.any(|task| {
                let container = &task.spec.container_spec;
                let mut files = match kind {
                    Kind::Secret => container.secrets.iter(),
                    Kind::Config => container.configs.iter(),
                    Kind::RegistryCredential => return registry(&container.image) == name,
                    Kind::Webhook | Kind::Agents => return false,
                };
                files.any(|file| file.source == name)
            })
        })
    }
}

fn condition(transaction: &Transaction, key: &Key) -> Option<Expected> {
    let mut conditions = transaction.conditions();
    conditions
        .find(|(known, _)| *known == key)
        .map(|(_, expected)| expected)
}

fn conflict(transaction: &Transaction, key: &Key, found: Option<Revision>) -> StoreError {
    StoreError::Conflict {
        key: key.clone(),
        expected: condition(transaction, key).unwrap_or(Expected::Absent),
        found,
    }
}

/// Whether a worker may learn when an object was last changed: otherwise its conditions would show which
/// objects there are.
fn may_expect(state: &State, worker: &NodeId, key: &Key) -> Result<(), WorkerError> {
    let is_own = match stored::name(key) {
        stored::Name::Task(id) => {
            let task = state.tasks().get(&id);
            // One that is gone tells nothing.
            task.is_none_or(|task| task.node.as_ref() == Some(worker))
        }
        stored::Name::Node(id) | stored::Name::Registration(id) => id == *worker,
        stored::Name::Restore => true,
        stored::Name::Service(_)
        | stored::Name::Spec(..)
        | stored::Name::Ports
        | stored::Name::Guard
        | stored::Name::Leader
        | stored::Name::Other => false,
    };
    match is_own {
        true => Ok(()),
        false => Err(not_own(key)),
    }
}

fn not_own(key: &Key) -> WorkerError {
    WorkerError::Refused(format!("{key} is not of this node"))
}
