//! What tasks run is stored once, and is there exactly as long as a task has it.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::*;
use crate::{
    cluster::stored::{self, Name},
    objects::{ServiceId, Task, TaskId},
};

/// A service with this many tasks, which run.
fn with_tasks(tasks: u32) -> Cluster {
    let mut cluster = Cluster::new(3);
    let created = commands::create_service(cluster.controller.state(), "s1".into(), web(tasks), cluster.now);
    cluster.make(created.unwrap());
    cluster.step();
    cluster.run_all();
    cluster
}

impl Cluster {
    fn tasks(&self) -> Vec<Task> {
        self.model.mirror.state().tasks().values().cloned().collect()
    }

    fn update(&mut self) {
        let state = self.controller.state();
        let service = state.service(&"s1".into()).unwrap();
        let mut spec = (*service.spec).clone();
        let mut task = (*spec.task_template).clone();
        task.force_update += 1;
        spec.task_template = Arc::new(task);
        let changes = commands::update_service(state, &"s1".into(), service.version, spec, self.now);
        self.make(changes.unwrap());
    }

    /// Goes on until all wanted tasks have a version.
    fn roll_out(&mut self, version: u64) {
        let is_over = |state: &State| state.outdated(&"s1".into(), version) == 0;
        for _ in 0..500 {
            self.step();
            self.stop_all();
            self.run_all();
            if is_over(self.controller.state()) {
                return;
            }
        }
        panic!("the update does not end: {:#?}", self.tasks());
    }

    /// The tasks that should stop have stopped.
    fn stop_all(&mut self) {
        let stopped = |task: &Task| observed(&task.id, TaskState::Shutdown);
        let tasks = self.tasks();
        self.make(
            tasks
                .iter()
                .filter(|task| task.is_stopping())
                .map(stopped)
                .collect(),
        );
    }

    fn scale(&mut self, replicas: u32) {
        let changes =
            commands::scale_service(self.controller.state(), &"s1".into(), replicas, self.now).unwrap();
        self.make(changes);
    }
}

impl Model {
    /// The versions of the stored specifications.
    fn versions(&self) -> Vec<u64> {
        let names = self.entries.keys().map(stored::name);
        names
            .filter_map(|name| match name {
                Name::Spec(service, version) if service == ServiceId::from("s1") => Some(version),
                _ => None,
            })
            .collect()
    }

    fn without(&self, key: &Key) -> Vec<Entry> {
        let entries = self.entries.values().filter(|entry| entry.key != *key);
        entries.cloned().collect()
    }
}

fn observed(task: &TaskId, state: TaskState) -> ObjectChange {
    ObjectChange::Observe {
        task: task.clone(),
        status: TaskStatus::new(state, Timestamp(2_000_000), "ended"),
    }
}

fn spec_key(version: u64) -> Key {
    stored::spec(&"s1".into(), version).unwrap()
}

#[test]
fn a_change_of_a_tasks_status_does_not_write_what_it_runs() {
    let cluster = with_tasks(2);
    let task = cluster.tasks().remove(0);
    let spec = serde_json::to_vec(&*task.spec).unwrap();
    let changes = [observed(&task.id, TaskState::Complete)];
    let drafted = draft::draft(&cluster.model.mirror, &author("report"), &changes, 0).unwrap();
    let transaction = drafted.batches[0].transaction(&[]);
    let keys: Vec<&Key> = transaction.writes().map(|(key, _)| key).collect();
    assert_eq!(keys, [&stored::task(&task.id).unwrap()]);
    let Some((_, Write::Put(value))) = transaction.writes().next() else {
        panic!("{transaction:?}");
    };
    let text = String::from_utf8_lossy(value);
    assert!(!text.contains("container_spec"), "{text}");
    assert!(transaction.bytes() < spec.len(), "{text}");
}

#[test]
fn the_tasks_of_a_version_share_what_they_run() {
    let mut cluster = with_tasks(40);
    assert_eq!(cluster.model.versions(), [1]);
    cluster.update();
    cluster.roll_out(2);
    assert_eq!(cluster.model.versions(), [1, 2]);
    let entries: Vec<Entry> = cluster.model.entries.values().cloned().collect();
    let listed = Mirror::new(Revision(cluster.model.revision), &entries, Timestamp(1)).unwrap();
    for mirror in [&cluster.model.mirror, &listed] {
        let tasks = mirror.state().tasks().values();
        let specs: BTreeSet<_> = tasks.map(|task| Arc::as_ptr(&task.spec)).collect();
        assert_eq!(specs.len(), 2);
    }
    cluster.model.check(cluster.controller.state());
}

#[test]
fn what_tasks_run_is_removed_with_the_last_of_them() {
    let mut cluster = with_tasks(3);
    for version in 2..=8 {
        cluster.update();
        cluster.roll_out(version);
    }
    cluster.step();
    // The history has the last five tasks of a slot.
    assert_eq!(cluster.model.versions(), [3, 4, 5, 6, 7, 8]);
    let removed = commands::remove_service(cluster.controller.state(), &"s1".into());
    cluster.make(removed.unwrap());
    cluster.step();
    // Those that have not ended are still there.
    assert_eq!(cluster.model.versions(), [8]);
    cluster.stop_all();
    cluster.step();
    assert_eq!(cluster.tasks(), []);
    assert_eq!(cluster.model.versions(), [] as [u64; 0]);
}

#[test]
fn what_is_left_over_of_a_change_that_was_not_completed_is_removed() {
    let mut cluster = with_tasks(1);
    let spec = cluster.model.entries[&spec_key(1)].value.clone();
    cluster
        .model
        .commit(&Transaction::new().put(spec_key(7), spec))
        .unwrap();
    // Users do not know what the leader is about to do.
    cluster.scale(2);
    assert_eq!(cluster.model.versions(), [1, 7]);
    cluster.step();
    assert_eq!(cluster.model.versions(), [1]);
}

#[test]
fn a_task_is_created_only_while_what_it_runs_is_stored() {
    let mut cluster = with_tasks(1);
    cluster.scale(2);
    let seen = cluster.model.mirror.revision();
    let decided = cluster.controller.step(cluster.now, 99).unwrap();
    let drafted = draft::draft_since(&cluster.model.mirror, &author("loop"), &decided, seen, 0).unwrap();
    let remove = Transaction::new().delete(spec_key(1));
    cluster.model.commit(&remove).unwrap();
    let refused = cluster.model.commit(&drafted.batches[0].transaction(&[]));
    assert!(
        matches!(&refused, Err(StoreError::Conflict { key, .. }) if *key == spec_key(1)),
        "{refused:?}"
    );
    // What is lost is stored again with the next task.
    cluster.model.decide(&decided).unwrap();
    assert_eq!(cluster.model.versions(), [1]);
}

#[test]
fn a_specification_does_not_show_that_a_transaction_was_committed() {
    let mut cluster = Cluster::new(1);
    let created = commands::create_service(cluster.controller.state(), "s1".into(), web(1), cluster.now);
    cluster.make(created.unwrap());
    let seen = cluster.model.mirror.revision();
    let decided = cluster.controller.step(cluster.now, 99).unwrap();
    let drafted = draft::draft_since(&cluster.model.mirror, &author("loop"), &decided, seen, 0).unwrap();
    let transaction = drafted.batches[0].transaction(&[]);
    assert!(transaction.writes().any(|(key, _)| *key == spec_key(1)));
    match drafted.batches[0].witness() {
        Some(draft::Witness::Value(key, Some(_))) => assert!(matches!(stored::name(&key), Name::Task(_))),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_task_without_what_it_runs_is_reported_and_changes_nothing() {
    let cluster = with_tasks(1);
    let task = cluster.tasks().remove(0);
    let key = stored::task(&task.id).unwrap();
    let entries = cluster.model.without(&spec_key(1));
    let error = Mirror::new(Revision(9), &entries, Timestamp(1)).unwrap_err();
    let text = mesh_support::error_chain(&error);
    assert!(
        text.contains(key.as_str()) && text.contains("/specs/s1/1"),
        "{text}"
    );

    // A task that comes first waits for it.
    let mut mirror = Mirror::default();
    let put = |entries: Vec<Entry>| WatchBatch {
        revision: Revision(9),
        events: entries.into_iter().map(Event::Put).collect(),
    };
    mirror.fold(&put(entries), Timestamp(1)).unwrap();
    assert_eq!(mirror.unreadable().iter().collect::<Vec<_>>(), [&key]);
    assert!(mirror.state().tasks().is_empty());
    let spec = cluster.model.entries[&spec_key(1)].clone();
    let update = mirror.fold(&put(vec![spec]), Timestamp(1)).unwrap();
    assert!(update.touched.contains(&Name::Task(task.id.clone())));
    assert!(mirror.unreadable().is_empty());
    assert_eq!(mirror.state().tasks()[&task.id], task);
}

#[test]
fn another_specification_under_the_same_name_is_that_of_its_tasks() {
    let mut cluster = with_tasks(2);
    let mut spec: Value = serde_json::from_slice(&cluster.model.entries[&spec_key(1)].value).unwrap();
    spec["force_update"] = json!(7);
    let put = Transaction::new().put(spec_key(1), spec.to_string());
    cluster.model.commit(&put).unwrap();
    let entries: Vec<Entry> = cluster.model.entries.values().cloned().collect();
    let listed = Mirror::new(Revision(99), &entries, Timestamp(1)).unwrap();
    assert_eq!(cluster.model.mirror.state().tasks(), listed.state().tasks());
    assert!(cluster.tasks().iter().all(|task| task.spec.force_update == 7));
}

#[test]
fn a_task_that_was_stored_with_what_it_runs_is_read_and_stays_so() {
    let mut cluster = with_tasks(1);
    let task = cluster.tasks().remove(0);
    let key = stored::task(&task.id).unwrap();
    let earlier = Transaction::new()
        .put(key.clone(), json!(task).to_string())
        .delete(spec_key(1));
    cluster.model.commit(&earlier).unwrap();
    cluster.model.check(cluster.controller.state());
    cluster.make(vec![observed(&task.id, TaskState::Complete)]);
    let written: Value = serde_json::from_slice(&cluster.model.entries[&key].value).unwrap();
    assert_eq!(written["spec"], json!(task.spec));
    assert_eq!(cluster.model.versions(), [] as [u64; 0]);
    cluster.model.check(cluster.controller.state());
}

#[test]
fn what_a_later_release_has_added_to_a_template_is_stored_with_its_tasks() {
    let mut cluster = Cluster::new(1);
    let created = commands::create_service(cluster.controller.state(), "s1".into(), web(1), cluster.now);
    cluster.make(created.unwrap());
    let key = stored::service(&"s1".into()).unwrap();
    let mut service: Value = serde_json::from_slice(&cluster.model.entries[&key].value).unwrap();
    service["value"]["spec"]["task_template"]["container_spec"]["later"] = json!(5);
    service["value"]["later"] = json!(6);
    let upgrade = Transaction::new().put(key, service.to_string());
    cluster.model.commit(&upgrade).unwrap();
    cluster.step();
    let spec: Value = serde_json::from_slice(&cluster.model.entries[&spec_key(1)].value).unwrap();
    assert_eq!(
        (&spec["container_spec"]["later"], &spec["later"]),
        (&json!(5), &json!(null))
    );
    // Further tasks leave it as it is.
    cluster.scale(3);
    cluster.step();
    let after: Value = serde_json::from_slice(&cluster.model.entries[&spec_key(1)].value).unwrap();
    assert_eq!(after, spec);
}
