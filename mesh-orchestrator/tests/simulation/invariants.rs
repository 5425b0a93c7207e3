//! What must hold after every single change, and when the cluster has settled. Keeps a state of its own,
//! built from the changes alone, in which a change that the loops did not return would be missing.

use std::{collections::BTreeSet, fmt, time::Duration};

use crate::{rules, settled, users::Users};
use mesh_orchestrator::{
    loops::{Round, scheduler},
    objects::{
        Node, NodeId, NodeStatus, ObjectChange, ServiceId, Slot, State, Task, TaskId, TaskState, Timestamp,
    },
    spec::{Resources, UpdateOrder},
};

/// A violated invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    /// The history's seed.
    pub(crate) seed: u64,
    /// Time since its start.
    pub(crate) at: Duration,
    /// What is wrong.
    pub(crate) text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} (after {:?}; MESH_SIMULATION_SEED={} replays this history)",
            self.text, self.at, self.seed
        )
    }
}

/// Watches every change.
#[derive(Debug, Default)]
pub(crate) struct Watcher {
    state: State,
    /// Services whose policy was ever start-first: two tasks of a slot may run for a time.
    start_first: BTreeSet<ServiceId>,
    /// Tasks that were on a node when it fell silent: they could not be stopped before they were replaced.
    cut_off: BTreeSet<TaskId>,
}

impl Watcher {
    /// Checks one change; `is_ours` if a loop made it.
    pub(crate) fn watch(&mut self, change: &ObjectChange, is_ours: bool) -> Result<(), String> {
        if let ObjectChange::SetDesired { task, desired } = change
            && is_ours
        {
            self.check_stop(task, *desired)?;
        }
        let before = self.states_of(change);
        self.state.apply(change).map_err(|error| error.to_string())?;
        if let (Some(before), Some(after)) = (before, self.states_of(change))
            && (after.0 < before.0 || after.1 < before.1)
        {
            return Err(format!(
                "a state moved back from {before:?} to {after:?} by {change:?}"
            ));
        }
        match change {
            ObjectChange::PutService(service) => {
                let configs = [&service.spec.update_config, &service.spec.rollback_config];
                if configs
                    .iter()
                    .any(|config| config.order == UpdateOrder::StartFirst)
                {
                    self.start_first.insert(service.id.clone());
                }
            }
            ObjectChange::PutNode(node) if node.status == NodeStatus::Down => {
                let tasks = self
                    .state
                    .tasks_on(&node.id)
                    .into_iter()
                    .flat_map(|index| index.tasks.iter().cloned());
                self.cut_off.extend(tasks);
            }
            ObjectChange::Assign { node, task, .. } => {
                self.check_node(node, task)?;
            }
            _ => {}
        }
        match change {
            ObjectChange::CreateTask(task) => {
                self.check_spec(task)?;
                self.check_slot(task)
            }
            ObjectChange::SetDesired { task, .. }
            | ObjectChange::Observe { task, .. }
            | ObjectChange::Assign { task, .. } => match self.state.tasks().get(task) {
                Some(task) => self.check_slot(task),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn states_of(&self, change: &ObjectChange) -> Option<(TaskState, TaskState)> {
        let (ObjectChange::SetDesired { task, .. }
        | ObjectChange::Observe { task, .. }
        | ObjectChange::Assign { task, .. }
        | ObjectChange::GiveUp(task)) = change
        else {
            return None;
        };
        self.state
            .tasks()
            .get(task)
            .map(|task| (task.desired, task.status.state))
    }

    fn check_slot(&self, task: &Task) -> Result<(), String> {
        let slot = (&task.service, &task.slot);
        rules::check_slot(&self.state, slot, &self.cut_off, &self.start_first)
    }

    /// What a task runs is stored once for all tasks of the service's task version.
    fn check_spec(&self, task: &Task) -> Result<(), String> {
        let is_other = |other: &&Task| {
            (&other.service, other.spec_version) == (&task.service, task.spec_version)
                && other.spec != task.spec
        };
        match self.state.tasks().values().find(is_other) {
            Some(other) => Err(format!(
                "tasks of the same version run something else: {other:#?} and {task:#?}"
            )),
            None => Ok(()),
        }
    }

    /// Reservations never exceed a node, ports are used once, and so on.
    fn check_node(&self, id: &NodeId, placed: &TaskId) -> Result<(), String> {
        let Some(node) = self.state.nodes().get(id) else {
            return Err(format!("a task was placed on {id}, which does not exist"));
        };
        if !node.is_schedulable() {
            return Err(format!(
                "a task was placed on {id}, which is {} and {}",
                node.status, node.availability
            ));
        }
        let tasks: Vec<&Task> = self
            .state
            .tasks()
            .values()
            .filter(|task| task.node.as_ref() == Some(id))
            .collect();
        let holding = || tasks.iter().filter(|task| task.status.state.holds_resources());
        rules::check_node(node, holding().copied())?;
        if let Some(task) = self.state.tasks().get(placed) {
            let limit = task.spec.placement.max_replicas_per_node as usize;
            let of_service = holding()
                .filter(|other| other.service == task.service && other.is_live())
                .count();
            if limit > 0 && of_service > limit {
                return Err(format!(
                    "{of_service} tasks of {} are on {id}, {limit} are allowed",
                    task.service
                ));
            }
            if !scheduler::suits(node, &task.spec.placement) {
                return Err(format!(
                    "{} was placed on {id}, which does not satisfy its placement",
                    task.name()
                ));
            }
        }
        Ok(())
    }

    /// An update never takes more slots out of service than its policy allows.
    fn check_stop(&self, id: &TaskId, desired: TaskState) -> Result<(), String> {
        let Some(task) = self.state.tasks().get(id) else {
            return Ok(());
        };
        let Some(service) = self.state.service(&task.service) else {
            return Ok(());
        };
        let updates = service
            .update_status
            .as_ref()
            .filter(|status| status.state.is_active());
        let (Some(status), true, TaskState::Shutdown) = (updates, task.is_running(), desired) else {
            return Ok(());
        };
        let node = task.node.as_ref().and_then(|node| self.state.nodes().get(node));
        let must_leave = node.is_none_or(|node| {
            !node.keeps_tasks()
                || (service.spec.mode.is_global()
                    && !scheduler::suits(node, &service.spec.task_template.placement))
                // Its labels or its capacity have changed.
                || !scheduler::suits(node, &task.spec.placement)
                || self.is_too_small(node)
        });
        let another_runs = self
            .state
            .slot(&task.service, &task.slot)
            .any(|other| other.id != *id && other.is_running());
        if must_leave || another_runs {
            return Ok(());
        }
        let config = service.update_config();
        if config.order == UpdateOrder::StartFirst {
            return Err(format!(
                "start-first, but {} was stopped before another one ran",
                task.name()
            ));
        }
        let is_out = |slot: &&Slot| {
            !status.failed.contains(*slot)
                && self.state.slot(&task.service, slot).any(|task| {
                    task.is_live()
                        && task.spec_version == service.task_version
                        && task.update_began.is_some()
                        && task.started_at.is_none()
                })
        };
        let slots = self
            .state
            .tasks_of(&task.service)
            .into_iter()
            .flat_map(|index| index.wanted.keys());
        let out = slots.filter(is_out).count();
        if config.parallelism > 0 && out >= config.parallelism as usize {
            return Err(format!(
                "{} was stopped although {out} slots are already being updated",
                task.name()
            ));
        }
        Ok(())
    }

    /// Whether more is reserved on a node than it has.
    fn is_too_small(&self, node: &Node) -> bool {
        let index = self.state.tasks_on(&node.id);
        let tasks = index.into_iter().flat_map(|index| &index.tasks);
        let reserved = tasks
            .filter_map(|id| self.state.tasks().get(id))
            .filter(|task| task.status.state.holds_resources())
            .fold(Resources::default(), |sum, task| {
                sum.plus(task.spec.resources.reservations)
            });
        !node.resources.holds(reserved)
    }

    /// The loops returned all their changes, and the indexes are right.
    pub(crate) fn same(&self, other: &State) -> Result<(), String> {
        if self.state.tasks() != other.tasks() || self.state.services() != other.services() {
            return Err("the changes do not add up to the state".into());
        }
        if !other.indexes_are_sound() {
            return Err("the indexes do not match the tasks".into());
        }
        Ok(())
    }

    /// The cluster is in the state that users asked for, as far as that is possible.
    pub(crate) fn settled(&self, state: &State, users: &Users, now: Timestamp) -> Result<(), String> {
        let services: BTreeSet<&ServiceId> = state.services().keys().collect();
        if services != users.services.iter().collect() {
            return Err(format!(
                "services are {services:?}, asked for {:?}",
                users.services
            ));
        }
        for task in state.tasks().values() {
            if task.is_stopping() || task.desired == TaskState::Remove || task.is_dead() {
                return Err(format!("a task is left over: {task:#?}"));
            }
            if !services.contains(&task.service) {
                return Err(format!("a task has no service: {task:#?}"));
            }
        }
        // Scheduling again must not find a node.
        let round = Round { now, seed: 0 };
        for (service, _, tasks) in state.unplaced() {
            let output = scheduler::schedule(&round, state, tasks);
            if output
                .changes
                .iter()
                .any(|change| matches!(change, ObjectChange::Assign { .. }))
            {
                return Err(format!(
                    "tasks of {service} could be placed: {:?}",
                    output.changes
                ));
            }
        }
        state
            .services()
            .values()
            .try_for_each(|service| settled::check(state, service))
    }
}
