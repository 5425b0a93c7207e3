//! All objects of the store, in memory, with the revision at which each was last written. Pure: the store's
//! batches go in, updates come out. Imports `objects`.

mod events;
mod specs;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use self::{events::action, specs::Specs};
use super::{
    Event, EventAction, EventKind, OpenError, Registration,
    stored::{self, Name, Stored},
};
use crate::{
    objects::{NodeId, ObjectChange, Refused, Service, ServiceId, State, Timestamp},
    store::{
        self, Entry, Expected, Key, Revision, WatchBatch,
        later::LaterFields,
        membership::Leader,
        revisions::{Author, Revised, RevisionId},
    },
};

/// A service's current revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) revision: RevisionId,
    pub(super) author: Author,
}

/// The cluster as the store had it at one revision.
#[derive(Debug, Default)]
pub(super) struct Mirror {
    state: State,
    revision: Revision,
    modified: BTreeMap<Key, Revision>,
    heads: BTreeMap<ServiceId, Head>,
    specs: Specs,
    registrations: BTreeMap<NodeId, Registration>,
    leader: Option<Leader>,
    unreadable: BTreeSet<Key>,
    /// Those of them that are tasks whose specification is not stored.
    incomplete: BTreeMap<Key, Entry>,
    /// What a later release has added to objects.
    later: BTreeMap<Key, LaterFields>,
    restoring: bool,
}

/// What a batch, or a new list, changed.
#[derive(Clone, Debug, Default)]
pub(super) struct Update {
    /// The mirror's new revision.
    pub(super) revision: Revision,
    /// Everything was read again: objects outside of `touched` may have changed, too.
    pub(super) is_complete: bool,
    /// The changed objects.
    pub(super) touched: BTreeSet<Name>,
    /// The same as events.
    pub(super) events: Vec<Event>,
}

impl Mirror {
    /// From a list of everything.
    ///
    /// # Errors
    /// If an object cannot be read, or two contradict each other.
    pub(super) fn new(revision: Revision, entries: &[Entry], now: Timestamp) -> Result<Self, OpenError> {
        let mut mirror = Self::default();
        let batch = WatchBatch {
            revision,
            events: entries.iter().cloned().map(store::Event::Put).collect(),
        };
        mirror.fold(&batch, now)?;
        if let Some(key) = mirror.unreadable.first()
            && let Some(entry) = entries.iter().find(|entry| entry.key == *key)
            && let (Stored::Task(task), _) = stored::read(entry)?
        {
            return Err(task.missing(key).into());
        }
        Ok(mirror)
    }

    pub(super) fn state(&self) -> &State {
        &self.state
    }

    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    pub(super) fn registrations(&self) -> &BTreeMap<NodeId, Registration> {
        &self.registrations
    }

    /// The node that runs the control loops; `None` between two terms.
    pub(super) fn leader(&self) -> Option<&Leader> {
        self.leader.as_ref()
    }

    pub(super) fn head(&self, service: &ServiceId) -> Option<&Head> {
        self.heads.get(service)
    }

    /// A service with its revision, as it is stored.
    pub(super) fn revised(&self, id: &ServiceId) -> Option<Revised<Arc<Service>>> {
        let head = self.heads.get(id)?;
        Some(Revised {
            revision: head.revision,
            author: head.author.clone(),
            value: self.state.service(id)?.clone(),
        })
    }

    /// What a transaction planned from this mirror must expect of a key.
    pub(super) fn expected(&self, key: &Key) -> Expected {
        self.modified(key).map_or(Expected::Absent, Expected::At)
    }

    /// The revision at which a key was last written, if it exists.
    pub(super) fn modified(&self, key: &Key) -> Option<Revision> {
        self.modified.get(key).copied()
    }

    /// Whether a backup is being restored, so that the objects are incomplete.
    pub(super) fn is_restoring(&self) -> bool {
        self.restoring
    }

    /// Objects that cannot be read. The mirror has their previous versions, on which no decision may be
    /// based.
    pub(super) fn unreadable(&self) -> &BTreeSet<Key> {
        &self.unreadable
    }

    /// What a later release has added to an object: a write of the object keeps it.
    pub(super) fn later(&self, key: &Key) -> Option<&LaterFields> {
        self.later.get(key)
    }

    /// The stored specifications of tasks.
    pub(super) fn specs(&self) -> &Specs {
        &self.specs
    }

    /// Applies a transaction.
    ///
    /// # Errors
    /// If it does not fit the objects. The mirror must then be read again.
    pub(super) fn fold(&mut self, batch: &WatchBatch, now: Timestamp) -> Result<Update, Refused> {
        let mut update = Update {
            revision: batch.revision,
            ..Update::default()
        };
        // Removals first: they release names, for instance.
        let (gone, mut put): (Vec<_>, Vec<_>) = batch
            .events
            .iter()
            .partition(|event| matches!(event, store::Event::Delete(_)));
        put.sort_by_key(|event| !stored::is_spec(event.key()));
        for event in gone.into_iter().chain(put) {
            match stored::name(event.key()) {
                Name::Other => continue,
                name => drop(update.touched.insert(name)),
            }
            match event {
                store::Event::Put(entry) => self.put(entry, now, &mut update)?,
                store::Event::Delete(key) => self.delete(key, now, &mut update)?,
            }
        }
        self.revision = self.revision.max(batch.revision);
        Ok(update)
    }

    fn put(&mut self, entry: &Entry, now: Timestamp, update: &mut Update) -> Result<(), Refused> {
        let stored = match stored::read(entry) {
            Ok((stored, later)) => {
                self.note_later(&entry.key, later);
                stored
            }
            Err(error) => {
                self.set_aside(entry, &error);
                return Ok(());
            }
        };
        self.unreadable.remove(&entry.key);
        self.incomplete.remove(&entry.key);
        let change = match stored {
            Stored::Other => return Ok(()),
            Stored::Restore => {
                self.restoring = true;
                None
            }
            Stored::Guard => None,
            Stored::Leader(leader) => {
                self.leader = leader;
                return Ok(());
            }
            Stored::Registration(node, registration) => {
                let known = self.registrations.insert(node.clone(), *registration);
                let name = self.hostname(&node);
                self.add_event(
                    update,
                    EventKind::Registration,
                    node.as_str(),
                    name,
                    action(known.is_some()),
                    now,
                );
                return Ok(());
            }
            Stored::Service(revised) => {
                let (id, name) = (&revised.value.id, revised.value.spec.name.clone());
                let known = self.state.service(id).is_some();
                self.add_event(update, EventKind::Service, id.as_str(), name, action(known), now);
                let head = Head {
                    revision: revised.revision,
                    author: revised.author,
                };
                self.heads.insert(id.clone(), head);
                Some(ObjectChange::PutService(revised.value))
            }
            Stored::Node(node) => {
                let known = self.state.nodes().contains_key(&node.id);
                self.add_event(
                    update,
                    EventKind::Node,
                    node.id.as_str(),
                    node.hostname.clone(),
                    action(known),
                    now,
                );
                Some(ObjectChange::PutNode(node))
            }
            Stored::Spec(service, version, spec) => {
                self.modified.insert(entry.key.clone(), entry.modified);
                return self.put_spec(&service, version, spec, now, update);
            }
            Stored::Task(stored) => {
                let Some(task) = self.resolve(entry, *stored) else {
                    return Ok(());
                };
                let known = self.state.tasks().contains_key(&task.id);
                self.add_event(
                    update,
                    EventKind::Task,
                    task.id.as_str(),
                    task.name(),
                    action(known),
                    now,
                );
                Some(ObjectChange::PutTask(Box::new(task)))
            }
            Stored::Ports(ledger) => Some(ObjectChange::PutPorts(ledger)),
        };
        self.modified.insert(entry.key.clone(), entry.modified);
        self.apply(change)
    }

    fn set_aside(&mut self, entry: &Entry, error: &(dyn std::error::Error + 'static)) {
        tracing::error!(error, "an object in the store cannot be read");
        self.modified.insert(entry.key.clone(), entry.modified);
        self.unreadable.insert(entry.key.clone());
    }

    fn note_later(&mut self, key: &Key, later: Option<LaterFields>) {
        let Some(later) = later else {
            self.later.remove(key);
            return;
        };
        // Logged once, not for each object of a cluster that is being upgraded.
        if self.later.is_empty() {
            let fields = later.names();
            tracing::info!(%key, ?fields, "a later release stores fields that this one does not know: it keeps them as they are");
        }
        self.later.insert(key.clone(), later);
    }

    fn delete(&mut self, key: &Key, now: Timestamp, update: &mut Update) -> Result<(), Refused> {
        self.modified.remove(key);
        self.unreadable.remove(key);
        self.incomplete.remove(key);
        self.later.remove(key);
        let change = match stored::name(key) {
            Name::Other | Name::Guard => None,
            // Its tasks have gone with it, or keep it until they have.
            Name::Spec(service, version) => {
                self.specs.remove(&service, version);
                None
            }
            Name::Restore => {
                self.restoring = false;
                None
            }
            Name::Leader => {
                self.leader = None;
                None
            }
            Name::Registration(node) => {
                self.registrations.remove(&node);
                let name = self.hostname(&node);
                self.add_event(
                    update,
                    EventKind::Registration,
                    node.as_str(),
                    name,
                    EventAction::Remove,
                    now,
                );
                None
            }
            Name::Service(id) => {
                self.heads.remove(&id);
                self.state.service(&id).cloned().map(|service| {
                    let name = service.spec.name.clone();
                    self.add_event(
                        update,
                        EventKind::Service,
                        id.as_str(),
                        name,
                        EventAction::Remove,
                        now,
                    );
                    ObjectChange::RemoveService(id)
                })
            }
            Name::Node(id) => self.state.nodes().get(&id).map(|node| {
                let name = node.hostname.clone();
                self.add_event(
                    update,
                    EventKind::Node,
                    id.as_str(),
                    name,
                    EventAction::Remove,
                    now,
                );
                ObjectChange::RemoveNode(id)
            }),
            Name::Task(id) => self.state.tasks().get(&id).map(|task| {
                self.add_event(
                    update,
                    EventKind::Task,
                    id.as_str(),
                    task.name(),
                    EventAction::Remove,
                    now,
                );
                ObjectChange::RemoveTask(id)
            }),
            Name::Ports => Some(ObjectChange::PutPorts(crate::objects::PortLedger::default())),
        };
        self.apply(change)
    }

    fn apply(&mut self, change: Option<ObjectChange>) -> Result<(), Refused> {
        if let Some(change) = change {
            self.state.apply(&change)?;
        }
        Ok(())
    }
}
