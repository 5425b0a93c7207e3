//! What one worker may read of the cluster, whole and then change by change. Imports `read`.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use tokio::sync::broadcast::{
    self,
    error::{RecvError, TryRecvError},
};

use super::{
    super::{
        Cluster,
        mirror::{Mirror, Update},
        stored::{self, Name},
    },
    WorkerError, admitted, read,
};
use crate::{
    objects::{NodeId, ServiceId, TaskId},
    store::{Entry, Event, Key, Revision, WatchBatch},
};

/// A worker's view of the objects. The first batch is all that there is.
///
/// It is worked out from the mirror, so that a worker costs the store nothing.
#[derive(Debug)]
pub struct WorkerFeed {
    cluster: Cluster,
    worker: NodeId,
    updates: broadcast::Receiver<Arc<Update>>,
    /// What was sent, by a hash of its value.
    sent: BTreeMap<Key, u64>,
    /// Service and task version of the worker's tasks: of those it gets more.
    own: BTreeMap<TaskId, (ServiceId, u64)>,
    /// The services whose tasks on other nodes it gets.
    routed: BTreeSet<ServiceId>,
    is_complete: bool,
}

impl WorkerFeed {
    pub(super) fn new(cluster: &Cluster, worker: &NodeId) -> Self {
        Self {
            updates: cluster.inner.updates.subscribe(),
            cluster: cluster.clone(),
            worker: worker.clone(),
            sent: BTreeMap::new(),
            own: BTreeMap::new(),
            routed: BTreeSet::new(),
            is_complete: false,
        }
    }

    /// Goes on where another feed ended, for a worker that has everything up to `seen` but for `touched`,
    /// what the store has changed since. It gets what it sees of that, and of everything that it may see
    /// differently because of it. `None` if the mirror is ahead of `seen`.
    pub(super) fn resume(
        &mut self,
        seen: Revision,
        touched: &BTreeSet<Name>,
    ) -> Result<Option<WatchBatch>, WorkerError> {
        let cluster = self.cluster.clone();
        let mirror = cluster.mirror();
        if mirror.revision() > seen {
            return Ok(None);
        }
        let mut affected = touched.clone();
        for name in touched {
            let state = mirror.state();
            match name {
                // How much it sees of a service, and of what its tasks run, depends on where its tasks are.
                Name::Task(id) => match state.tasks().get(id) {
                    Some(task) => {
                        affected.insert(Name::Service(task.service.clone()));
                        affected.insert(Name::Spec(task.service.clone(), task.spec_version));
                    }
                    None => affected.extend(
                        read::names(&mirror).filter(|name| matches!(name, Name::Service(_) | Name::Spec(..))),
                    ),
                },
                // Of a service with a routed port it sees the tasks on other nodes.
                Name::Service(id) => affected.extend(tasks_of(&mirror, id)),
                Name::Node(_)
                | Name::Spec(..)
                | Name::Ports
                | Name::Guard
                | Name::Registration(_)
                | Name::Leader
                | Name::Restore
                | Name::Other => {}
            }
        }
        let mut batch = self.look(&mirror, None)?;
        batch
            .events
            .retain(|event| affected.contains(&stored::name(event.key())));
        let gone = affected.iter().filter_map(Name::key);
        let gone = gone.filter(|key| !self.sent.contains_key(key));
        batch.events.extend(gone.map(Event::Delete));
        self.is_complete = true;
        Ok(Some(batch))
    }

    /// The next changes; waits for some. Cancel-safe.
    ///
    /// # Errors
    /// [`WorkerError::Refused`] when the worker was removed.
    pub async fn next(&mut self) -> Result<WatchBatch, WorkerError> {
        loop {
            let is_first = !self.is_complete;
            let touched = match is_first {
                true => None,
                false => match self.updates.recv().await {
                    Ok(update) => touched(&update),
                    Err(RecvError::Lagged(_)) => None,
                    // The cluster is in use here, so the channel is open.
                    Err(RecvError::Closed) => return Err(WorkerError::Ended),
                },
            };
            let batch = self.advance(touched)?;
            self.is_complete = true;
            if is_first || !batch.events.is_empty() {
                return Ok(batch);
            }
        }
    }

    /// Sends what was changed, here and by the updates that follow, or all that differs.
    ///
    /// The batch has the mirror's revision, after which the worker may resume: no update up to it may be left
    /// for the next batch. Updates are published under the mirror's lock, so that the channel has all of them
    /// while it is held here.
    fn advance(&mut self, mut changed: Option<BTreeSet<Name>>) -> Result<WatchBatch, WorkerError> {
        let cluster = self.cluster.clone();
        let mirror = cluster.mirror();
        loop {
            let next = match self.updates.try_recv() {
                Ok(update) => touched(&update),
                Err(TryRecvError::Lagged(_)) => None,
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            };
            changed = changed.zip(next).map(|(mut names, next)| {
                names.extend(next);
                names
            });
        }
        self.look(&mirror, changed)
    }

    fn look(&mut self, mirror: &Mirror, touched: Option<BTreeSet<Name>>) -> Result<WatchBatch, WorkerError> {
        admitted(mirror.state(), &self.worker)?;
        let mut events = Vec::new();
        match touched {
            Some(touched) => {
                for name in self.affected(mirror, touched) {
                    self.compare(mirror, &name, &mut events)?;
                }
            }
            None => {
                let mut gone: BTreeSet<Key> = self.sent.keys().cloned().collect();
                self.own.clear();
                self.routed.clear();
                let names: Vec<Name> = read::names(mirror).collect();
                for name in names {
                    self.note(mirror, &name);
                    if let Some(entry) = read::view(mirror, &self.worker, &name)? {
                        gone.remove(&entry.key);
                        self.put(entry, &mut events);
                    }
                }
                for key in gone {
                    self.sent.remove(&key);
                    events.push(Event::Delete(key));
                }
            }
        }
        Ok(WatchBatch {
            revision: mirror.revision(),
            events,
        })
    }

    /// What was changed, and what the worker sees differently because of it.
    fn affected(&mut self, mirror: &Mirror, touched: BTreeSet<Name>) -> BTreeSet<Name> {
        let mut affected = touched.clone();
        for name in &touched {
            match name {
                Name::Task(id) => {
                    let before = self.own.get(id).cloned();
                    self.note(mirror, name);
                    for (service, version) in before.into_iter().chain(self.own.get(id).cloned()) {
                        affected.insert(Name::Spec(service.clone(), version));
                        affected.insert(Name::Service(service));
                    }
                }
                Name::Service(id) => {
                    let before = self.routed.contains(id);
                    self.note(mirror, name);
                    if before != self.routed.contains(id) {
                        affected.extend(tasks_of(mirror, id));
                    }
                }
                Name::Node(_)
                | Name::Spec(..)
                | Name::Ports
                | Name::Guard
                | Name::Registration(_)
                | Name::Leader
                | Name::Restore
                | Name::Other => {}
            }
        }
        affected
    }

    /// Remembers what decides how much the worker sees of other objects.
    fn note(&mut self, mirror: &Mirror, name: &Name) {
        match name {
            Name::Task(id) => {
                let task = mirror.state().tasks().get(id);
                match task.filter(|task| task.node.as_ref() == Some(&self.worker)) {
                    Some(task) => {
                        let version = (task.service.clone(), task.spec_version);
                        self.own.insert(id.clone(), version);
                    }
                    None => drop(self.own.remove(id)),
                }
            }
            Name::Service(id) => match read::is_routed(mirror.state(), id) {
                true => drop(self.routed.insert(id.clone())),
                false => drop(self.routed.remove(id)),
            },
            _ => {}
        }
    }

    fn compare(&mut self, mirror: &Mirror, name: &Name, events: &mut Vec<Event>) -> Result<(), WorkerError> {
        match read::view(mirror, &self.worker, name)? {
            Some(entry) => self.put(entry, events),
            None => {
                if let Some(key) = name.key()
                    && self.sent.remove(&key).is_some()
                {
                    events.push(Event::Delete(key));
                }
            }
        }
        Ok(())
    }

    /// A changed object is sent even if the worker's part of it is the same, when it may write it: the next
    /// write expects the new revision.
    fn put(&mut self, entry: Entry, events: &mut Vec<Event>) {
        let mut hasher = DefaultHasher::new();
        entry.value.hash(&mut hasher);
        if self.is_written(&entry.key) {
            entry.modified.0.hash(&mut hasher);
        }
        let hash = hasher.finish();
        if self.sent.insert(entry.key.clone(), hash) != Some(hash) {
            events.push(Event::Put(entry));
        }
    }

    fn is_written(&self, key: &Key) -> bool {
        match stored::name(key) {
            Name::Task(id) => self.own.contains_key(&id),
            Name::Node(id) => id == self.worker,
            _ => false,
        }
    }

    /// The revision of the objects now.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.cluster.revision()
    }
}

/// What an update has changed; `None` if everything was read again.
fn touched(update: &Update) -> Option<BTreeSet<Name>> {
    (!update.is_complete).then(|| update.touched.clone())
}

/// The tasks of a service.
fn tasks_of(mirror: &Mirror, service: &ServiceId) -> impl Iterator<Item = Name> {
    let index = mirror.state().tasks_of(service);
    let slots = index.into_iter().flat_map(|index| index.slots.values());
    slots.flatten().map(|(_, task)| Name::Task(task.clone()))
}
