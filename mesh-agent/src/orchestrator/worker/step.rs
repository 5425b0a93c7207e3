//! One pass over every task and container of this node: gathers what is known of each, has `machine` or
//! `agent` decide, and carries the decision out. Nothing here waits.

use std::collections::BTreeSet;

use mesh_orchestrator::{
    objects::{State, Task, TaskId, TaskState, Timestamp},
    spec::{Protocol, PublishMode, TaskRuntime},
};
use mesh_support::watched::Watched as _;
use tracing::{debug, info, warn};

use super::{
    RETRY, Worker,
    agent::{self, AgentObservation, AgentState},
    machine::{self, Drain, Next, Observation, Work},
    task_memory::TaskMemory,
};
use crate::orchestrator::runtime::{ContainerFacts, Health, Phase, now};

/// Steps of one task in one pass; needing more would be a bug in `machine`.
const MAX_STEPS: usize = 16;

/// A task of this node, with what the worker needs of its service.
#[derive(Debug)]
struct Assigned {
    task: Task,
    /// Whether the mesh sends connections to it.
    published: bool,
    /// Ports inside the container that the mesh sends TCP connections to.
    ports: BTreeSet<u16>,
}

impl Worker {
    /// Advances every task and container as far as possible; returns when to do so again at the latest.
    pub(super) fn step(&mut self) -> Option<Timestamp> {
        if self.options.cluster.is_restoring() {
            // The desired state is unknown until the restore ends.
            return None;
        }
        let node = self.options.node.clone();
        let assigned = self.options.cluster.read(|state| {
            let index = state.tasks_on(&node);
            let tasks = index.into_iter().flat_map(|index| &index.tasks);
            tasks
                .filter_map(|id| Some(describe(state, state.tasks().get(id)?)))
                .collect::<Vec<_>>()
        });
        let known: BTreeSet<TaskId> = assigned.iter().map(|assigned| assigned.task.id.clone()).collect();
        let mut wake: Option<Timestamp> = None;
        for assigned in assigned {
            let id = assigned.task.id.clone();
            // A container that nothing is known of may be the task's own, running.
            if assigned.task.status.state < TaskState::Assigned || self.inspections.unknown(&id).is_some() {
                continue;
            }
            // Taken out of the map, so that `self` can be borrowed meanwhile.
            let mut memory = self.memories.remove(&id).unwrap_or_default();
            let until = match assigned.task.spec.runtime {
                TaskRuntime::Container => self.step_task(&assigned, &mut memory),
                TaskRuntime::Agent => self.step_agent(&assigned.task, &mut memory),
            };
            wake = earlier(wake, until);
            self.memories.insert(id, memory);
        }
        let history = self.history();
        wake = earlier(wake, self.step_leftovers(&known, &history));
        let containers = &self.containers;
        let files = &self.files;
        self.memories.retain(|id, memory| {
            let is_left = containers.contains_key(id) && !history.contains(id);
            let keep = known.contains(id) || is_left || memory.in_progress.is_some();
            if !keep {
                files.remove(id);
            }
            keep
        });
        wake
    }

    fn step_task(&mut self, assigned: &Assigned, memory: &mut TaskMemory) -> Option<Timestamp> {
        let task = &assigned.task;
        if !assigned.ports.is_empty() {
            memory.ports.clone_from(&assigned.ports);
        }
        self.keep_probe(task, memory);
        for _ in 0..MAX_STEPS {
            let now = now();
            if memory.not_before.is_some_and(|time| time > now) {
                return memory.not_before;
            }
            let container = self.containers.get(&task.id).cloned();
            self.count_connections(memory, container.as_ref(), now);
            let found = self
                .options
                .found
                .current()
                .containers
                .contains_key(task.id.as_str());
            let needed =
                assigned.published && container.as_ref().is_some_and(|facts| facts.address.is_some());
            let is_up = container
                .as_ref()
                .is_some_and(|facts| facts.phase == Phase::Running);
            let reachable = !is_up || memory.is_reachable(found, needed, now);
            let next = machine::next(&Observation {
                now,
                task,
                reported: memory.furthest(task.status.state),
                container: container.as_ref(),
                in_progress: memory.in_progress.as_ref().map(|(work, _)| *work),
                refused: memory.refused.as_deref(),
                probe: memory
                    .probe
                    .as_ref()
                    .map_or(Health::Unchecked, |probe| probe.health),
                reachable,
                drain: memory.drain,
                ending: memory.ending,
            });
            match next {
                Next::Report(status) => self.report(task, memory, container.as_ref(), status),
                Next::Begin(work) => self.begin(task, memory, container, work, now),
                Next::Abandon => {
                    if let Some((_, handle)) = memory.in_progress.take() {
                        handle.abort();
                    }
                }
                Next::BeginDrain => {
                    debug!(task = task.name(), id = %task.id, "draining");
                    memory.drain = Some(Drain {
                        since: now,
                        limit: self.options.drain_time,
                        busy: true,
                    });
                }
                Next::Wait(until) => {
                    return earlier(until, memory.reach_limit().filter(|limit| *limit > now));
                }
            }
        }
        warn!(task = task.name(), id = %task.id, "too many steps for this task in one pass");
        Some(now() + RETRY)
    }

    /// As [`Self::step_task`], for a task whose runtime is the agent.
    fn step_agent(&mut self, task: &Task, memory: &mut TaskMemory) -> Option<Timestamp> {
        for _ in 0..MAX_STEPS {
            let now = now();
            if memory.not_before.is_some_and(|time| time > now) {
                return memory.not_before;
            }
            let record = self.options.programs.record();
            let agent_state = match self.options.proven.current() {
                _ if self.options.replace.is_cancelled() => AgentState::Leaving,
                true => AgentState::Proven,
                false => AgentState::Starting,
            };
            let next = agent::next(&AgentObservation {
                now,
                task,
                reported: memory.furthest(task.status.state),
                in_progress: memory.in_progress.as_ref().map(|(work, _)| *work),
                refused: memory.refused.as_deref(),
                programs: memory.programs.as_ref(),
                agent_state,
                failure: record.failure_of(task.id.as_str()),
            });
            match next {
                Next::Report(status) => {
                    if status.state == TaskState::Running {
                        self.remember_program(task, memory);
                    }
                    self.report(task, memory, None, status);
                }
                Next::Begin(Work::Start) => self.give_way(task, memory),
                Next::Begin(work) => self.begin(task, memory, None, work, now),
                Next::Abandon => {
                    if let Some((_, handle)) = memory.in_progress.take() {
                        handle.abort();
                    }
                }
                Next::BeginDrain => {}
                Next::Wait(until) => return until,
            }
        }
        warn!(task = task.name(), id = %task.id, "too many steps for this task in one pass");
        Some(now() + RETRY)
    }

    /// Whether a task's runtime is the agent.
    pub(super) fn is_agent(&self, task: &TaskId) -> bool {
        self.options.cluster.read(|state| {
            let task = state.tasks().get(task);
            task.is_some_and(|task| task.spec.runtime == TaskRuntime::Agent)
        })
    }

    /// Tasks that have ended on this node and that the cluster keeps, with an ended container.
    pub(super) fn history(&self) -> BTreeSet<TaskId> {
        let node = &self.options.node;
        let ended = self
            .containers
            .values()
            .filter(|facts| matches!(facts.phase, Phase::Exited { .. }));
        self.options.cluster.read(|state| {
            let is_kept = |id: &&TaskId| {
                state.tasks().get(*id).is_some_and(|task| {
                    task.node.as_ref() == Some(node)
                        && task.status.state.is_terminal()
                        && task.desired != TaskState::Remove
                })
            };
            ended.map(|facts| &facts.task).filter(is_kept).cloned().collect()
        })
    }

    fn step_leftovers(&mut self, known: &BTreeSet<TaskId>, history: &BTreeSet<TaskId>) -> Option<Timestamp> {
        let leftovers: Vec<ContainerFacts> = self
            .containers
            .values()
            .filter(|facts| !known.contains(&facts.task))
            .cloned()
            .collect();
        let mut wake = None;
        for container in leftovers {
            let now = now();
            let in_history = history.contains(&container.task);
            let mut memory = self.memories.remove(&container.task).unwrap_or_default();
            memory.probe = None;
            let in_progress = memory.in_progress.as_ref().map(|(work, _)| *work);
            let until = if let Some(time) = memory.not_before.filter(|time| *time > now) {
                Some(time)
            } else {
                match machine::leftover(now, &container, in_history, in_progress, memory.ending) {
                    Next::Begin(work) => {
                        if work == Work::Signal {
                            info!(container = container.id, task = %container.task, "stopping a container whose task is gone");
                        }
                        self.begin_work(
                            &container.task.clone(),
                            &mut memory,
                            Some(container.clone()),
                            work,
                            now,
                            None,
                        );
                        None
                    }
                    Next::Wait(until) => until,
                    Next::Report(_) | Next::Abandon | Next::BeginDrain => None,
                }
            };
            wake = earlier(wake, until);
            self.memories.insert(container.task.clone(), memory);
        }
        wake
    }
}

fn describe(state: &State, task: &Task) -> Assigned {
    let ingress = state
        .service(&task.service)
        .into_iter()
        .flat_map(|service| &service.ports)
        .filter(|port| port.publish_mode == PublishMode::Ingress);
    Assigned {
        task: task.clone(),
        published: ingress.clone().next().is_some(),
        ports: ingress
            .filter(|port| port.protocol == Protocol::Tcp)
            .map(|port| port.target_port)
            .collect(),
    }
}

fn earlier(one: Option<Timestamp>, other: Option<Timestamp>) -> Option<Timestamp> {
    one.into_iter().chain(other).min()
}
