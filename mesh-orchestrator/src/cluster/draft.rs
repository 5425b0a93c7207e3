//! From changes to transactions: what has to be written for each change, what must be true of the store so
//! that it may be, and how all of it is divided. Pure. Imports `mirror` and the store's plain data.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;

use super::{
    ChangeError,
    mirror::Mirror,
    stored::{self, Name, SERVICES},
};
use crate::{
    objects::{ObjectChange, Refused, Service, ServiceId, Task, TaskId},
    store::{
        Expected, Key, MAX_OPERATIONS, MAX_TRANSACTION_BYTES, Revision, StoreError, Transaction, Write,
        revisions::{self, Author, Current, KEPT, Revised, RevisionId},
    },
};

/// Keys of one transaction: some are left for the leader's fence, a restore's marker, and what a last change
/// needs (a service that goes takes its old revisions and the guard along).
const MAX_KEYS: usize = MAX_OPERATIONS - 16;

/// Bytes of one transaction, with some left for the same.
const MAX_BYTES: usize = MAX_TRANSACTION_BYTES - 4096;

/// What a key must be like for a batch to be committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    /// As it was in the mirror.
    Is(Expected),
    /// As this earlier batch, by its place, has left it.
    Left(usize),
}

/// One transaction to be.
#[derive(Clone, Debug, Default)]
pub(super) struct Batch {
    conditions: BTreeMap<Key, Condition>,
    writes: BTreeMap<Key, Write>,
    bytes: usize,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// The transaction, given which revisions the batches before it have made.
    pub(super) fn transaction(&self, before: &[Revision]) -> Transaction {
        let mut transaction = Transaction::new();
        for (key, condition) in &self.conditions {
            let expected = match condition {
                Condition::Is(expected) => *expected,
                Condition::Left(place) => before
                    .get(*place)
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

    /// A key that tells whether the batch was committed, and what it holds then.
    pub(super) fn witness(&self) -> Option<(&Key, Option<&[u8]>)> {
        self.conditions.keys().find_map(|key| {
            self.writes.get(key).map(|write| match write {
                Write::Put(value) => (key, Some(value.as_slice())),
                Write::Delete => (key, None),
            })
        })
    }
}

/// Changes on their way to the store.
#[derive(Debug)]
pub(super) struct Draft<'a> {
    mirror: &'a Mirror,
    author: &'a Author,
    /// The changes were worked out from the state at this revision, not from the mirror.
    seen: Option<Revision>,
    /// What earlier changes of the draft have made; `None` is gone.
    tasks: BTreeMap<TaskId, Option<Task>>,
    services: BTreeMap<ServiceId, Option<Revised<Arc<Service>>>>,
    /// In which batch a key was last written, and whether it was removed there.
    written: BTreeMap<Key, (usize, bool)>,
    /// Services that have a new revision in the batch under way: one each.
    revised: BTreeSet<ServiceId>,
    made: BTreeMap<ServiceId, RevisionId>,
    batches: Vec<Batch>,
    batch: Batch,
}

/// What a draft has become.
#[derive(Clone, Debug, Default)]
pub(super) struct Drafted {
    /// To be committed in this order.
    pub(super) batches: Vec<Batch>,
    /// The revisions that services get by it.
    pub(super) services: BTreeMap<ServiceId, RevisionId>,
}

/// Works out what has to be committed for some changes that were planned from this very mirror.
///
/// # Errors
/// If a change does not apply to what the mirror has.
pub(super) fn draft(
    mirror: &Mirror,
    author: &Author,
    changes: &[ObjectChange],
) -> Result<Drafted, ChangeError> {
    work_out(mirror, author, changes, None)
}

/// The same for changes that were planned from the state at an earlier revision. Tasks may have changed
/// since: what agents report and what is meant to become of a task do not touch each other.
///
/// # Errors
/// As [`draft`]; a conflict if something else than a task has changed since.
pub(super) fn draft_since(
    mirror: &Mirror,
    author: &Author,
    changes: &[ObjectChange],
    seen: Revision,
) -> Result<Drafted, ChangeError> {
    work_out(mirror, author, changes, Some(seen))
}

fn work_out(
    mirror: &Mirror,
    author: &Author,
    changes: &[ObjectChange],
    seen: Option<Revision>,
) -> Result<Drafted, ChangeError> {
    let mut draft = Draft {
        mirror,
        author,
        seen,
        tasks: BTreeMap::new(),
        services: BTreeMap::new(),
        written: BTreeMap::new(),
        revised: BTreeSet::new(),
        made: BTreeMap::new(),
        batches: Vec::new(),
        batch: Batch::default(),
    };
    for change in changes {
        draft.add(change)?;
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
                self.put_task((**task).clone())?;
            }
            ObjectChange::PutTask(task) => self.put_task((**task).clone())?,
            ObjectChange::Assign { task, node, at } => {
                self.change_task(task, |task| task.assign(node, *at))?;
            }
            ObjectChange::SetDesired { task, desired } => {
                self.change_task(task, |task| task.set_desired(*desired))?;
            }
            ObjectChange::GiveUp(task) => self.change_task(task, Task::give_up)?,
            ObjectChange::Observe { task, status } => self.change_task(task, |task| task.observe(status))?,
            ObjectChange::RemoveTask(id) => {
                if self.task(id).is_none() {
                    return Err(Refused::UnknownTask(id.clone()).into());
                }
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
        self.put_task(task)
    }

    fn put_task(&mut self, task: Task) -> Result<(), ChangeError> {
        self.put(stored::task(&task.id)?, &task)?;
        self.tasks.insert(task.id.clone(), Some(task));
        Ok(())
    }

    fn service(&self, id: &ServiceId) -> Option<Revised<Arc<Service>>> {
        match self.services.get(id) {
            Some(service) => service.clone(),
            None => self.mirror.revised(id),
        }
    }

    /// A new specification makes a new revision. What the loops note of a service (how its update stands)
    /// does not: users' revisions would soon be gone, and what they have read out of date all the time.
    fn put_service(&mut self, service: &Arc<Service>) -> Result<(), ChangeError> {
        let id = &service.id;
        let key = stored::service(id)?;
        let current = self.service(id);
        if current.is_none() && self.seen.is_some() {
            // The loops make no services: somebody has removed it.
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
                    stored: stored::encode(&key, revised)?,
                }),
                None => None,
            };
            revisions::stage(SERVICES, id.as_str(), current, service, self.author.clone())?
        };
        if let Some(before) = staged.before {
            self.flush();
            self.expect(key.clone())?;
            self.take(before);
            self.flush();
        }
        self.reserve(staged.transaction.bytes());
        self.expect(key)?;
        self.take(staged.transaction);
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
        let value = stored::encode(&key, object)?;
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

    /// Takes over what was worked out elsewhere, but for what it expects.
    fn take(&mut self, transaction: Transaction) {
        for (key, write) in transaction.writes() {
            self.write(key.clone(), write.clone());
        }
    }

    /// The batch holds only if nobody else has written the key.
    fn expect(&mut self, key: Key) -> Result<(), ChangeError> {
        let condition = match self.written.get(&key) {
            Some((place, _)) if *place == self.batches.len() => return Ok(()),
            Some((_, true)) => Condition::Is(Expected::Absent),
            Some((place, false)) => Condition::Left(*place),
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
        // The key counts twice: as condition and as write.
        self.batch.bytes += size + 2 * key.as_str().len();
        self.written.insert(key.clone(), (self.batches.len(), removed));
        self.batch.writes.insert(key, write);
    }

    /// Begins a new batch if so much more does not fit into this one.
    fn reserve(&mut self, bytes: usize) {
        if self.batch.writes.len() >= MAX_KEYS || self.batch.bytes + bytes + 1024 > MAX_BYTES {
            self.flush();
        }
    }

    fn flush(&mut self) {
        // What comes and goes within one batch was never there; a store makes no revision of nothing.
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
