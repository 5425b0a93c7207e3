//! One look at every task and container of this node: gathers what is known, and carries out what `machine`
//! says is next. Nothing here waits.

use std::{collections::BTreeSet, net::Ipv4Addr, sync::Arc};

use mesh_orchestrator::{
    objects::{State, Task, TaskId, TaskState, TaskStatus, Timestamp},
    spec::{Protocol, PublishMode, TaskRuntime},
};
use tracing::{debug, info, warn};

use super::{
    Done, RETRY, Worker,
    agent::{self, AgentObservation, AgentPrograms, AgentState},
    connections,
    machine::{self, Drain, Next, Observation, Work},
    prepare::{self, Preparation},
    prepare_agent, probe,
    task_memory::{Probing, TaskMemory},
};
use crate::{
    error::error_chain,
    orchestrator::runtime::{ContainerFacts, Health, Phase, now},
};

/// Steps of one task in a row; more would be a fault of the machine's.
const MAX_STEPS: usize = 16;

/// A task of this node, with what of its service matters here.
#[derive(Debug)]
struct Assigned {
    task: Task,
    /// Whether the mesh sends connections to it.
    published: bool,
    ports: BTreeSet<u16>,
}

impl Worker {
    /// Does whatever is next for every task and container; answers when to look again.
    pub(super) fn step(&mut self) -> Option<Timestamp> {
        if self.options.cluster.is_restoring() {
            // Nothing is known of what is wanted.
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
            if assigned.task.status.state < TaskState::Assigned {
                continue;
            }
            let id = assigned.task.id.clone();
            // Taken out, so that the rest of the worker can be used meanwhile.
            let mut memory = self.memories.remove(&id).unwrap_or_default();
            let until = match assigned.task.spec.runtime {
                TaskRuntime::Container => self.step_task(&assigned, &mut memory),
                TaskRuntime::Agent => self.step_agent(&assigned.task, &mut memory),
            };
            wake = earlier(wake, until);
            self.memories.insert(id, memory);
        }
        wake = earlier(wake, self.step_orphans(&known));
        let containers = &self.containers;
        let files = &self.files;
        self.memories.retain(|id, memory| {
            let keep = known.contains(id) || containers.contains_key(id) || memory.in_progress.is_some();
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
                .borrow()
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
        warn!(task = task.name(), id = %task.id, "the task takes too many steps at once");
        Some(now() + RETRY)
    }

    /// As [`Self::step_task`], for a task that is this agent.
    fn step_agent(&mut self, task: &Task, memory: &mut TaskMemory) -> Option<Timestamp> {
        for _ in 0..MAX_STEPS {
            let now = now();
            if memory.not_before.is_some_and(|time| time > now) {
                return memory.not_before;
            }
            let record = self.options.programs.record();
            let agent_state = match *self.options.proven.borrow() {
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
        warn!(task = task.name(), id = %task.id, "the task takes too many steps at once");
        Some(now() + RETRY)
    }

    /// So that the next agent need not look into the image again.
    fn remember_program(&self, task: &Task, memory: &TaskMemory) {
        let Some(programs) = &memory.programs else {
            return;
        };
        let remembered = self
            .options
            .programs
            .change(|record| record.adopt(task.id.as_str(), programs.wanted.clone()));
        if let Err(error) = remembered {
            warn!(
                task = task.name(),
                error = error_chain(&error),
                "not written down"
            );
        }
    }

    /// Writes down which program is to run next, and asks the agent to end for it.
    fn give_way(&self, task: &Task, memory: &mut TaskMemory) {
        let programs = &self.options.programs;
        match memory.programs.take() {
            Some(AgentPrograms { wanted, .. }) if programs.has(&wanted) => {
                let program = wanted;
                info!(
                    task = task.name(),
                    program = program.short(),
                    "the agent gives way to another program"
                );
                match programs.change(|record| record.deploy(task.id.as_str(), program)) {
                    Ok(()) => self.options.replace.cancel(),
                    Err(error) => memory.refused = Some(error_chain(&error)),
                }
            }
            // It is got anew.
            Some(_) | None => {}
        }
    }

    /// Whether a task is this agent.
    pub(super) fn is_agent(&self, task: &TaskId) -> bool {
        self.options.cluster.read(|state| {
            let task = state.tasks().get(task);
            task.is_some_and(|task| task.spec.runtime == TaskRuntime::Agent)
        })
    }

    fn step_orphans(&mut self, known: &BTreeSet<TaskId>) -> Option<Timestamp> {
        let orphans: Vec<ContainerFacts> = self
            .containers
            .values()
            .filter(|facts| !known.contains(&facts.task))
            .cloned()
            .collect();
        let mut wake = None;
        for container in orphans {
            let now = now();
            let mut memory = self.memories.remove(&container.task).unwrap_or_default();
            memory.probe = None;
            let in_progress = memory.in_progress.as_ref().map(|(work, _)| *work);
            let until = if let Some(time) = memory.not_before.filter(|time| *time > now) {
                Some(time)
            } else {
                match machine::orphan(now, &container, in_progress, memory.ending) {
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

    fn report(
        &self,
        task: &Task,
        memory: &mut TaskMemory,
        container: Option<&ContainerFacts>,
        mut status: TaskStatus,
    ) {
        status.container = container.map(|facts| facts.id.clone());
        status.address = container.and_then(|facts| facts.address);
        // Of reports that follow each other fast only the last is heard.
        if matches!(
            status.state,
            TaskState::Ready | TaskState::Starting | TaskState::Running
        ) && let Some(warning) = &memory.warning
        {
            status.message = format!("{}; {warning}", status.message);
        }
        info!(
            task = task.name(),
            id = %task.id,
            state = %status.state,
            message = status.message,
            error = status.error.as_deref(),
            "task"
        );
        self.options.cluster.report(task.id.clone(), status.clone());
        memory.reported = Some(status);
    }

    fn begin(
        &mut self,
        task: &Task,
        memory: &mut TaskMemory,
        container: Option<ContainerFacts>,
        work: Work,
        now: Timestamp,
    ) {
        let prepare = (work == Work::Prepare).then(|| {
            if memory.address.is_none() && prepare::is_in_the_mesh(task) && task.spec.runtime.is_container() {
                memory.address = self.free_address();
                self.last_address = memory.address.or(self.last_address);
            }
            prepare::Order {
                runtime: Arc::clone(&self.options.runtime),
                vault: Arc::clone(&self.options.vault),
                files: self.files.clone(),
                node: self.options.node.clone(),
                task: task.clone(),
                address: memory.address,
            }
        });
        self.begin_work(&task.id, memory, container, work, now, prepare);
    }

    fn begin_work(
        &mut self,
        task: &TaskId,
        memory: &mut TaskMemory,
        container: Option<ContainerFacts>,
        work: Work,
        now: Timestamp,
        order: Option<prepare::Order>,
    ) {
        match work {
            Work::Signal => memory.ending.signalled = Some(now),
            Work::Kill => memory.ending.killed = Some(now),
            Work::Prepare | Work::Start | Work::Remove => {}
        }
        let runtime = Arc::clone(&self.options.runtime);
        let programs = Arc::clone(&self.options.programs);
        let task = task.clone();
        let handle = self.works.spawn(async move {
            let result = match (order, container) {
                (Some(order), _) if order.task.spec.runtime == TaskRuntime::Agent => {
                    prepare_agent::prepare(order, programs).await
                }
                (Some(order), _) => prepare::prepare(order).await,
                (None, Some(container)) => prepare::act(runtime.as_ref(), &container, work).await,
                (None, None) => Ok(Preparation::default()),
            };
            Done { task, work, result }
        });
        memory.in_progress = Some((work, handle));
    }

    /// An address that no container here has, and none that is just being made.
    fn free_address(&self) -> Option<Ipv4Addr> {
        let chosen = self.memories.values().filter_map(|memory| memory.address);
        let taken = self.containers.values().filter_map(|facts| facts.address);
        self.options
            .block
            .free(&taken.chain(chosen).collect(), self.last_address)
    }

    /// Sees to it that a running container with a check of ours is probed, and no other.
    fn keep_probe(&self, task: &Task, memory: &mut TaskMemory) {
        let check = task.spec.container_spec.healthcheck.as_ref();
        let running = self
            .containers
            .get(&task.id)
            .filter(|facts| facts.phase == Phase::Running && task.desired.is_wanted());
        match (running, check.filter(|check| probe::is_ours(Some(check)))) {
            (Some(facts), Some(check)) if memory.probe.is_none() => {
                // Without an address it cannot be reached, and is never healthy.
                let address = facts.reached_at.unwrap_or(Ipv4Addr::UNSPECIFIED);
                let watch = probe::watch(task.id.clone(), check.clone(), address, self.verdicts.0.clone());
                memory.probe = Some(Probing {
                    health: Health::Starting,
                    task: tokio::spawn(watch).abort_handle(),
                });
            }
            (Some(_), Some(_)) => {}
            (None, _) | (_, None) => memory.probe = None,
        }
    }

    /// Whether a draining container still has connections. Where that cannot be told, it has.
    fn count_connections(&self, memory: &mut TaskMemory, container: Option<&ContainerFacts>, now: Timestamp) {
        if let (Some(drain), Some(pid)) = (&mut memory.drain, container.and_then(|facts| facts.pid))
            && now >= drain.since + machine::SETTLE
        {
            drain.busy = connections::are_open(pid, &memory.ports).unwrap_or(true);
        }
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
