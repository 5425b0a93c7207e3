//! What must hold after every commit, by any client and whatever it knew. It reads the entries itself, and so
//! knows the objects as they are in the store.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use mesh_orchestrator::{
    objects::{
        Node, NodeId, NodeStatus, ObjectChange, Service, ServiceId, Slot, State, Task, TaskId, TaskState,
    },
    spec::UpdateOrder,
    store::{Event, Key, WatchBatch, revisions::Revised},
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::Instant;

use crate::rules;

/// A leader may still carry out what it decided before a user changed the policy.
const OLD_POLICY: Duration = Duration::from_secs(60);

/// The cluster as it is stored, and what must be remembered of its past.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    state: State,
    /// What the tasks of each service and task version run.
    specs: BTreeMap<(ServiceId, u64), Value>,
    /// The number of each service's revision.
    revisions: BTreeMap<ServiceId, u64>,
    /// Services that were ever start-first: two tasks of a slot may run for a time.
    start_first: BTreeSet<ServiceId>,
    /// Tasks whose node was down while they were on it: they could not be stopped before they were replaced.
    cut_off: BTreeSet<TaskId>,
    /// How many slots an update could take out of service at a time, and until when.
    policies: BTreeMap<ServiceId, VecDeque<(Instant, u32)>>,
    /// Containers that run on the machines.
    running: BTreeMap<(ServiceId, Slot), BTreeSet<TaskId>>,
    /// Commits, by what they changed.
    pub(crate) seen: BTreeMap<&'static str, u64>,
}

impl Oracle {
    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// Applies a transaction and checks the result.
    pub(crate) fn commit(&mut self, batch: &WatchBatch) -> Result<(), String> {
        let (gone, put): (Vec<_>, Vec<_>) = batch
            .events
            .iter()
            .partition(|event| matches!(event, Event::Delete(_)));
        let mut stopped = Vec::new();
        let mut tasks = Vec::new();
        let mut unnamed = Vec::new();
        for event in gone.into_iter().chain(put) {
            let segments: Vec<&str> = event.key().segments().collect();
            match (segments.as_slice(), event) {
                (["services", id], Event::Delete(_)) => {
                    self.revisions.remove(&ServiceId::from(*id));
                    self.apply(
                        "remove service",
                        &ObjectChange::RemoveService(ServiceId::from(*id)),
                    )?;
                }
                (["services", _], Event::Put(entry)) => {
                    let revised: Revised<Arc<Service>> = decode(&entry.key, &entry.value)?;
                    self.put_service(&revised)?;
                }
                (["nodes", id], Event::Delete(_)) => {
                    self.apply("remove node", &ObjectChange::RemoveNode(NodeId::from(*id)))?;
                }
                (["nodes", _], Event::Put(entry)) => self.put_node(decode(&entry.key, &entry.value)?)?,
                (["ports", _], Event::Put(entry)) => {
                    let ledger = decode(&entry.key, &entry.value)?;
                    self.apply("put ports", &ObjectChange::PutPorts(ledger))?;
                }
                (["specs", service, version], event) => {
                    let version = version
                        .parse()
                        .map_err(|error| format!("{}: {error}", event.key()))?;
                    let name = (ServiceId::from(*service), version);
                    match event {
                        Event::Put(entry) => self.put_spec(name, decode(&entry.key, &entry.value)?)?,
                        Event::Delete(_) => {
                            self.specs.remove(&name);
                            unnamed.push(name);
                        }
                    }
                }
                (["tasks", id], Event::Delete(_)) => {
                    self.apply("remove task", &ObjectChange::RemoveTask(TaskId::from(*id)))?;
                }
                (["tasks", _], Event::Put(entry)) => {
                    let task = self.read_task(&entry.key, &entry.value)?;
                    stopped.extend(self.put_task(&task)?);
                    tasks.push(task);
                }
                _ => {}
            }
        }
        for (service, version) in unnamed {
            if self.state.users(&service, version) > 0
                && !self.specs.contains_key(&(service.clone(), version))
            {
                return Err(format!(
                    "the specification {version} of {service} was removed, and tasks have it"
                ));
            }
        }
        for task in &tasks {
            rules::check_slot(
                &self.state,
                (&task.service, &task.slot),
                &self.cut_off,
                &self.start_first,
            )?;
            if task.status.state == TaskState::Assigned {
                self.check_node(task)?;
            }
        }
        stopped.iter().try_for_each(|task| self.check_stop(task))
    }

    fn apply(&mut self, kind: &'static str, change: &ObjectChange) -> Result<(), String> {
        *self.seen.entry(kind).or_default() += 1;
        let applied = self.state.apply(change);
        applied
            .map(drop)
            .map_err(|error| format!("a commit does not fit what is stored: {error} ({change:?})"))
    }

    /// It is stored once, and never changes.
    fn put_spec(&mut self, name: (ServiceId, u64), spec: Value) -> Result<(), String> {
        *self.seen.entry("put specification").or_default() += 1;
        match self.specs.insert(name.clone(), spec) {
            None => Ok(()),
            Some(before) => Err(format!("a specification was stored again: {name:?}, {before}")),
        }
    }

    /// A stored task names its specification.
    fn read_task(&self, key: &Key, value: &[u8]) -> Result<Task, String> {
        let mut task: Value = decode(key, value)?;
        if task.get("spec").is_some() {
            return Err(format!("{key} was stored with its specification: {task}"));
        }
        let service = task["service"].as_str().unwrap_or_default();
        let name = (
            ServiceId::from(service),
            task["spec_version"].as_u64().unwrap_or_default(),
        );
        let spec = self.specs.get(&name);
        task["spec"] = spec
            .ok_or_else(|| format!("the specification of {key} is not stored: {task}"))?
            .clone();
        decode(key, task.to_string().as_bytes())
    }

    /// Once the cluster has settled, no specification is left that no task has.
    pub(crate) fn check_specs(&self) -> Result<(), String> {
        let unused = |name: &&(ServiceId, u64)| self.state.users(&name.0, name.1) == 0;
        match self.specs.keys().find(unused) {
            Some(name) => Err(format!("a specification is left over: {name:?}")),
            None => Ok(()),
        }
    }

    fn put_service(&mut self, revised: &Revised<Arc<Service>>) -> Result<(), String> {
        let service = &revised.value;
        let number = revised.revision.number;
        let before = self.revisions.insert(service.id.clone(), number);
        if before.is_some_and(|before| number != before && number != before + 1)
            || (before.is_none() && number != 1)
        {
            return Err(format!("revision {number} of {} follows {before:?}", service.id));
        }
        if let Some(known) = self.state.service(&service.id)
            && known.version > service.version
        {
            return Err(format!(
                "version {} of {} follows {}",
                service.version, service.id, known.version
            ));
        }
        let configs = [&service.spec.update_config, &service.spec.rollback_config];
        if configs
            .iter()
            .any(|config| config.order == UpdateOrder::StartFirst)
        {
            self.start_first.insert(service.id.clone());
        }
        let now = Instant::now();
        let allowed = configs
            .iter()
            .map(|config| match config.parallelism {
                0 => u32::MAX,
                parallelism => parallelism,
            })
            .max();
        let policies = self.policies.entry(service.id.clone()).or_default();
        if let Some((until, _)) = policies.back_mut() {
            *until = now + OLD_POLICY;
        }
        policies.push_back((now, allowed.unwrap_or(u32::MAX)));
        while policies.len() > 1 && policies.front().is_some_and(|(until, _)| *until < now) {
            policies.pop_front();
        }
        self.apply("put service", &ObjectChange::PutService(service.clone()))
    }

    fn put_node(&mut self, node: Node) -> Result<(), String> {
        if node.status == NodeStatus::Down {
            let index = self.state.tasks_on(&node.id);
            let tasks = index.into_iter().flat_map(|index| index.tasks.iter().cloned());
            self.cut_off.extend(tasks);
        }
        self.apply("put node", &ObjectChange::PutNode(Box::new(node)))
    }

    /// The task before, if it ran and is no longer meant to.
    fn put_task(&mut self, task: &Task) -> Result<Option<Task>, String> {
        let before = self.state.tasks().get(&task.id).cloned();
        if let Some(before) = &before {
            if task.desired < before.desired || task.status.state < before.status.state {
                return Err(format!("a state moved back, from {before:#?} to {task:#?}"));
            }
            if before.status.state.is_terminal()
                && before.status.state != TaskState::Orphaned
                && task.status.state != before.status.state
                && task.status.state != TaskState::Orphaned
            {
                return Err(format!(
                    "an ended task ended again, from {before:#?} to {task:#?}"
                ));
            }
            if before.node.is_some() && before.node != task.node {
                return Err(format!("a task changed its node, from {before:#?} to {task:#?}"));
            }
            if before.started_at.is_some() && before.started_at != task.started_at {
                return Err(format!("a task started twice, from {before:#?} to {task:#?}"));
            }
        }
        let kind = match before {
            Some(_) => "put task",
            None => "create task",
        };
        self.apply(kind, &ObjectChange::PutTask(Box::new(task.clone())))?;
        Ok(before.filter(|before| before.is_running() && task.desired == TaskState::Shutdown))
    }

    /// Reservations never exceed a node, and its ports are used once.
    fn check_node(&self, placed: &Task) -> Result<(), String> {
        let Some(node) = placed.node.as_ref().and_then(|id| self.state.nodes().get(id)) else {
            // Removed at the same time: the loops will notice.
            return Ok(());
        };
        let index = self.state.tasks_on(&node.id);
        let tasks = index.into_iter().flat_map(|index| &index.tasks);
        let holding = tasks
            .filter_map(|id| self.state.tasks().get(id))
            .filter(|task| task.status.state.holds_resources());
        rules::check_node(node, holding)
    }

    /// An update never takes more slots out of service than its policy allows.
    fn check_stop(&self, stopped: &Task) -> Result<(), String> {
        let Some(service) = self.state.service(&stopped.service) else {
            return Ok(());
        };
        let node = stopped
            .node
            .as_ref()
            .and_then(|node| self.state.nodes().get(node));
        let is_updating = service
            .update_status
            .as_ref()
            .is_some_and(|status| status.state.is_active());
        if !is_updating || node.is_none_or(|node| !node.keeps_tasks()) || service.spec.mode.is_global() {
            return Ok(());
        }
        // A slot whose new task has failed counts as a failure, no longer as being updated.
        let failed = service.update_status.as_ref().map(|status| &status.failed);
        let is_out = |slot: &&Slot| {
            let mut tasks = self.state.slot(&stopped.service, slot);
            let is_new = |task: &Task| {
                task.is_live()
                    && task.spec_version == service.task_version
                    && task.update_began.is_some()
                    && task.started_at.is_none()
            };
            !failed.is_some_and(|failed| failed.contains(*slot)) && tasks.any(is_new)
        };
        let index = self.state.tasks_of(&stopped.service);
        let out = index
            .into_iter()
            .flat_map(|index| index.wanted.keys())
            .filter(is_out)
            .count();
        let allowed = self
            .policies
            .get(&service.id)
            .into_iter()
            .flatten()
            .map(|(_, allowed)| *allowed)
            .max();
        if out > allowed.map_or(usize::MAX, |allowed| allowed as usize) {
            return Err(format!(
                "{} was stopped, and {out} slots are being updated at the same time, of {allowed:?}",
                stopped.name()
            ));
        }
        Ok(())
    }

    /// A container starts on a machine. The engine knows better than the store what runs.
    pub(crate) fn container_starts(&mut self, task: &Task) -> Result<(), String> {
        let slot = (task.service.clone(), task.slot.clone());
        let allowed = rules::allowed(&self.start_first, &task.service);
        let running = self.running.entry(slot).or_default();
        running.insert(task.id.clone());
        let others = running.iter().filter(|id| !self.cut_off.contains(*id));
        if others.clone().count() > allowed {
            return Err(format!(
                "containers of one slot run together: {:?}",
                others.collect::<Vec<_>>()
            ));
        }
        Ok(())
    }

    pub(crate) fn container_ends(&mut self, task: &TaskId) {
        for running in self.running.values_mut() {
            running.remove(task);
        }
    }
}

fn decode<T: DeserializeOwned>(key: &Key, value: &[u8]) -> Result<T, String> {
    serde_json::from_slice(value).map_err(|error| format!("{key} cannot be read: {error}"))
}
