//! The node's Docker Engine as the orchestrator's runtime.

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use bollard::{
    errors::Error,
    models::{ContainerCreateResponse, EventMessage, NetworkConnectRequest},
    query_parameters::{
        CreateContainerOptionsBuilder, InspectContainerOptions, KillContainerOptionsBuilder,
        ListContainersOptionsBuilder, RemoveContainerOptionsBuilder, StartContainerOptions,
    },
};
use futures_util::{StreamExt, stream::BoxStream};
use mesh_orchestrator::objects::NodeId;
use tracing::debug;

mod http;
#[cfg(test)]
mod tests;

use super::{
    ArchiveStream, ContainerFacts, ContainerId, EngineDescription, ImageReference, ListedContainer, LogQuery,
    LogStream, Pulled, RegistryCredential, Runtime, RuntimeError, Wanted, create, facts, label, logs,
};
use crate::docker::{Connection, Docker, DockerError, shortened};

/// The engine's status while it shuts down.
const UNAVAILABLE: u16 = 503;
const NOT_FOUND: u16 = 404;
const NOT_MODIFIED: u16 = 304;
const CONFLICT: u16 = 409;

/// The node's Docker Engine.
#[derive(Clone)]
pub struct DockerRuntime {
    docker: Docker,
    /// How long a registry may take to answer at all where the node has an image of that name.
    patience: Duration,
}

impl std::fmt::Debug for DockerRuntime {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("DockerRuntime")
            .field("socket", &self.docker.socket())
            .finish()
    }
}

impl DockerRuntime {
    /// A runtime on an engine. Does no I/O.
    #[must_use]
    pub fn new(docker: Docker) -> Self {
        Self {
            docker,
            patience: http::PULL_PATIENCE,
        }
    }

    async fn connection(&self) -> Result<Arc<Connection>, RuntimeError> {
        self.docker.connection().await.map_err(RuntimeError::Unavailable)
    }

    /// Tells a refusal by the engine from an unavailable engine.
    fn check<T>(
        &self,
        result: Result<T, Error>,
        operation: &'static str,
        subject: &str,
    ) -> Result<T, RuntimeError> {
        match result {
            Ok(done) => Ok(done),
            Err(Error::DockerResponseServerError { status_code, message }) if status_code != UNAVAILABLE => {
                Err(refused(operation, subject, &message))
            }
            Err(source) => {
                self.docker.reset();
                Err(RuntimeError::Unavailable(DockerError::Request {
                    request: operation,
                    source,
                }))
            }
        }
    }

    async fn has_image(&self, image: &str) -> Result<bool, RuntimeError> {
        let connection = self.connection().await?;
        match connection.bollard.inspect_image(image).await {
            Err(error) if status(&error) == Some(NOT_FOUND) => Ok(false),
            result => self.check(result, "inspect image", image).map(|_| true),
        }
    }
}

fn status(error: &Error) -> Option<u16> {
    match error {
        Error::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

fn refused(operation: &'static str, subject: &str, message: &str) -> RuntimeError {
    RuntimeError::Refused {
        operation,
        subject: subject.to_owned(),
        message: shortened(message),
    }
}

fn made_by(node: &NodeId) -> HashMap<String, Vec<String>> {
    HashMap::from([("label".to_owned(), vec![format!("{}={node}", label::NODE)])])
}

#[async_trait]
impl Runtime for DockerRuntime {
    async fn describe(&self) -> Result<EngineDescription, RuntimeError> {
        let connection = self.connection().await?;
        let info = connection.bollard.info().await;
        Ok(facts::engine(self.check(info, "describe", "itself")?))
    }

    async fn containers(&self, node: &NodeId) -> Result<Vec<ListedContainer>, RuntimeError> {
        let connection = self.connection().await?;
        let options = ListContainersOptionsBuilder::new()
            .all(true)
            .filters(&made_by(node))
            .build();
        let listed = connection.bollard.list_containers(Some(options)).await;
        let listed = self.check(listed, "list", "containers")?;
        Ok(listed.into_iter().filter_map(facts::listed).collect())
    }

    async fn container(&self, container: &str) -> Result<Option<ContainerFacts>, RuntimeError> {
        let connection = self.connection().await?;
        let inspected = connection
            .bollard
            .inspect_container(container, None::<InspectContainerOptions>)
            .await;
        match inspected {
            Err(error) if status(&error) == Some(NOT_FOUND) => Ok(None),
            result => Ok(facts::container(&self.check(
                result,
                "inspect container",
                container,
            )?)),
        }
    }

    async fn changes(&self, node: &NodeId) -> Result<BoxStream<'static, ContainerId>, RuntimeError> {
        let events = self.docker.events(&["container"]).await;
        let events = events.map_err(RuntimeError::Unavailable)?;
        let node = node.clone();
        let relevant = move |event: EventMessage| {
            let actor = event.actor?;
            let labels = actor.attributes?;
            let is_ours = labels.get(label::NODE).map(String::as_str) == Some(node.as_str());
            // Every run of a health check is an exec event; none of them matters here.
            let matters = !event.action.is_some_and(|action| action.starts_with("exec_"));
            actor.id.filter(|_| is_ours && matters)
        };
        Ok(events
            .take_while(|event| std::future::ready(event.is_ok()))
            .filter_map(move |event| std::future::ready(event.ok().and_then(&relevant)))
            .boxed())
    }

    async fn pull(
        &self,
        image: &str,
        credential: Option<&RegistryCredential>,
    ) -> Result<Pulled, RuntimeError> {
        if ImageReference::parse(image).is_pinned() && self.has_image(image).await? {
            return Ok(Pulled::Fresh);
        }
        let is_here = self.has_image(image).await?;
        match self.pull_from_registry(image, credential, is_here).await {
            Ok(()) => Ok(Pulled::Fresh),
            Err(error @ RuntimeError::Unavailable(_)) => Err(error),
            Err(error) if is_here => Ok(Pulled::Local(mesh_support::error_chain(&error))),
            Err(error) => Err(error),
        }
    }

    async fn digest(
        &self,
        image: &str,
        credential: Option<&RegistryCredential>,
    ) -> Result<String, RuntimeError> {
        self.look_up_digest(image, credential).await
    }

    async fn log_in(&self, registry: &str, credential: &RegistryCredential) -> Result<(), RuntimeError> {
        self.check_login(registry, credential).await
    }

    async fn create(&self, wanted: Wanted<'_>) -> Result<ContainerId, RuntimeError> {
        let creation = create::creation(&wanted);
        let connection = self.connection().await?;
        let options = CreateContainerOptionsBuilder::new().name(&creation.name).build();
        let created = connection
            .bollard
            .create_container(Some(options), creation.body)
            .await;
        let ContainerCreateResponse { id, warnings } =
            self.check(created, "create container", &creation.name)?;
        for warning in warnings {
            debug!(container = creation.name, warning, "warning from Docker");
        }
        for (network, endpoint) in creation.more_networks {
            let request = NetworkConnectRequest {
                container: id.clone(),
                endpoint_config: Some(endpoint),
            };
            let connected = connection.bollard.connect_network(&network, request).await;
            if let Err(error) = self.check(connected, "connect a container to network", &network) {
                // Never start a container that lacks a network; the next attempt creates it again.
                self.remove(&id).await?;
                return Err(error);
            }
        }
        Ok(id)
    }

    async fn start(&self, container: &str) -> Result<(), RuntimeError> {
        let connection = self.connection().await?;
        let started = connection
            .bollard
            .start_container(container, None::<StartContainerOptions>)
            .await;
        match started {
            Err(error) if status(&error) == Some(NOT_MODIFIED) => Ok(()),
            Err(error) if status(&error) == Some(NOT_FOUND) && names(&error, container) => {
                Err(RuntimeError::Gone(format!("container {container}")))
            }
            result => self.check(result, "start container", container),
        }
    }

    async fn signal(&self, container: &str, signal: &str) -> Result<(), RuntimeError> {
        let connection = self.connection().await?;
        let options = KillContainerOptionsBuilder::new().signal(signal).build();
        match connection.bollard.kill_container(container, Some(options)).await {
            // It ended by itself, or is gone.
            Err(error) if matches!(status(&error), Some(CONFLICT | NOT_FOUND)) => Ok(()),
            result => self.check(result, "signal container", container),
        }
    }

    async fn remove(&self, container: &str) -> Result<(), RuntimeError> {
        let connection = self.connection().await?;
        let options = RemoveContainerOptionsBuilder::new().v(true).force(false).build();
        match connection
            .bollard
            .remove_container(container, Some(options))
            .await
        {
            Err(error) if status(&error) == Some(NOT_FOUND) => Ok(()),
            result => self.check(result, "remove container", container),
        }
    }

    async fn archive(&self, container: &str, path: &str) -> Result<ArchiveStream, RuntimeError> {
        self.read_archive(container, path).await
    }

    async fn logs(&self, container: &str, query: LogQuery) -> Result<LogStream, RuntimeError> {
        let connection = self.connection().await?;
        let mut output = Box::pin(connection.bollard.logs(container, Some(query.options())));
        // The first item shows whether the engine can read this container's log at all.
        match output.next().await {
            None => Ok(futures_util::stream::empty().boxed()),
            Some(first) => {
                let first = self.check(first, "read the log of container", container)?;
                let first = futures_util::stream::iter([Ok(first)]);
                Ok(logs::lines(first.chain(output)))
            }
        }
    }
}

/// Whether an error names the container itself. The engine also answers 404 for something that a container
/// needs, such as a network or a device; that is a refusal.
fn names(error: &Error, container: &str) -> bool {
    match error {
        Error::DockerResponseServerError { message, .. } => message.contains(container),
        _ => false,
    }
}
