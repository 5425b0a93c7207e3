//! The mirror's changes as events. Imports `objects`.

use std::collections::BTreeSet;

use super::{Mirror, Update};
use crate::{
    cluster::{
        Event, EventAction, EventKind,
        stored::{self, Name},
    },
    objects::{NodeId, Task, Timestamp},
    store::Key,
};

impl Mirror {
    pub(super) fn hostname(&self, node: &NodeId) -> String {
        self.state
            .nodes()
            .get(node)
            .map_or_else(String::new, |node| node.hostname.clone())
    }

    pub(super) fn add_event(
        &self,
        update: &mut Update,
        kind: EventKind,
        id: &str,
        name: String,
        action: EventAction,
        time: Timestamp,
    ) {
        update.events.push(Event {
            kind,
            id: id.to_owned(),
            name,
            action,
            revision: update.revision,
            time,
        });
    }

    /// The events since an older mirror, as one batch.
    pub(in crate::cluster) fn since(&self, older: &Self, now: Timestamp) -> Vec<Event> {
        let mut update = Update {
            revision: self.revision,
            ..Update::default()
        };
        let keys: BTreeSet<&Key> = older.modified.keys().chain(self.modified.keys()).collect();
        for key in keys {
            let Some(action) = difference(older.modified.get(key), self.modified.get(key)) else {
                continue;
            };
            let state = if action == EventAction::Remove {
                &older.state
            } else {
                &self.state
            };
            let (kind, name) = match stored::name(key) {
                Name::Service(id) => (
                    EventKind::Service,
                    state.service(&id).map(|service| service.spec.name.clone()),
                ),
                Name::Task(id) => (EventKind::Task, state.tasks().get(&id).map(Task::name)),
                Name::Node(id) => (
                    EventKind::Node,
                    state.nodes().get(&id).map(|node| node.hostname.clone()),
                ),
                Name::Ports
                | Name::Spec(..)
                | Name::Guard
                | Name::Registration(_)
                | Name::Leader
                | Name::Restore
                | Name::Other => continue,
            };
            self.add_event(
                &mut update,
                kind,
                key.name(),
                name.unwrap_or_default(),
                action,
                now,
            );
        }
        let nodes: BTreeSet<&NodeId> = older
            .registrations
            .keys()
            .chain(self.registrations.keys())
            .collect();
        for node in nodes {
            let Some(action) = difference(older.registrations.get(node), self.registrations.get(node)) else {
                continue;
            };
            self.add_event(
                &mut update,
                EventKind::Registration,
                node.as_str(),
                self.hostname(node),
                action,
                now,
            );
        }
        update.events
    }
}

/// What happened to one object, if anything.
fn difference<T: PartialEq>(before: Option<T>, after: Option<T>) -> Option<EventAction> {
    match (&before, &after) {
        _ if before == after => None,
        (_, None) => Some(EventAction::Remove),
        (before, Some(_)) => Some(action(before.is_some())),
    }
}

pub(super) fn action(known: bool) -> EventAction {
    if known {
        EventAction::Update
    } else {
        EventAction::Create
    }
}
