//! The containers of this node's tasks, Swarm's or the orchestrator's, and how to reach each without the
//! overlay network: follows the local engine's events and inspects each container that appears. Imports the
//! model and `docker`.

mod inspect;
mod sandbox;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwapOption;
use bollard::{models::EventMessage, query_parameters::ListContainersOptionsBuilder};
use futures_util::StreamExt;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

pub use self::inspect::Scheduler;
use self::inspect::{InspectError, NetworkId, inspect};
use crate::{
    backoff::Backoff,
    docker::{Docker, DockerError},
    model::{Container, TaskId},
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
}

type ContainerId = String;

/// What is known about a running container of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Knowledge {
    /// It is being inspected, after so many failures.
    Pending { failures: u32 },
    /// It could not be inspected, and will be tried again.
    Failed { failures: u32, retry: Instant },
    /// It was inspected, and this is how to reach it.
    Reached(TaskId, Container),
    /// It takes no part in the mesh: it has the host's network, is not on the ingress network, or no veth
    /// leads to it.
    Apart,
}

/// Why following the engine ended.
#[derive(Debug, thiserror::Error)]
enum Interruption {
    #[error(transparent)]
    Docker(#[from] DockerError),
    #[error("Docker closed its stream of events, probably because it is restarting")]
    EventsEnded,
}

type Inspected = (ContainerId, Result<Option<(TaskId, Container)>, InspectError>);

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
                .run_until_cancelled(sleep(backoff.next()))
                .await
                .is_none()
            {
                return;
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
        let mut events = self.docker.events(&["container"]).await?;
        let mut inspections: JoinSet<Inspected> = JoinSet::new();
        // Inspections that were under way when the last stream ended were cancelled with it.
        self.known
            .retain(|_, knowledge| !matches!(knowledge, Knowledge::Pending { .. }));
        let mut listed = self.relist(&mut inspections).await?;
        backoff.reset();
        loop {
            let retry = self.known.values().filter_map(|knowledge| match knowledge {
                Knowledge::Failed { retry, .. } => Some(*retry),
                Knowledge::Pending { .. } | Knowledge::Reached(..) | Knowledge::Apart => None,
            });
            let retry = retry.min();
            tokio::select! {
                event = events.next() => {
                    let event = event.ok_or(Interruption::EventsEnded)??;
                    self.event(&event, &mut inspections);
                }
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
        if self.state.borrow().trouble.is_some() {
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
        let task = actor
            .attributes
            .as_ref()
            .and_then(|labels| labels.get(self.scheduler.task_label()));
        let (Some(id), Some(_)) = (&actor.id, task) else {
            return;
        };
        match event.action.as_deref().unwrap_or_default() {
            "start" => {
                if !self.known.contains_key(id) {
                    self.inspect(id.clone(), 0, inspections);
                }
            }
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

    fn inspect(&mut self, id: ContainerId, failures: u32, inspections: &mut JoinSet<Inspected>) {
        self.known.insert(id.clone(), Knowledge::Pending { failures });
        let docker = self.docker.clone();
        let scheduler = self.scheduler;
        let ingress = Arc::clone(&self.ingress);
        inspections.spawn(async move {
            let inspected = inspect(&docker, scheduler, &ingress, &id).await;
            (id, inspected)
        });
    }

    fn retry(&mut self, inspections: &mut JoinSet<Inspected>) {
        let now = Instant::now();
        let due: Vec<_> = self
            .known
            .iter()
            .filter_map(|(id, knowledge)| match knowledge {
                Knowledge::Failed { failures, retry } => (*retry <= now).then(|| (id.clone(), *failures)),
                Knowledge::Pending { .. } | Knowledge::Reached(..) | Knowledge::Apart => None,
            })
            .collect();
        for (id, failures) in due {
            self.inspect(id, failures, inspections);
        }
    }

    fn inspected(&mut self, id: ContainerId, inspected: Result<Option<(TaskId, Container)>, InspectError>) {
        // A container that died while it was being inspected is no longer known.
        let Some(knowledge) = self.known.get_mut(&id) else {
            return;
        };
        let Knowledge::Pending { failures } = *knowledge else {
            return;
        };
        *knowledge = match inspected {
            Ok(Some((task, container))) => {
                debug!(task, ?container, "container found");
                Knowledge::Reached(task, container)
            }
            Ok(None) => {
                debug!(container = id, "container takes no part in the mesh");
                Knowledge::Apart
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
        let containers: BTreeMap<_, _> = self
            .known
            .values()
            .filter_map(|knowledge| match knowledge {
                Knowledge::Reached(task, container) => Some((task.clone(), *container)),
                Knowledge::Pending { .. } | Knowledge::Failed { .. } | Knowledge::Apart => None,
            })
            .collect();
        // Before every new container has been inspected, the list would cut the connections of those that are
        // missing.
        let uninspected = |knowledge: &Knowledge| matches!(knowledge, Knowledge::Pending { failures: 0 });
        let listed = self.read && !self.known.values().any(uninspected);
        self.state.send_if_modified(|state| {
            let changed = state.containers != containers || (listed && !state.listed);
            state.containers = containers;
            state.listed |= listed;
            changed
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_absent_engine_is_reported_as_trouble() {
        let (watcher, mut state) =
            ContainerWatcher::new(Docker::new("/nonexistent/docker.sock"), Scheduler::Swarm, || {});
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(watcher.run(shutdown.clone()));
        let trouble = state
            .wait_for(|state| state.trouble.is_some())
            .await
            .unwrap()
            .clone();
        assert!(!trouble.listed && trouble.containers.is_empty());
        shutdown.cancel();
        running.await.unwrap();
    }
}
