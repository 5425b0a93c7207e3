//! From changes to transactions: the writes and conditions of each change, divided into batches. Pure.
//! Imports `mirror` and the store's plain data.

mod specs;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::Serialize;

use super::{
    ChangeError,
    mirror::Mirror,
    stored::{self, Name, SERVICES, StoredTask},
};
use crate::{
    objects::{ObjectChange, Refused, Service, ServiceId, Task, TaskId},
    store::{
        Expected, Key, MAX_OPERATIONS, MAX_TRANSACTION_BYTES, Revision, StoreError, Transaction, Write,
        revisions::{self, Author, Current, KEPT, Revised, RevisionId},
    },
};

/// Keys of one transaction. The rest is for the leader's fence, the restore marker, and the last change:
/// removing a service also removes its old revisions and writes the guard.
const MAX_KEYS: usize = MAX_OPERATIONS - 16;

/// Bytes of one transaction, less the same reserve.
const MAX_BYTES: usize = MAX_TRANSACTION_BYTES - 4096;

/// What a new specification or task leaves free of that: later changes of the same object, such as a
/// report with its message, must fit as well.
const RESERVE: usize = 32 * 1024;

/// What a batch expects of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    /// As in the mirror.
    Is(Expected),
    /// As the earlier batch with this index left it.
    Left(usize),
}

/// A future transaction.
#[derive(Clone, Debug, Default)]
pub(super) struct Batch {
    conditions: BTreeMap<Key, Condition>,
    writes: BTreeMap<Key, Write>,
    bytes: usize,
    /// One of the new revisions of services in it.
    revision: Option<(ServiceId, RevisionId)>,
}

/// What shows, in the store, whether a batch was committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Witness {
    /// The service has or had this revision.
    Revision(ServiceId, RevisionId),
    /// The key has this value, or is gone.
    Value(Key, Option<Vec<u8>>),
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// The transaction, given the revisions of the earlier batches.
    pub(super) fn transaction(&self, before: &[Revision]) -> Transaction {
        let mut transaction = Transaction::new();
        for (key, condition) in &self.conditions {
            let expected = match condition {
                Condition::Is(expected) => *expected,
                Condition::Left(index) => before
                    .get(*index)
                    .map_or(Expected::Absent, |revision| Expected::At(*revision)),
            };
            transaction = transaction.expect(key.clone(), expected);
        }
        for (key, write) in &self.writes {
            transaction = match write {
                Write::Put(value) => transaction.put(key.clone(), value.clone()),
                Write::Delete => transaction.delete(key.clone()),
            };
        }
        transaction
    }

    /// What shows whether the batch was committed. The guard does not, nor do specifications: others write
    /// the same value.
    pub(super) fn witness(&self) -> Option<Witness> {
        if let Some((service, revision)) = &self.revision {
            return Some(Witness::Revision(service.clone(), *revision));
        }
        let mut own = self
            .conditions
            .keys()
            .filter(|key| !matches!(stored::name(key), Name::Guard | Name::Spec(..)));
        own.find_map(|key| {
            self.writes.get(key).map(|write| match write {
                Write::Put(value) => Witness::Value(key.clone(), Some(value.clone())),
                Write::Delete => Witness::Value(key.clone(), None),
            })
        })
    }
}

/// Transactions in the making.
#[derive(Debug)]
pub(super) struct Draft<'a> {
    mirror: &'a Mirror,
    author: &'a Author,
    /// The changes were planned from the state at this revision, not from the mirror.
    seen: Option<Revision>,
    /// For the identifiers of new revisions.
    seed: u128,
    /// Objects as earlier changes of the draft left them; `None` is removed.
    tasks: BTreeMap<TaskId, Option<Task>>,
    services: BTreeMap<ServiceId, Option<Revised<Arc<Service>>>>,
    /// How many tasks of each service and task version it has created, less those that it has removed.
    users: BTreeMap<ServiceId, BTreeMap<u64, i64>>,
    /// The index of the batch that last wrote a key, and whether it removed the key.
    written: BTreeMap<Key, (usize, bool)>,
    /// Services with a new revision in the current batch; each can have one.
    revised: BTreeSet<ServiceId>,
    made: BTreeMap<ServiceId, RevisionId>,
    batches: Vec<Batch>,
    batch: Batch,
}

/// A finished draft.
#[derive(Clone, Debug, Default)]
pub(super) struct Drafted {
    /// To be committed in this order.
    pub(super) batches: Vec<Batch>,
    /// The new revisions of services.
    pub(super) services: BTreeMap<ServiceId, RevisionId>,
}

/// Drafts changes that were planned from the mirror's current state. The seed tells new revisions from those
/// that others make of the same change at the same time.
///
/// # Errors
/// If a change does not apply to what the mirror has.
pub(super) fn draft(
    mirror: &Mirror,
    author: &Author,
    changes: &[ObjectChange],
    seed: u128,
) -> Result<Drafted, ChangeError> {
    draft_all(mirror, author, changes, None, seed)
}

/// Drafts the loops' changes, which were planned from the state at an earlier revision. Tasks may have
/// changed since: an agent's reports and the loops' decisions concern different fields of a task.
/// Specifications that no task has any more are removed, too.
///
/// # Errors
/// As [`draft`]; a conflict if anything but a task has changed since.
pub(super) fn draft_since(
    mirror: &Mirror,
    author: &Author,
    changes: &[ObjectChange],
    seen: Revision,
    seed: u128,
) -> Result<Drafted, ChangeError> {
    draft_all(mirror, author, changes, Some(seen), seed)
}

fn draft_all(
    mirror: &Mirror,
    author: &Author,
    changes: &[ObjectChange],
    seen: Option<Revision>,
    seed: u128,
) -> Result<Drafted, ChangeError> {
    let mut draft = Draft {
        mirror,
        author,
        seen,
        seed,
        tasks: BTreeMap::new(),
        services: BTreeMap::new(),
        users: BTreeMap::new(),
        written: BTreeMap::new(),
        revised: BTreeSet::new(),
        made: BTreeMap::new(),
        batches: Vec::new(),
        batch: Batch::default(),
    };
    for change in changes {
        draft.add(change)?;
    }
    if seen.is_some() {
        draft.remove_unused_specs()?;
    }
    draft.flush();
    Ok(Drafted {
        batches: draft.batches,
        services: draft.made,
    })
}

impl Draft<'_> {
    fn add(&mut self, change: &ObjectChange) -> Result<(), ChangeError> {
        match change {
            ObjectChange::PutService(service) => self.put_service(service)?,
            ObjectChange::RemoveService(id) => self.remove_service(id)?,
            ObjectChange::PutNode(node) => self.put(stored::node(&node.id)?, node)?,
            ObjectChange::RemoveNode(id) => self.delete(stored::node(id)?)?,
            ObjectChange::PutPorts(ledger) => self.put(stored::ports()?, ledger)?,
            ObjectChange::CreateTask(task) => {
                if self.task(&task.id).is_some() {
                    return Err(Refused::TaskExists(task.id.clone()).into());
                }
                self.create_task(task)?;
            }
            ObjectChange::PutTask(task) => self.put_task((**task).clone(), 0)?,
            ObjectChange::Assign { task, node, at } => {
                self.change_task(task, |task| task.assign(node, *at))?;
            }
            ObjectChange::SetDesired { task, desired } => {
                self.change_task(task, |task| task.set_desired(*desired))?;
            }
            ObjectChange::GiveUp(task) => self.change_task(task, Task::give_up)?,
            ObjectChange::Observe { task, status } => self.change_task(task, |task| task.observe(status))?,
            ObjectChange::RemoveTask(id) => {
                let Some(task) = self.task(id) else {
                    return Err(Refused::UnknownTask(id.clone()).into());
                };
                let (service, version) = (task.service.clone(), task.spec_version);
                self.count_user(service, version, -1);
                self.delete(stored::task(id)?)?;
                self.tasks.insert(id.clone(), None);
            }
        }
        Ok(())
    }

    fn task(&self, id: &TaskId) -> Option<&Task> {
        match self.tasks.get(id) {
            Some(task) => task.as_ref(),
            None => self.mirror.state().tasks().get(id),
        }
    }

    fn change_task(
        &mut self,
        id: &TaskId,
        change: impl FnOnce(&mut Task) -> Result<(), Refused>,
    ) -> Result<(), ChangeError> {
        let mut task = self
            .task(id)
            .cloned()
            .ok_or_else(|| Refused::UnknownTask(id.clone()))?;
        change(&mut task)?;
        self.put_task(task, 0)
    }

    fn put_task(&mut self, task: Task, reserve: usize) -> Result<(), ChangeError> {
        let stored = match self.has_spec(&task)? {
            true => StoredTask::new(&task),
            false => StoredTask::whole(&task),
        };
        self.put_leaving(stored::task(&task.id)?, &stored, reserve)?;
        self.tasks.insert(task.id.clone(), Some(task));
        Ok(())
    }

    fn service(&self, id: &ServiceId) -> Option<Revised<Arc<Service>>> {
        match self.services.get(id) {
            Some(service) => service.clone(),
            None => self.mirror.revised(id),
        }
    }

    /// A new specification makes a new revision. The loops' changes of a service, such as its update's
    /// status, do not: they would soon displace the users' revisions, and what users have read would always
    /// be out of date.
    fn put_service(&mut self, service: &Arc<Service>) -> Result<(), ChangeError> {
        let id = &service.id;
        let key = stored::service(id)?;
        let current = self.service(id);
        if current.is_none() && self.seen.is_some() {
            // The loops create no services: a user has removed it.
            return Err(Refused::UnknownService(id.clone()).into());
        }
        if let Some(current) = &current
            && current.value.version == service.version
        {
            let revised = Revised {
                value: service.clone(),
                ..current.clone()
            };
            self.put(key, &revised)?;
            self.services.insert(id.clone(), Some(revised));
            return Ok(());
        }
        if self.revised.contains(id) {
            self.flush();
        }
        let staged = {
            let current = match &current {
                Some(revised) => Some(Current {
                    revision: revised.revision,
                    stored: stored::encode(&key, revised, self.mirror.later(&key))?,
                }),
                None => None,
            };
            let later = self.mirror.later(&key);
            revisions::stage(
                SERVICES,
                id.as_str(),
                current,
                service,
                self.author.clone(),
                later,
                self.seed,
            )?
        };
        if let Some(before) = staged.before {
            self.flush();
            self.expect(key.clone())?;
            self.take(before);
            self.flush();
        }
        let bytes = staged
            .transaction
            .writes()
            .find_map(|(written, write)| match write {
                Write::Put(value) if *written == key => Some(value.len()),
                Write::Put(_) | Write::Delete => None,
            });
        fits(&key, bytes.unwrap_or_default(), RESERVE)?;
        self.reserve(staged.transaction.bytes());
        self.expect(key)?;
        self.take(staged.transaction);
        self.batch.revision = Some((id.clone(), staged.revision));
        self.put(stored::guard()?, id)?;
        self.revised.insert(id.clone());
        self.made.insert(id.clone(), staged.revision);
        let revised = Revised {
            revision: staged.revision,
            author: self.author.clone(),
            value: service.clone(),
        };
        self.services.insert(id.clone(), Some(revised));
        Ok(())
    }

    fn remove_service(&mut self, id: &ServiceId) -> Result<(), ChangeError> {
        let current = self
            .service(id)
            .ok_or_else(|| Refused::UnknownService(id.clone()))?;
        let newest = current.revision.number;
        self.delete(stored::service(id)?)?;
        for number in newest.saturating_sub(KEPT).max(1)..newest {
            let key = revisions::old_key(SERVICES, id.as_str(), number)?;
            self.write(key, Write::Delete);
        }
        self.put(stored::guard()?, id)?;
        self.services.insert(id.clone(), None);
        Ok(())
    }

    fn put<T: Serialize>(&mut self, key: Key, object: &T) -> Result<(), ChangeError> {
        self.put_leaving(key, object, 0)
    }

    /// Writes an object that must leave some bytes of the largest size free.
    fn put_leaving<T: Serialize>(&mut self, key: Key, object: &T, reserve: usize) -> Result<(), ChangeError> {
        let value = stored::encode(&key, object, self.mirror.later(&key))?;
        self.put_value(key, value, reserve)
    }

    fn put_value(&mut self, key: Key, value: Vec<u8>, reserve: usize) -> Result<(), ChangeError> {
        fits(&key, value.len(), reserve)?;
        self.reserve(key.as_str().len() + value.len());
        self.expect(key.clone())?;
        self.write(key, Write::Put(value));
        Ok(())
    }

    fn delete(&mut self, key: Key) -> Result<(), ChangeError> {
        self.reserve(key.as_str().len());
        self.expect(key.clone())?;
        self.write(key, Write::Delete);
        Ok(())
    }

    /// Adds the writes of a staged revision.
    fn take(&mut self, transaction: Transaction) {
        for (key, write) in transaction.writes() {
            self.write(key.clone(), write.clone());
        }
    }

    /// Lets the batch commit only if no one else has written the key.
    fn expect(&mut self, key: Key) -> Result<(), ChangeError> {
        let condition = match self.written.get(&key) {
            Some((index, _)) if *index == self.batches.len() => return Ok(()),
            Some((_, true)) => Condition::Is(Expected::Absent),
            Some((index, false)) => Condition::Left(*index),
            None => {
                let found = self.mirror.modified(&key);
                if let Some(seen) = self.seen
                    && found.is_some_and(|found| found > seen)
                    && !matches!(stored::name(&key), Name::Task(_))
                {
                    let expected = Expected::At(seen);
                    return Err(StoreError::Conflict { key, expected, found }.into());
                }
                Condition::Is(self.mirror.expected(&key))
            }
        };
        self.batch.conditions.insert(key, condition);
        Ok(())
    }

    fn write(&mut self, key: Key, write: Write) {
        let removed = matches!(write, Write::Delete);
        let size = match &write {
            Write::Put(value) => value.len(),
            Write::Delete => 0,
        };
        // The key counts twice: as a condition and as a write.
        self.batch.bytes += size + 2 * key.as_str().len();
        self.written.insert(key.clone(), (self.batches.len(), removed));
        self.batch.writes.insert(key, write);
    }

    /// Starts a new batch if this many more bytes do not fit into the current one.
    fn reserve(&mut self, bytes: usize) {
        let keys = self.batch.writes.len().max(self.batch.conditions.len());
        if keys >= MAX_KEYS || self.batch.bytes + bytes + 1024 > MAX_BYTES {
            self.flush();
        }
    }

    fn flush(&mut self) {
        // A key created and removed within one batch is not written: a store makes no revision for it.
        let absent = |condition: &Condition| *condition == Condition::Is(Expected::Absent);
        let Batch {
            conditions, writes, ..
        } = &mut self.batch;
        writes.retain(|key, write| {
            let is_nothing = *write == Write::Delete && conditions.get(key).is_some_and(absent);
            if is_nothing {
                conditions.remove(key);
                self.written.remove(key);
            }
            !is_nothing
        });
        if !self.batch.is_empty() {
            self.batches.push(std::mem::take(&mut self.batch));
        }
        self.revised.clear();
    }
}

/// Checks that an object fits into a transaction.
fn fits(key: &Key, bytes: usize, reserve: usize) -> Result<(), ChangeError> {
    // Batches leave as much for the keys.
    let limit = MAX_BYTES - 1024 - reserve;
    if bytes + 2 * key.as_str().len() <= limit {
        return Ok(());
    }
    let key = key.clone();
    Err(ChangeError::TooLarge { key, bytes, limit })
}
