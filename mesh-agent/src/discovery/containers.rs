//! The containers of this node's tasks, Swarm's or the orchestrator's, and how each is reached without the
//! overlay: follows the local engine's events and looks once into the network of each container that
//! appears. Depends on the model and on `source::docker`.

mod sandbox;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::Ipv4Addr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwapOption;
use bollard::{
    models::{ContainerInspectResponse, EventMessage},
    query_parameters::{InspectContainerOptions, ListContainersOptionsBuilder, ListNetworksOptionsBuilder},
};
use futures_util::StreamExt;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::sandbox::{Sandbox, SandboxError};
use crate::{
    model::{Container, TaskId, orchestrator_label},
    source::{Backoff, Docker, DockerError},
};

/// Whose tasks' containers are looked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scheduler {
    /// Docker Swarm: the mesh names a task by its address on the ingress network.
    #[default]
    Swarm,
    /// The orchestrator: the mesh names a task by an address that is in a label of its container.
    Orchestrator,
}

impl Scheduler {
    fn task_label(self) -> &'static str {
        match self {
            Self::Swarm => "com.docker.swarm.task.id",
            Self::Orchestrator => orchestrator_label::TASK,
        }
    }
}

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

type NetworkId = String;
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

/// Why a container could not be looked into.
#[derive(Debug, thiserror::Error)]
enum LookUpError {
    #[error(transparent)]
    Docker(#[from] DockerError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

/// What the engine says of a task's container.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Described {
    task: TaskId,
    ingress_address: Ipv4Addr,
    sandbox: PathBuf,
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

async fn look_into(
    docker: &Docker,
    scheduler: Scheduler,
    ingress: &ArcSwapOption<NetworkId>,
    id: &str,
) -> Result<Option<(TaskId, Container)>, LookUpError> {
    let connection = docker.connection().await?;
    let inspected = connection
        .bollard
        .inspect_container(id, None::<InspectContainerOptions>)
        .await
        .map_err(|source| DockerError::Request {
            request: "container inspect",
            source,
        })?;
    let described = match scheduler {
        Scheduler::Orchestrator => describe_orchestrated(&inspected),
        Scheduler::Swarm => {
            let mut described = describe_container(&inspected, ingress.load().as_deref());
            if described.is_none() && task_of(&inspected, scheduler).is_some() {
                // The ingress network is made with the Swarm, and can be replaced by one of another name.
                ingress.store(ingress_network(&connection.bollard).await?.map(Arc::new));
                described = describe_container(&inspected, ingress.load().as_deref());
            }
            described
        }
    };
    let Some(described) = described else {
        return Ok(None);
    };
    let found = sandbox::look_up(described.sandbox).await?;
    Ok(found.map(|sandbox| {
        let Sandbox {
            address,
            mac,
            host_interface,
            gateway_mac,
        } = sandbox;
        let container = Container {
            ingress_address: described.ingress_address,
            address,
            mac,
            host_interface,
            gateway_mac,
        };
        (described.task, container)
    }))
}

async fn ingress_network(docker: &bollard::Docker) -> Result<Option<NetworkId>, DockerError> {
    let filters = [("scope".to_owned(), vec!["swarm".to_owned()])].into();
    let options = ListNetworksOptionsBuilder::new().filters(&filters).build();
    let networks = docker
        .list_networks(Some(options))
        .await
        .map_err(|source| DockerError::Request {
            request: "network ls",
            source,
        })?;
    let ingress = networks.into_iter().find(|network| network.ingress == Some(true));
    Ok(ingress.and_then(|network| network.id))
}

fn task_of(inspected: &ContainerInspectResponse, scheduler: Scheduler) -> Option<&TaskId> {
    let labels = inspected.config.as_ref()?.labels.as_ref()?;
    labels.get(scheduler.task_label())
}

fn sandbox_of(inspected: &ContainerInspectResponse) -> Option<PathBuf> {
    let key = inspected.network_settings.as_ref()?.sandbox_key.as_ref()?;
    (!key.is_empty()).then(|| PathBuf::from(key))
}

/// `None` for a container that is not of a task, or has no name in the mesh.
fn describe_orchestrated(inspected: &ContainerInspectResponse) -> Option<Described> {
    let labels = inspected.config.as_ref()?.labels.as_ref()?;
    Some(Described {
        task: task_of(inspected, Scheduler::Orchestrator)?.clone(),
        ingress_address: labels.get(orchestrator_label::ADDRESS)?.parse().ok()?,
        sandbox: sandbox_of(inspected)?,
    })
}

/// `None` for a container that is not of a task, or not on the ingress network.
fn describe_container(
    inspected: &ContainerInspectResponse,
    ingress: Option<&NetworkId>,
) -> Option<Described> {
    let task = task_of(inspected, Scheduler::Swarm)?;
    let settings = inspected.network_settings.as_ref()?;
    let mut networks = settings.networks.as_ref()?.values();
    let endpoint =
        networks.find(|endpoint| endpoint.network_id.is_some() && endpoint.network_id.as_ref() == ingress)?;
    Some(Described {
        task: task.clone(),
        ingress_address: endpoint.ip_address.as_ref()?.parse().ok()?,
        sandbox: sandbox_of(inspected)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `docker inspect` says of a task's container, trimmed.
    fn inspected(networks: &str) -> ContainerInspectResponse {
        let text = format!(
            r#"{{"Config": {{"Labels": {{"com.docker.swarm.task.id": "z7x45pt9rdzcawjpoqmclxvnp"}}}},
                "NetworkSettings": {{"SandboxKey": "/var/run/docker/netns/90c6843d4230",
                                     "Networks": {networks}}}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn task_on_the_ingress_network_is_found_whatever_the_network_is_called() {
        let inspected = inspected(
            r#"{"back": {"NetworkID": "n1", "IPAddress": "10.0.1.3"},
                "front": {"NetworkID": "n2", "IPAddress": "10.0.0.6"}}"#,
        );
        let described = describe_container(&inspected, Some(&"n2".to_owned())).unwrap();
        assert_eq!(described.task, "z7x45pt9rdzcawjpoqmclxvnp");
        assert_eq!(described.ingress_address, Ipv4Addr::new(10, 0, 0, 6));
    }

    #[test]
    fn an_orchestrated_task_is_named_by_its_label() {
        let text = |label: &str| {
            format!(
                r#"{{"Config": {{"Labels": {{"mesh.task.id": "t1", {label} "a": "b"}}}},
                    "NetworkSettings": {{"SandboxKey": "/var/run/docker/netns/90c6843d4230"}}}}"#
            )
        };
        let described = |label| describe_orchestrated(&serde_json::from_str(&text(label)).unwrap());
        let found = described(r#""mesh.task.address": "240.0.0.9","#).unwrap();
        assert_eq!(found.task, "t1");
        assert_eq!(found.ingress_address, Ipv4Addr::new(240, 0, 0, 9));
        assert_eq!(described(""), None);
    }

    #[test]
    fn task_on_the_host_network_takes_no_part() {
        let inspected = inspected(r#"{"host": {"NetworkID": "n3", "IPAddress": ""}}"#);
        assert_eq!(describe_container(&inspected, Some(&"n2".to_owned())), None);
        assert_eq!(describe_container(&inspected, None), None);
    }

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
