//! Drafts, commits and the mirror together, on a store that is a map: the loops' decisions are stored,
//! whatever else is written meanwhile.

mod specs;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use proptest::prelude::*;

use super::{
    ChangeError,
    draft::{self, Drafted},
    mirror::Mirror,
};
use crate::{
    commands,
    loops::{
        Controller,
        testing::{node, spec},
    },
    objects::{ObjectChange, State, TaskState, TaskStatus, Timestamp},
    store::{
        Entry, Event, Expected, Key, MAX_OPERATIONS, Revision, StoreError, Transaction, WatchBatch, Write,
        revisions::Author,
    },
};

/// A store in memory, and its mirror.
#[derive(Default)]
struct Model {
    entries: BTreeMap<Key, Entry>,
    revision: u64,
    mirror: Mirror,
}

fn author(action: &str) -> Author {
    Author {
        by: "test".to_owned(),
        at: Timestamp(1),
        action: action.to_owned(),
    }
}

impl Model {
    fn commit(&mut self, transaction: &Transaction) -> Result<Revision, StoreError> {
        transaction.check()?;
        for (key, expected) in transaction.conditions() {
            let found = self.entries.get(key).map(|entry| entry.modified);
            if !expected.holds(found) {
                return Err(StoreError::Conflict {
                    key: key.clone(),
                    expected,
                    found,
                });
            }
        }
        self.revision += 1;
        let revision = Revision(self.revision);
        let mut events = Vec::new();
        for (key, write) in transaction.writes() {
            match write {
                Write::Put(value) => {
                    let entry = Entry {
                        key: key.clone(),
                        value: value.clone(),
                        created: revision,
                        modified: revision,
                        version: 1,
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
        let batch = WatchBatch { revision, events };
        self.mirror.fold(&batch, Timestamp(1)).unwrap();
        Ok(revision)
    }

    /// Drafts and commits, with room for a fence and the restore marker.
    fn change(&mut self, changes: &[ObjectChange]) -> Result<usize, ChangeError> {
        self.commit_all(draft::draft(&self.mirror, &author("change"), changes, 0)?)
    }

    /// The same of the loops' changes.
    fn decide(&mut self, changes: &[ObjectChange]) -> Result<usize, ChangeError> {
        let seen = self.mirror.revision();
        self.commit_all(draft::draft_since(
            &self.mirror,
            &author("loop"),
            changes,
            seen,
            0,
        )?)
    }

    fn commit_all(&mut self, drafted: Drafted) -> Result<usize, ChangeError> {
        let mut made = Vec::new();
        for batch in &drafted.batches {
            let transaction = batch.transaction(&made);
            assert!(transaction.conditions().len() + 2 <= MAX_OPERATIONS);
            made.push(self.commit(&transaction)?);
        }
        Ok(made.len())
    }

    /// A new list gives the same mirror as the batches.
    fn check(&self, state: &State) {
        let entries: Vec<Entry> = self.entries.values().cloned().collect();
        let listed = Mirror::new(Revision(self.revision), &entries, Timestamp(1)).unwrap();
        for mirror in [&self.mirror, &listed] {
            assert_eq!(mirror.state().tasks(), state.tasks());
            assert_eq!(mirror.state().services(), state.services());
            assert_eq!(mirror.state().nodes(), state.nodes());
            assert_eq!(mirror.state().port_ledger(), state.port_ledger());
            assert!(mirror.state().indexes_are_sound());
            for (id, service) in state.services() {
                let head = mirror.head(id).unwrap();
                assert_eq!(head.revision.number, service.version);
            }
        }
        assert_eq!(listed.since(&self.mirror, Timestamp(1)), []);
    }
}

/// A controller and a model with the same history.
struct Cluster {
    model: Model,
    controller: Controller,
    now: Timestamp,
    seed: u128,
}

impl Cluster {
    fn new(nodes: u32) -> Self {
        let mut cluster = Self {
            model: Model::default(),
            controller: Controller::default(),
            now: Timestamp(1_000_000),
            seed: 0,
        };
        for number in 1..=nodes {
            cluster.make(commands::put_node(
                cluster.controller.state(),
                node(number),
                cluster.now,
            ));
        }
        cluster
    }

    fn make(&mut self, changes: Vec<ObjectChange>) -> usize {
        for change in &changes {
            self.controller.apply(change).unwrap();
        }
        self.model.change(&changes).unwrap()
    }

    fn step(&mut self) -> usize {
        self.seed += 1;
        self.now = self.now + Duration::from_secs(1);
        let made = self.controller.step(self.now, self.seed).unwrap();
        self.model.decide(&made).unwrap()
    }

    fn run_all(&mut self) {
        let reports: Vec<ObjectChange> = self
            .controller
            .state()
            .tasks()
            .values()
            .filter(|task| task.status.state == TaskState::Assigned)
            .map(|task| ObjectChange::Observe {
                task: task.id.clone(),
                status: TaskStatus::new(TaskState::Running, self.now, "runs"),
            })
            .collect();
        self.make(reports);
    }
}

fn web(replicas: u32) -> crate::spec::ServiceSpec {
    spec("web", |json| {
        json["mode"] = serde_json::json!({"replicated": {"replicas": replicas}});
        json["endpoint_spec"] = serde_json::json!({"ports": [{"target_port": 80}]});
    })
}

#[test]
fn a_large_change_is_committed_in_several_transactions() {
    let mut cluster = Cluster::new(3);
    let created = commands::create_service(cluster.controller.state(), "s1".into(), web(1000), cluster.now);
    assert_eq!(cluster.make(created.unwrap()), 1);
    // Each task is created and assigned, in one write or in two transactions.
    assert!(cluster.step() >= 9);
    cluster.model.check(cluster.controller.state());
    let removed = commands::remove_service(cluster.controller.state(), &"s1".into());
    cluster.make(removed.unwrap());
    cluster.step();
    cluster.model.check(cluster.controller.state());
}

#[test]
fn a_task_created_and_removed_at_once_is_not_written() {
    let mut cluster = Cluster::new(1);
    let created = commands::create_service(cluster.controller.state(), "s1".into(), web(1), cluster.now);
    cluster.make(created.unwrap());
    cluster.step();
    let mut task = cluster
        .controller
        .state()
        .tasks()
        .values()
        .next()
        .unwrap()
        .clone();
    task.id = "another".into();
    let changes = [
        ObjectChange::CreateTask(Box::new(task.clone())),
        ObjectChange::RemoveTask(task.id),
    ];
    assert_eq!(cluster.model.change(&changes).unwrap(), 0);
    cluster.model.check(cluster.controller.state());
}

#[test]
fn changes_planned_from_older_objects_are_refused_except_for_tasks() {
    let mut cluster = Cluster::new(1);
    let created = commands::create_service(cluster.controller.state(), "s1".into(), web(1), cluster.now);
    cluster.make(created.unwrap());
    cluster.step();
    let seen = cluster.model.mirror.revision();
    let service = cluster.controller.state().service(&"s1".into()).unwrap().clone();
    let task = cluster.controller.state().tasks().keys().next().unwrap().clone();
    // Meanwhile a user scales the service and an agent reports.
    let scaled = commands::scale_service(cluster.controller.state(), &"s1".into(), 2, cluster.now);
    cluster.make(scaled.unwrap());
    cluster.run_all();
    let mirror = &cluster.model.mirror;
    let stale = draft::draft_since(
        mirror,
        &author("loop"),
        &[ObjectChange::PutService(service)],
        seen,
        0,
    );
    match stale {
        Err(ChangeError::Store(StoreError::Conflict { expected, .. })) => {
            assert_eq!(expected, Expected::At(seen));
        }
        other => panic!("{other:?}"),
    }
    let desired = TaskState::Shutdown;
    let stop = ObjectChange::SetDesired {
        task: task.clone(),
        desired,
    };
    let drafted = draft::draft_since(mirror, &author("loop"), &[stop], seen, 0).unwrap();
    let transaction = drafted.batches[0].transaction(&[]);
    cluster.model.commit(&transaction).unwrap();
    let both = &cluster.model.mirror.state().tasks()[&task];
    assert_eq!((both.desired, both.status.state), (desired, TaskState::Running));
}

#[test]
fn a_loop_never_restores_a_removed_service() {
    let mut cluster = Cluster::new(1);
    let created = commands::create_service(cluster.controller.state(), "s1".into(), web(1), cluster.now);
    cluster.make(created.unwrap());
    let seen = cluster.model.mirror.revision();
    let service = cluster.controller.state().service(&"s1".into()).unwrap().clone();
    let removed = commands::remove_service(cluster.controller.state(), &"s1".into());
    cluster.make(removed.unwrap());
    let changes = [ObjectChange::PutService(service)];
    let stale = draft::draft_since(&cluster.model.mirror, &author("loop"), &changes, seen, 0);
    assert!(matches!(stale, Err(ChangeError::Refused(_))), "{stale:?}");
}

#[test]
fn an_unreadable_object_keeps_its_last_version_and_is_reported() {
    let mut cluster = Cluster::new(1);
    let created = commands::create_service(cluster.controller.state(), "s1".into(), web(1), cluster.now);
    cluster.make(created.unwrap());
    let key: Key = "/services/s1".parse().unwrap();
    let broken = Transaction::new().put(key.clone(), "{\"of\": \"a newer release\"}");
    cluster.model.commit(&broken).unwrap();
    let mirror = &cluster.model.mirror;
    assert_eq!(mirror.unreadable().iter().collect::<Vec<_>>(), [&key]);
    assert!(mirror.state().service(&"s1".into()).is_some());
    let entries: Vec<Entry> = cluster.model.entries.values().cloned().collect();
    let error = Mirror::new(Revision(9), &entries, Timestamp(1)).unwrap_err();
    assert!(Arc::new(error).to_string().contains("could not read"));
}

#[test]
fn what_a_later_release_has_added_survives_every_change() {
    let mut cluster = Cluster::new(1);
    let created = commands::create_service(cluster.controller.state(), "s1".into(), web(1), cluster.now);
    cluster.make(created.unwrap());
    cluster.step();
    let mut upgrade = Transaction::new();
    for (key, entry) in &cluster.model.entries {
        if let Ok(mut object) = serde_json::from_slice::<serde_json::Value>(&entry.value)
            && object.is_object()
        {
            object["later"] = 1.into();
            for part in ["value", "spec", "status"] {
                if object[part].is_object() {
                    object[part]["later"] = 2.into();
                }
            }
            upgrade = upgrade.put(key.clone(), object.to_string());
        }
    }
    let keys: Vec<Key> = upgrade.writes().map(|(key, _)| key.clone()).collect();
    for prefix in ["/services/", "/specs/", "/tasks/", "/nodes/", "/ports/"] {
        assert!(
            keys.iter().any(|key| key.as_str().starts_with(prefix)),
            "{keys:?}"
        );
    }
    cluster.model.commit(&upgrade).unwrap();
    let before = cluster.model.mirror.revision();
    assert!(cluster.model.mirror.unreadable().is_empty());
    cluster.model.check(cluster.controller.state());

    // The objects of the cluster are written anew, the service both with and without a new revision.
    let state = cluster.controller.state();
    let mut other = state.nodes().values().next().unwrap().clone();
    other.labels.insert("zone".into(), "a".into());
    let mut spec = web(1);
    spec.labels.insert("zone".into(), "a".into());
    let version = state.service(&"s1".into()).unwrap().version;
    let updated = commands::update_service(state, &"s1".into(), version, spec, cluster.now).unwrap();
    let relabelled = commands::put_node(state, other, cluster.now);
    cluster.make(updated);
    cluster.make(relabelled);
    cluster.run_all();
    let service = cluster.controller.state().service(&"s1".into()).unwrap().clone();
    let mut service = (*service).clone();
    service.released = !service.released;
    let ledger = cluster.controller.state().port_ledger().clone();
    cluster.make(vec![
        ObjectChange::PutService(Arc::new(service)),
        ObjectChange::PutPorts(ledger),
    ]);
    for key in &keys {
        let entry = &cluster.model.entries[key];
        let text = String::from_utf8_lossy(&entry.value);
        let kept = text.matches("\"later\":").count();
        let (is_written, expected) = match key.segments().next() {
            Some("specs") => (false, 1),
            Some("tasks" | "services") => (true, 2),
            _ => (true, 1),
        };
        assert_eq!(entry.modified > before, is_written, "{key}");
        assert_eq!(kept, expected, "{text}");
    }
    cluster.model.check(cluster.controller.state());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Users, agents and loops in any order.
    #[test]
    fn the_store_has_all_decisions(acts in prop::collection::vec(0..6_u32, 1..25)) {
        let mut cluster = Cluster::new(3);
        let created = commands::create_service(cluster.controller.state(), "s1".into(), web(5), cluster.now);
        cluster.make(created.unwrap());
        let id = "s1".into();
        for (number, act) in acts.into_iter().enumerate() {
            let state = cluster.controller.state();
            let version = state.service(&id).unwrap().version;
            match act {
                0 => {
                    let mut spec = web(5);
                    spec.labels.insert("number".into(), number.to_string());
                    let changes = commands::update_service(state, &id, version, spec, cluster.now).unwrap();
                    cluster.make(changes);
                }
                1 => {
                    let changes = commands::scale_service(state, &id, number as u32 % 6 * 50, cluster.now).unwrap();
                    cluster.make(changes);
                }
                2 => {
                    if let Ok(changes) = commands::rollback_service(state, &id, cluster.now) {
                        cluster.make(changes);
                    }
                }
                3 => cluster.run_all(),
                _ => drop(cluster.step()),
            }
        }
        cluster.model.check(cluster.controller.state());
    }
}
