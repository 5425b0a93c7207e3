//! The model of a store: the same transactions on a plain map.

use std::collections::BTreeMap;

use mesh_orchestrator::store::{Entry, Event, Expected, Key, Revision, Transaction, WatchBatch, Write};

/// A store's expected contents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Oracle {
    pub(crate) entries: BTreeMap<Key, Entry>,
}

impl Oracle {
    /// The first key that is not as expected, and when it was last changed.
    pub(crate) fn conflict(&self, transaction: &Transaction) -> Option<(Key, Expected, Option<Revision>)> {
        transaction.conditions().find_map(|(key, expected)| {
            let found = self.entries.get(key).map(|entry| entry.modified);
            (!expected.holds(found)).then(|| (key.clone(), expected, found))
        })
    }

    /// Whether the transaction would change anything.
    pub(crate) fn changes(&self, transaction: &Transaction) -> bool {
        transaction
            .writes()
            .any(|(key, write)| matches!(write, Write::Put(_)) || self.entries.contains_key(key))
    }

    /// Applies a transaction that was committed at a revision; returns what watches should deliver.
    pub(crate) fn apply(&mut self, transaction: &Transaction, revision: Revision) -> WatchBatch {
        let mut events = Vec::new();
        for (key, write) in transaction.writes() {
            match write {
                Write::Put(value) => {
                    let before = self.entries.get(key);
                    let entry = Entry {
                        key: key.clone(),
                        value: value.clone(),
                        created: before.map_or(revision, |entry| entry.created),
                        modified: revision,
                        version: before.map_or(1, |entry| entry.version + 1),
                    };
                    self.entries.insert(key.clone(), entry.clone());
                    events.push(Event::Put(entry));
                }
                Write::Delete => {
                    if self.entries.remove(key).is_some() {
                        events.push(Event::Delete(key.clone()));
                    }
                }
            }
        }
        WatchBatch { revision, events }
    }

    /// Applies what a watch delivered.
    pub(crate) fn fold(&mut self, batch: &WatchBatch) {
        for event in &batch.events {
            match event {
                Event::Put(entry) => drop(self.entries.insert(entry.key.clone(), entry.clone())),
                Event::Delete(key) => drop(self.entries.remove(key)),
            }
        }
    }

    /// From the entries of a list.
    pub(crate) fn of(entries: Vec<Entry>) -> Self {
        Self {
            entries: entries
                .into_iter()
                .map(|entry| (entry.key.clone(), entry))
                .collect(),
        }
    }
}
