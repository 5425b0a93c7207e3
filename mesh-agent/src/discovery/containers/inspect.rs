//! Inspecting one container: what the engine and the container's network namespace say about how to reach it.

use std::{net::Ipv4Addr, path::PathBuf, sync::Arc};

use arc_swap::ArcSwapOption;
use bollard::{
    models::ContainerInspectResponse,
    query_parameters::{InspectContainerOptions, ListNetworksOptionsBuilder},
};

use super::sandbox::{self, Sandbox, SandboxError, Way};
use crate::{
    docker::{Docker, DockerError},
    model::{Attached, Container, TaskId, orchestrator_label},
};

/// The id of a Docker network.
pub(super) type NetworkId = String;

/// Whose tasks' containers to find.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scheduler {
    /// Docker Swarm: the mesh identifies a task by its address on the ingress network.
    #[default]
    Swarm,
    /// The orchestrator: the mesh identifies a task by an address in a label of its container.
    Orchestrator,
}

impl Scheduler {
    /// The label that its containers have; its value is the task's id.
    pub(super) fn task_label(self) -> &'static str {
        match self {
            Self::Swarm => "com.docker.swarm.task.id",
            Self::Orchestrator => orchestrator_label::TASK,
        }
    }
}

/// Why a container could not be inspected.
#[derive(Debug, thiserror::Error)]
pub(super) enum InspectError {
    #[error(transparent)]
    Docker(#[from] DockerError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

/// What inspecting a container found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Inspection {
    /// It takes part in the mesh.
    Reachable(Reachable),
    /// It still runs as it was started before.
    Same,
    /// It takes no part in the mesh.
    Apart,
    /// It is a replica of this task, and no bridge of this host leads to it: its default route is of another
    /// network, such as a macvlan's.
    OutOfReach(TaskId),
}

/// A container that takes part in the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reachable {
    pub(super) task: TaskId,
    pub(super) container: Container,
    /// Its networks.
    pub(super) attached: Option<Attached>,
    /// When it was started, as the engine writes it: each start can bring another address.
    pub(super) started: Option<String>,
    /// Its main process, as the engine numbers it.
    pub(super) pid: Option<i64>,
}

/// What the engine knows about a task's container.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Described {
    task: TaskId,
    ingress_address: Ipv4Addr,
    sandbox: PathBuf,
}

/// Inspects a container and, unless it runs since `known_start`, its network namespace.
pub(super) async fn inspect(
    docker: &Docker,
    scheduler: Scheduler,
    ingress: &ArcSwapOption<NetworkId>,
    id: &str,
    known_start: Option<&str>,
) -> Result<Inspection, InspectError> {
    let connection = docker.connection().await?;
    let inspected = connection
        .bollard
        .inspect_container(id, None::<InspectContainerOptions>)
        .await
        .map_err(|source| DockerError::Request {
            request: "container inspect",
            source,
        })?;
    let started = started_at(&inspected);
    if known_start.is_some() && started.as_deref() == known_start {
        return Ok(Inspection::Same);
    }
    let described = match scheduler {
        Scheduler::Orchestrator => describe_orchestrated(&inspected),
        Scheduler::Swarm => {
            let mut described = describe_container(&inspected, ingress.load().as_deref());
            if described.is_none() && task_of(&inspected, scheduler).is_some() {
                // The ingress network is created with the Swarm, and can be replaced by one of another name.
                ingress.store(ingress_network(&connection.bollard).await?.map(Arc::new));
                described = describe_container(&inspected, ingress.load().as_deref());
            }
            described
        }
    };
    let Some(described) = described else {
        return Ok(Inspection::Apart);
    };
    let sandbox = match sandbox::look_up(described.sandbox).await? {
        Way::ByBridge(sandbox) => sandbox,
        Way::Elsewhere => return Ok(Inspection::OutOfReach(described.task)),
        Way::Nowhere => return Ok(Inspection::Apart),
    };
    let Sandbox {
        address,
        mac,
        host_interface,
        gateway_mac,
        attached,
    } = sandbox;
    Ok(Inspection::Reachable(Reachable {
        task: described.task,
        container: Container {
            ingress_address: described.ingress_address,
            address,
            mac,
            host_interface,
            gateway_mac,
        },
        attached,
        started,
        pid: inspected.state.as_ref().and_then(|state| state.pid),
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
    Ok(ingress.and_then(|network| network.id).filter(|id| !id.is_empty()))
}

fn task_of(inspected: &ContainerInspectResponse, scheduler: Scheduler) -> Option<&TaskId> {
    let labels = inspected.config.as_ref()?.labels.as_ref()?;
    labels.get(scheduler.task_label()).filter(|task| !task.is_empty())
}

fn started_at(inspected: &ContainerInspectResponse) -> Option<String> {
    inspected.state.as_ref()?.started_at.clone()
}

fn sandbox_of(inspected: &ContainerInspectResponse) -> Option<PathBuf> {
    let key = inspected.network_settings.as_ref()?.sandbox_key.as_ref()?;
    (!key.is_empty()).then(|| PathBuf::from(key))
}

/// `None` for a container that is not a task's, or has no address in the mesh.
fn describe_orchestrated(inspected: &ContainerInspectResponse) -> Option<Described> {
    let labels = inspected.config.as_ref()?.labels.as_ref()?;
    Some(Described {
        task: task_of(inspected, Scheduler::Orchestrator)?.clone(),
        ingress_address: labels.get(orchestrator_label::ADDRESS)?.parse().ok()?,
        sandbox: sandbox_of(inspected)?,
    })
}

/// `None` for a container that is not a task's, or is not on the ingress network.
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

    /// What `docker inspect` prints for a task's container, shortened.
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
    fn an_orchestrated_task_is_identified_by_its_label() {
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
}
