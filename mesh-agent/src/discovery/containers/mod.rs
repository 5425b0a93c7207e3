//! The containers of this node's tasks, Swarm's or the orchestrator's, and how to reach each without the
//! overlay network: follows the local engine's events and inspects each container that appears. A container
//! whose process or veth is gone is gone, whatever the engine still says. Imports the model and `docker`.

mod inspect;
mod process;
mod sandbox;
#[cfg(test)]
mod tests;
mod veths;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwapOption;
use bollard::{
    models::{EventActor, EventMessage, EventMessageTypeEnum},
    query_parameters::ListContainersOptionsBuilder,
};
use futures_util::StreamExt;
use mesh_support::watched::{Newest as _, Watched as _};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

pub use self::inspect::Scheduler;
use self::{
    inspect::{InspectError, Inspection, NetworkId, Reachable, inspect},
    process::Process,
    veths::Veths,
};
use super::NetworkState;
use crate::{
    backoff::Backoff,
    docker::{Docker, DockerError},
    model::{Attached, Container, TaskId},
};

/// The containers are listed again this often, independently of events.
const RELIST: Duration = Duration::from_secs(15);
/// A container that could not be inspected is tried again after this time, …
const RETRY: Duration = Duration::from_millis(200);
/// … which doubles with each failure, up to this.
const LONGEST_RETRY: Duration = Duration::from_secs(10);

/// The node's containers, as published on a `tokio::sync::watch` channel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerState {
    /// Running containers of tasks that the mesh can reach.
    pub containers: BTreeMap<TaskId, Container>,
    /// Their networks, by the host ends of their veths.
    pub attached: BTreeMap<u32, Attached>,
    /// The tasks of running containers that the mesh cannot reach: no bridge of this host leads to them.
    pub out_of_reach: BTreeSet<TaskId>,
    /// Why the engine cannot be followed at the moment; `None` while it can. The last list stays in force.
    pub trouble: Option<String>,
    /// Whether the list has been read at least once, and each container on it inspected.
    pub listed: bool,
}

/// Follows the local engine's containers.
pub struct ContainerWatcher {
    docker: Docker,
    scheduler: Scheduler,
    hint: Arc<dyn Fn() + Send + Sync>,
    state: watch::Sender<ContainerState>,
    known: BTreeMap<ContainerId, Knowledge>,
    /// Whether the engine's list has been read at least once.
    read: bool,
    ingress: Arc<ArcSwapOption<NetworkId>>,
    /// The node's network; its sender lives as long as the agent.
    network: watch::Receiver<Option<NetworkState>>,
    veths: Veths,
    /// Waits for the ends of reached containers' processes.
    processes: JoinSet<(ContainerId, Option<String>)>,
}

type ContainerId = String;

/// What is known about a running container of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Knowledge {
    /// It is being inspected, after so many failures.
    Pending { failures: u32 },
    /// It could not be inspected, and will be tried again.
    Failed { failures: u32, retry: Instant },
    /// It was inspected, and this is how to reach it. It is inspected again at `verify`: while no events
    /// came, it may have been restarted with another address.
    Reached {
        reachable: Reachable,
        verify: Option<Instant>,
    },
    /// It takes no part in the mesh: it has the host's network, is not on the ingress network, or its process
    /// has ended.
    Apart,
    /// It is a replica of this task, but no bridge of this host leads to it.
    OutOfReach(TaskId),
}

/// Why following the engine ended.
#[derive(Debug, thiserror::Error)]
enum Interruption {
    #[error(transparent)]
    Docker(#[from] DockerError),
    #[error("Docker closed its stream of events, probably because it is restarting")]
    EventsEnded,
}

type Inspected = (ContainerId, Result<Inspection, InspectError>);

impl fmt::Debug for ContainerWatcher {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ContainerWatcher")
            .field("socket", &self.docker.socket())
            .field("known", &self.known)
            .finish_non_exhaustive()
    }
}

impl ContainerWatcher {
    /// A watcher; nothing happens before [`ContainerWatcher::run`]. `hint` is called at every local event
    /// that precedes a change of a task's state, and must not block.
    #[must_use]
    pub fn new(
        docker: Docker,
        scheduler: Scheduler,
        network: watch::Receiver<Option<NetworkState>>,
        hint: impl Fn() + Send + Sync + 'static,
    ) -> (Self, watch::Receiver<ContainerState>) {
        let (state, receiver) = watch::channel(ContainerState::default());
        let watcher = Self {
            docker,
            scheduler,
            hint: Arc::new(hint),
            state,
            known: BTreeMap::new(),
            read: false,
            ingress: Arc::default(),
            network,
            veths: Veths::default(),
            processes: JoinSet::new(),
        };
        (watcher, receiver)
    }

    /// Follows the engine until cancelled, through any failure of it.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut backoff = Backoff::default();
        loop {
            let Some(interruption) = shutdown.run_until_cancelled(self.follow(&mut backoff)).await else {
                return;
            };
            self.docker.reset();
            let trouble = mesh_support::error_chain(&interruption);
            self.state.send_if_modified(|state| {
                let changed = state.trouble.as_ref() != Some(&trouble);
                if changed {
                    warn!(
                        trouble,
                        "cannot follow local containers; the last list stays in force"
                    );
                }
                state.trouble = Some(trouble);
                changed
            });
            if shutdown
                .run_until_cancelled(self.pause(backoff.next()))
                .await
                .is_none()
            {
                return;
            }
        }
    }

    /// Waits before the engine is tried again. Veths can go meanwhile.
    async fn pause(&mut self, wait: Duration) {
        let mut network = self.network.clone();
        let mut over = std::pin::pin!(sleep(wait));
        loop {
            tokio::select! {
                () = &mut over => return,
                Ok(()) = network.changed() => self.lose_veths(network.newest().as_ref()),
                Some(Ok((id, started))) = self.processes.join_next() => self.process_ended(&id, started),
            }
        }
    }

    async fn follow(&mut self, backoff: &mut Backoff) -> Interruption {
        match self.try_follow(backoff).await {
            Ok(never) => match never {},
            Err(interruption) => interruption,
        }
    }

    async fn try_follow(&mut self, backoff: &mut Backoff) -> Result<std::convert::Infallible, Interruption> {
        // Subscribe first, list afterwards: what changes in between is seen twice, not never.
        let mut events = self.docker.events(&["container", "network"]).await?;
        let mut network = self.network.clone();
        self.lose_veths(network.newest().as_ref());
        let mut inspections: JoinSet<Inspected> = JoinSet::new();
        // Inspections that were under way when the last stream ended were cancelled with it. What took no
        // part may have been restarted.
        self.known
            .retain(|_, knowledge| !matches!(knowledge, Knowledge::Pending { .. } | Knowledge::Apart));
        let mut listed = self.relist(&mut inspections).await?;
        self.doubt_all(Instant::now());
        backoff.reset();
        loop {
            let retry = self.known.values().filter_map(|knowledge| match knowledge {
                Knowledge::Failed { retry, .. } => Some(*retry),
                Knowledge::Reached { verify, .. } => *verify,
                Knowledge::Pending { .. } | Knowledge::Apart | Knowledge::OutOfReach(_) => None,
            });
            let retry = retry.min();
            tokio::select! {
                event = events.next() => {
                    let event = event.ok_or(Interruption::EventsEnded)??;
                    self.event(&event, &mut inspections);
                }
                Ok(()) = network.changed() => self.lose_veths(network.newest().as_ref()),
                Some(Ok((id, started))) = self.processes.join_next() => self.process_ended(&id, started),
                Some(Ok((id, inspected))) = inspections.join_next() => self.inspected(id, inspected),
                () = sleep_until(retry.unwrap_or(listed)), if retry.is_some() => self.retry(&mut inspections),
                () = sleep_until(listed + RELIST) => listed = self.relist(&mut inspections).await?,
            }
        }
    }

    /// Lists the running containers of tasks, forgets the others, inspects the new ones.
    async fn relist(&mut self, inspections: &mut JoinSet<Inspected>) -> Result<Instant, DockerError> {
        let connection = self.docker.connection().await?;
        let filters = [
            ("label".to_owned(), vec![self.scheduler.task_label().to_owned()]),
            ("status".to_owned(), vec!["running".to_owned()]),
        ]
        .into();
        let options = ListContainersOptionsBuilder::new().filters(&filters).build();
        let result = connection.bollard.list_containers(Some(options)).await;
        let running: BTreeSet<ContainerId> = self
            .docker
            .check(result, "container ls")?
            .into_iter()
            .filter_map(|container| container.id)
            .collect();
        self.known.retain(|id, _| running.contains(id));
        for id in running {
            if !self.known.contains_key(&id) {
                self.inspect(id, 0, inspections);
            }
        }
        if self.state.current().trouble.is_some() {
            info!("following local containers again");
        }
        self.state
            .send_if_modified(|state| state.trouble.take().is_some());
        self.read = true;
        self.publish();
        Ok(Instant::now())
    }

    fn event(&mut self, event: &EventMessage, inspections: &mut JoinSet<Inspected>) {
        let Some(actor) = &event.actor else { return };
        if event.typ == Some(EventMessageTypeEnum::NETWORK) {
            self.network_event(event.action.as_deref().unwrap_or_default(), actor, inspections);
            return;
        }
        let task = actor
            .attributes
            .as_ref()
            .and_then(|labels| labels.get(self.scheduler.task_label()));
        let (Some(id), Some(_)) = (&actor.id, task) else {
            return;
        };
        match event.action.as_deref().unwrap_or_default() {
            "start" => match self.known.get_mut(id) {
                None => self.inspect(id.clone(), 0, inspections),
                // Streams overlap, so this may be its first start.
                Some(Knowledge::Reached { verify, .. }) => *verify = Some(Instant::now()),
                Some(
                    Knowledge::Pending { .. }
                    | Knowledge::Failed { .. }
                    | Knowledge::Apart
                    | Knowledge::OutOfReach(_),
                ) => {}
            },
            "die" | "destroy" => {
                if self.known.remove(id).is_some() {
                    self.publish();
                }
            }
            "kill" => {}
            action if action.starts_with("health_status") => {}
            _ => return,
        }
        (self.hint)();
    }

    /// A container that is connected to a network, or no longer, can have another address and answers other
    /// clients by itself. It stays in use while it is inspected again.
    fn network_event(&self, action: &str, network: &EventActor, inspections: &mut JoinSet<Inspected>) {
        let attributes = network.attributes.as_ref();
        let container = attributes.and_then(|attributes| attributes.get("container"));
        if let Some(id) = container
            && matches!(action, "connect" | "disconnect")
            && matches!(
                self.known.get(id),
                Some(Knowledge::Reached { .. } | Knowledge::OutOfReach(_))
            )
        {
            self.spawn_inspection(id.clone(), None, inspections);
        }
    }

    fn inspect(&mut self, id: ContainerId, failures: u32, inspections: &mut JoinSet<Inspected>) {
        self.known.insert(id.clone(), Knowledge::Pending { failures });
        self.spawn_inspection(id, None, inspections);
    }

    fn spawn_inspection(
        &self,
        id: ContainerId,
        known_start: Option<String>,
        inspections: &mut JoinSet<Inspected>,
    ) {
        let docker = self.docker.clone();
        let scheduler = self.scheduler;
        let ingress = Arc::clone(&self.ingress);
        inspections.spawn(async move {
            let inspected = inspect(&docker, scheduler, &ingress, &id, known_start.as_deref()).await;
            (id, inspected)
        });
    }

    /// Removes the containers whose veths are gone, before the engine reports it. Each is inspected again: it
    /// may still run, and have been connected to its network again.
    fn lose_veths(&mut self, network: Option<&NetworkState>) {
        let Some(network) = network else { return };
        let gone = self.veths.update(&network.container_interfaces);
        let mut lost = false;
        for (id, knowledge) in &mut self.known {
            if let Knowledge::Reached { reachable, .. } = knowledge
                && gone.contains(&reachable.container.host_interface)
            {
                debug!(
                    container = id,
                    task = reachable.task,
                    "the container's veth is gone"
                );
                *knowledge = Knowledge::Failed {
                    failures: 0,
                    retry: Instant::now() + RETRY,
                };
                lost = true;
            }
        }
        if lost {
            self.publish();
            (self.hint)();
        }
    }

    /// Removes a container whose process has ended, before the engine reports it.
    fn process_ended(&mut self, id: &str, started: Option<String>) {
        match self.known.get_mut(id) {
            Some(knowledge @ Knowledge::Reached { .. }) => {
                if let Knowledge::Reached { reachable, .. } = knowledge
                    && reachable.started != started
                {
                    // It has been restarted since.
                    return;
                }
                debug!(container = id, "the container's process has ended");
                *knowledge = Knowledge::Apart;
                self.publish();
                (self.hint)();
            }
            Some(
                Knowledge::Pending { .. }
                | Knowledge::Failed { .. }
                | Knowledge::Apart
                | Knowledge::OutOfReach(_),
            )
            | None => {}
        }
    }

    /// After a gap in the events: has every container inspected again, each of which stays in use meanwhile.
    fn doubt_all(&mut self, now: Instant) {
        for knowledge in self.known.values_mut() {
            if let Knowledge::Reached { verify, .. } = knowledge {
                *verify = Some(now);
            }
        }
    }

    fn retry(&mut self, inspections: &mut JoinSet<Inspected>) {
        let now = Instant::now();
        let mut failed = Vec::new();
        let mut doubted = Vec::new();
        for (id, knowledge) in &mut self.known {
            match knowledge {
                Knowledge::Failed { failures, retry } if *retry <= now => {
                    failed.push((id.clone(), *failures));
                }
                Knowledge::Reached { reachable, verify } if verify.is_some_and(|verify| verify <= now) => {
                    *verify = None;
                    doubted.push((id.clone(), reachable.started.clone()));
                }
                Knowledge::Pending { .. }
                | Knowledge::Failed { .. }
                | Knowledge::Reached { .. }
                | Knowledge::Apart
                | Knowledge::OutOfReach(_) => {}
            }
        }
        for (id, failures) in failed {
            self.inspect(id, failures, inspections);
        }
        for (id, started) in doubted {
            self.spawn_inspection(id, started, inspections);
        }
    }

    fn inspected(&mut self, id: ContainerId, inspected: Result<Inspection, InspectError>) {
        // A container that died while it was being inspected is no longer known.
        let Some(knowledge) = self.known.get_mut(&id) else {
            return;
        };
        let failures = match knowledge {
            Knowledge::Pending { failures } => *failures,
            Knowledge::Reached { verify, .. } => {
                if let Err(error) = &inspected {
                    // The engine's failure is not the container's.
                    debug!(container = id, %error, "cannot verify a container's network");
                    *verify = Some(Instant::now() + LONGEST_RETRY);
                    return;
                }
                0
            }
            Knowledge::OutOfReach(_) if inspected.is_ok() => 0,
            Knowledge::Failed { .. } | Knowledge::Apart | Knowledge::OutOfReach(_) => return,
        };
        *knowledge = match inspected {
            Ok(Inspection::Same) => return,
            Ok(Inspection::Reachable(reachable)) => {
                debug!(?reachable, "container found");
                if let Some(process) = reachable.pid.and_then(|pid| Process::of_container(pid, &id)) {
                    let (id, started) = (id.clone(), reachable.started.clone());
                    self.processes.spawn(async move {
                        process.ended().await;
                        (id, started)
                    });
                }
                Knowledge::Reached {
                    reachable,
                    verify: None,
                }
            }
            Ok(Inspection::Apart) => {
                debug!(container = id, "container takes no part in the mesh");
                Knowledge::Apart
            }
            Ok(Inspection::OutOfReach(task)) => {
                warn!(
                    container = id,
                    task,
                    "no bridge of this host leads to a replica's container, whose default route is of another \
                     network: the mesh cannot reach it"
                );
                Knowledge::OutOfReach(task)
            }
            Err(error) => {
                let error = mesh_support::error_chain(&error);
                // Most often the first failures are of a container that is just being stopped.
                if failures == 3 {
                    warn!(
                        container = id,
                        error, "cannot inspect a container's network, retrying"
                    );
                } else {
                    debug!(container = id, error, "cannot inspect a container's network");
                }
                let wait = RETRY.saturating_mul(1 << failures.min(8)).min(LONGEST_RETRY);
                Knowledge::Failed {
                    failures: failures.saturating_add(1),
                    retry: Instant::now() + wait,
                }
            }
        };
        self.publish();
    }

    fn publish(&self) {
        let reached = self.known.values().filter_map(|knowledge| match knowledge {
            Knowledge::Reached { reachable, .. } => Some(reachable),
            Knowledge::Pending { .. }
            | Knowledge::Failed { .. }
            | Knowledge::Apart
            | Knowledge::OutOfReach(_) => None,
        });
        let out_of_reach: BTreeSet<_> = self
            .known
            .values()
            .filter_map(|knowledge| match knowledge {
                Knowledge::OutOfReach(task) => Some(task.clone()),
                Knowledge::Pending { .. }
                | Knowledge::Failed { .. }
                | Knowledge::Reached { .. }
                | Knowledge::Apart => None,
            })
            .collect();
        let containers: BTreeMap<_, _> = reached
            .clone()
            .map(|reachable| (reachable.task.clone(), reachable.container))
            .collect();
        let attached: BTreeMap<_, _> = reached
            .filter_map(|reachable| Some((reachable.container.host_interface, reachable.attached.clone()?)))
            .collect();
        // Before every new container has been inspected, the list would cut the connections of those that are
        // missing.
        let uninspected = |knowledge: &Knowledge| matches!(knowledge, Knowledge::Pending { failures: 0 });
        let listed = self.read && !self.known.values().any(uninspected);
        self.state.send_if_modified(|state| {
            let same = (&state.containers, &state.attached, &state.out_of_reach)
                == (&containers, &attached, &out_of_reach);
            let changed = !same || (listed && !state.listed);
            state.containers = containers;
            state.attached = attached;
            state.out_of_reach = out_of_reach;
            state.listed |= listed;
            changed
        });
    }
}
