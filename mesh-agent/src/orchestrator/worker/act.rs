//! Carries out what `machine` and `agent` decide: reports states, starts work in the background, keeps probes
//! running. Nothing here waits.

use std::{collections::BTreeMap, net::Ipv4Addr, sync::Arc};

use mesh_orchestrator::objects::{Task, TaskId, TaskState, TaskStatus, Timestamp};
use mesh_orchestrator::spec::TaskRuntime;
use mesh_support::error_chain;
use tracing::{info, warn};

use super::{
    Done, Worker,
    agent::AgentPrograms,
    connections,
    machine::{self, Work},
    prepare::{self, Preparation},
    prepare_agent, probe,
    task_memory::{Probing, TaskMemory},
};
use crate::orchestrator::runtime::{ContainerFacts, Health, Phase};

impl Worker {
    pub(super) fn report(
        &self,
        task: &Task,
        memory: &mut TaskMemory,
        container: Option<&ContainerFacts>,
        mut status: TaskStatus,
    ) {
        status.container = container.map(|facts| facts.id.clone());
        status.address = container.and_then(|facts| facts.address);
        // Only the last of several quick reports reaches the store, so each of them carries the warning.
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

    pub(super) fn begin(
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
            let (hostname, service_labels) = self.names_for(task);
            prepare::Order {
                runtime: Arc::clone(&self.options.runtime),
                secrets: Arc::clone(&self.options.secrets),
                files: self.files.clone(),
                node: self.options.node.clone(),
                hostname,
                service_labels,
                task: task.clone(),
                address: memory.address,
            }
        });
        self.begin_work(&task.id, memory, container, work, now, prepare);
    }

    pub(super) fn begin_work(
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

    /// This node's name, and the labels of a task's service.
    fn names_for(&self, task: &Task) -> (String, BTreeMap<String, String>) {
        self.options.cluster.read(|state| {
            let node = state.nodes().get(&self.options.node);
            let service = state.service(&task.service);
            (
                node.map_or_else(String::new, |node| node.hostname.clone()),
                service.map_or_else(BTreeMap::new, |service| service.spec.labels.clone()),
            )
        })
    }

    /// An address that no container of this node has or is about to get.
    fn free_address(&self) -> Option<Ipv4Addr> {
        let chosen = self.memories.values().filter_map(|memory| memory.address);
        // Containers of the history do not start again.
        let history = self.history();
        let live = self
            .containers
            .values()
            .filter(|facts| !history.contains(&facts.task));
        let unknown = self.inspections.all_unknown().filter_map(|listed| listed.address);
        let taken = live.filter_map(|facts| facts.address).chain(unknown);
        self.options
            .block
            .free(&taken.chain(chosen).collect(), self.last_address)
    }

    /// Starts the probe of a running container that needs one, and stops any other.
    pub(super) fn keep_probe(&self, task: &Task, memory: &mut TaskMemory) {
        let check = task.spec.container_spec.healthcheck.as_ref();
        let running = self
            .containers
            .get(&task.id)
            .filter(|facts| facts.phase == Phase::Running && task.desired.is_wanted());
        match (running, check.filter(|check| probe::is_ours(Some(check)))) {
            (Some(facts), Some(check)) if memory.probe.is_none() => {
                let watch = probe::watch(
                    task.id.clone(),
                    check.clone(),
                    facts.reached_at,
                    self.probe_results.0.clone(),
                );
                memory.probe = Some(Probing {
                    health: Health::Starting,
                    task: tokio::spawn(watch).abort_handle(),
                });
            }
            (Some(_), Some(_)) => {}
            (None, _) | (_, None) => memory.probe = None,
        }
    }

    /// Updates whether a draining container still has connections; if that cannot be read, it counts as busy.
    pub(super) fn count_connections(
        &self,
        memory: &mut TaskMemory,
        container: Option<&ContainerFacts>,
        now: Timestamp,
    ) {
        if let (Some(drain), Some(pid)) = (&mut memory.drain, container.and_then(|facts| facts.pid))
            && now >= drain.since + machine::SETTLE
        {
            drain.busy = connections::are_open(pid, &memory.ports).unwrap_or(true);
        }
    }

    /// Records the task's program, so that the next agent need not extract the image again.
    pub(super) fn remember_program(&self, task: &Task, memory: &TaskMemory) {
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
                "cannot record the task's program"
            );
        }
    }

    /// Records the program to run next, and asks the agent to stop for it.
    pub(super) fn give_way(&self, task: &Task, memory: &mut TaskMemory) {
        let programs = &self.options.programs;
        match memory.programs.take() {
            Some(AgentPrograms { wanted, .. }) if programs.has(&wanted) => {
                let program = wanted;
                info!(
                    task = task.name(),
                    program = program.short(),
                    "replacing the agent by another program"
                );
                match programs.change(|record| record.deploy(task.id.as_str(), program)) {
                    Ok(()) => self.options.replace.cancel(),
                    Err(error) => memory.refused = Some(error_chain(&error)),
                }
            }
            // The next pass prepares it again.
            Some(_) | None => {}
        }
    }
}
