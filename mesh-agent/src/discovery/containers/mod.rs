//! The containers of this node's tasks, Swarm's or the orchestrator's, and how each is reached without the
//! overlay: follows the local engine's events and looks once into the network of each container that
//! appears. Imports the model and `docker`.

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
use self::inspect::{LookUpError, NetworkId, look_into};
use crate::{
    backoff::Backoff,
    docker::{Docker, DockerError},
    model::{Container, TaskId},
};

/// The containers are listed again this often, whatever the events say.
const RELIST: Duration = Duration::from_secs(15);
/// A container that could not be looked into is tried again after this time, …
const RETRY: Duration = Duration::from_millis(200);
/// … and each time this much later, but no later than this.
const LONGEST_RETRY: Duration = Duration::from_secs(10);

/// The node's containers, as published on a `tokio::sync::watch` channel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerState {
    /// Running containers of tasks that the mesh can reach.
    pub containers: BTreeMap<TaskId, Container>,
    /// What is wrong with the engine just now; `None` while it answers. The last list stays in force.
    pub trouble: Option<String>,
    /// Whether the list has been read at least once, and each container on it looked into.
    pub listed: bool,
}

/// Follows the local engine's containers.
pub struct ContainerWatcher {
    docker: Docker,
    scheduler: Scheduler,
    hint: Arc<dyn Fn() + Send + Sync>,
    state: watch::Sender<ContainerState>,
    known: BTreeMap<ContainerId, Knowledge>,
    /// Whether the engine has been asked for its list at least once.
    read: bool,
    ingress: Arc<ArcSwapOption<NetworkId>>,
}

type ContainerId = String;

/// What is known of one running container of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Knowledge {
    /// It is being looked into; so many times that has failed.
    Pending { failures: u32 },
    /// It will be looked into again.
    Failed { failures: u32, retry: Instant },
    /// It is reached so.
    Reached(TaskId, Container),
    /// It takes no part in the mesh: host network, not on the ingress network, no way to the host.
    Apart,
}

/// Why following the engine ended.
#[derive(Debug, thiserror::Error)]
enum Interruption {
    #[error(transparent)]
    Docker(#[from] DockerError),
    #[error("Docker closed its stream of events; it is restarting")]
    EventsEnded,
}

type Looked = (ContainerId, Result<Option<(TaskId, Container)>, LookUpError>);

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
    /// A watcher; nothing happens before [`ContainerWatcher::run`]. `hint` is called on every local
    /// event that foretells a change of a task's state, and must not block.
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

    /// Follows the engine until cancelled; survives every failure of it.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut backoff = Backoff::default();
        loop {
            let Some(interruption) = shutdown.run_until_cancelled(self.follow(&mut backoff)).await else {
                return;
            };
            self.docker.reset();
            let trouble = mesh_support::error_chain(&interruption);
            self.state.send_if_modified(|state| {
                let news = state.trouble.as_ref() != Some(&trouble);
                if news {
                    warn!(
                        trouble,
                        "local containers cannot be followed; the last list stays in force"
                    );
                }
                state.trouble = Some(trouble);
                news
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
        // Subscribe first, list afterwards: what changes in between is then seen twice, not never.
        let mut events = self.docker.events(&["container"]).await?;
        let mut looks: JoinSet<Looked> = JoinSet::new();
        // Looks that were under way when the last stream ended went with it.
        self.known
            .retain(|_, knowledge| !matches!(knowledge, Knowledge::Pending { .. }));
        let mut listed = self.relist(&mut looks).await?;
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
                    self.event(&event, &mut looks);
                }
                Some(Ok((id, looked))) = looks.join_next() => self.looked(id, looked),
                () = sleep_until(retry.unwrap_or(listed)), if retry.is_some() => self.retry(&mut looks),
                () = sleep_until(listed + RELIST) => listed = self.relist(&mut looks).await?,
            }
        }
    }

    /// Lists the running containers of tasks, forgets the others, looks into the new ones.
    async fn relist(&mut self, looks: &mut JoinSet<Looked>) -> Result<Instant, DockerError> {
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
                self.look(id, 0, looks);
            }
        }
        if self.state.borrow().trouble.is_some() {
            info!("local containers are followed again");
        }
        self.state
            .send_if_modified(|state| state.trouble.take().is_some());
        self.read = true;
        self.publish();
        Ok(Instant::now())
    }

    fn event(&mut self, event: &EventMessage, looks: &mut JoinSet<Looked>) {
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
                    self.look(id.clone(), 0, looks);
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

    fn look(&mut self, id: ContainerId, failures: u32, looks: &mut JoinSet<Looked>) {
        self.known.insert(id.clone(), Knowledge::Pending { failures });
        let docker = self.docker.clone();
        let scheduler = self.scheduler;
        let ingress = Arc::clone(&self.ingress);
        looks.spawn(async move {
            let looked = look_into(&docker, scheduler, &ingress, &id).await;
            (id, looked)
        });
    }

    fn retry(&mut self, looks: &mut JoinSet<Looked>) {
        let now = Instant::now();
        let due: Vec<_> = self
            .known
            .iter()
            .filter_map(|(id, knowledge)| match knowledge {
                Knowledge::Failed { failures, retry } if *retry <= now => Some((id.clone(), *failures)),
                _ => None,
            })
            .collect();
        for (id, failures) in due {
            self.look(id, failures, looks);
        }
    }

    fn looked(&mut self, id: ContainerId, looked: Result<Option<(TaskId, Container)>, LookUpError>) {
        // A container that has died while it was looked into is not known any more.
        let Some(knowledge) = self.known.get_mut(&id) else {
            return;
        };
        let Knowledge::Pending { failures } = *knowledge else {
            return;
        };
        *knowledge = match looked {
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
                // The first failures are most often a container that is just being stopped.
                if failures == 3 {
                    warn!(
                        container = id,
                        error, "cannot look into a container's network; trying on"
                    );
                } else {
                    debug!(container = id, error, "cannot look into a container's network");
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
        // A picture without those that nobody has looked into yet would take their connections.
        let unseen = |knowledge: &Knowledge| matches!(knowledge, Knowledge::Pending { failures: 0 });
        let listed = self.read && !self.known.values().any(unseen);
        self.state.send_if_modified(|state| {
            let news = state.containers != containers || (listed && !state.listed);
            state.containers = containers;
            state.listed |= listed;
            news
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn absent_engine_is_told_as_trouble() {
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
