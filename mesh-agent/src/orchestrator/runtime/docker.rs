//! The node's Docker Engine as the orchestrator's runtime. Depends on `source::docker` for the connection.

use std::{collections::HashMap, io, sync::Arc, time::Duration};

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
use serde::Deserialize;
use tokio::time::timeout;
use tracing::debug;

use super::{
    ArchiveStream, ContainerFacts, ContainerId, EngineDescription, ImageReference, LogQuery, LogStream,
    Pulled, RegistryCredential, Runtime, RuntimeError, Wanted, create, facts, label, logs,
};
use crate::source::{Docker, DockerError, docker::Connection};

/// How much of the engine's words an error repeats.
const MAX_MESSAGE_CHARS: usize = 512;
/// How long a registry may say nothing during a pull.
const PULL_SILENCE: Duration = Duration::from_secs(120);
/// The longest line of a pull's progress.
const MAX_PROGRESS_BYTES: usize = 1 << 20;
/// The engine's answer while it shuts down.
const UNAVAILABLE: u16 = 503;
const NOT_FOUND: u16 = 404;
const NOT_MODIFIED: u16 = 304;
const CONFLICT: u16 = 409;

/// The node's Docker Engine.
#[derive(Clone)]
pub struct DockerRuntime {
    docker: Docker,
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
        Self { docker }
    }

    async fn connection(&self) -> Result<Arc<Connection>, RuntimeError> {
        self.docker.connection().await.map_err(RuntimeError::Unavailable)
    }

    /// Tells the engine's no from its absence.
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

    /// By hand: the client library writes the credentials in an alphabet that engines misread.
    async fn pull_afresh(
        &self,
        image: &str,
        credential: Option<&RegistryCredential>,
    ) -> Result<(), RuntimeError> {
        let reference = ImageReference::parse(image);
        let connection = self.connection().await?;
        let mut request = connection
            .post("/images/create")
            .query(&[("fromImage", reference.name), ("tag", reference.version)]);
        if let Some(credential) = credential {
            request = request.header("X-Registry-Auth", credential.header(reference.registry()));
        }
        let unavailable = |source| {
            self.docker.reset();
            RuntimeError::Unavailable(DockerError::Get {
                path: "/images/create",
                source,
            })
        };
        let silent = |_| refused("pull", image, "the registry has said nothing for two minutes");
        let mut response = timeout(PULL_SILENCE, request.send())
            .await
            .map_err(silent)?
            .map_err(unavailable)?;
        let accepted = response.status().is_success();
        let mut progress = Vec::new();
        while let Some(chunk) = timeout(PULL_SILENCE, response.chunk())
            .await
            .map_err(silent)?
            .map_err(unavailable)?
        {
            progress.extend_from_slice(&chunk);
            let read = progress
                .iter()
                .rposition(|byte| *byte == b'\n')
                .map_or(0, |end| end + 1);
            for line in progress[..read].split(|byte| *byte == b'\n') {
                if let Some(error) = pull_error(line) {
                    return Err(refused("pull", image, &error));
                }
            }
            progress.drain(..read);
            if progress.len() > MAX_PROGRESS_BYTES {
                return Err(refused("pull", image, "the engine's answer is not understood"));
            }
        }
        match pull_error(&progress) {
            Some(error) => Err(refused("pull", image, &error)),
            None if !accepted => Err(refused("pull", image, "the engine gives no reason")),
            None => Ok(()),
        }
    }
}

/// What a line of a pull's progress, or a refusal's body, says went wrong.
fn pull_error(line: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Said {
        error: Option<String>,
        message: Option<String>,
    }
    let said: Said = serde_json::from_slice(line).ok()?;
    said.error.or(said.message)
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
        message: message.trim().chars().take(MAX_MESSAGE_CHARS).collect(),
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

    async fn containers(&self, node: &NodeId) -> Result<Vec<ContainerFacts>, RuntimeError> {
        let connection = self.connection().await?;
        let options = ListContainersOptionsBuilder::new()
            .all(true)
            .filters(&made_by(node))
            .build();
        let listed = connection.bollard.list_containers(Some(options)).await;
        let listed = self.check(listed, "list", "containers")?;
        let mut containers = Vec::with_capacity(listed.len());
        for id in listed.into_iter().filter_map(|container| container.id) {
            containers.extend(self.container(&id).await?);
        }
        Ok(containers)
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
            // Each check of a health check is an event, but tells nothing.
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
        match self.pull_afresh(image, credential).await {
            Ok(()) => Ok(Pulled::Fresh),
            Err(error @ RuntimeError::Unavailable(_)) => Err(error),
            Err(error) if self.has_image(image).await? => {
                Ok(Pulled::Local(crate::error::error_chain(&error)))
            }
            Err(error) => Err(error),
        }
    }

    async fn digest(
        &self,
        image: &str,
        credential: Option<&RegistryCredential>,
    ) -> Result<String, RuntimeError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Distribution {
            descriptor: Descriptor,
        }
        #[derive(Deserialize)]
        struct Descriptor {
            digest: String,
        }
        let reference = ImageReference::parse(image);
        let connection = self.connection().await?;
        let name = match reference.is_pinned() {
            true => format!("{}@{}", reference.name, reference.version),
            false => format!("{}:{}", reference.name, reference.version),
        };
        let mut request = connection.get(&format!("/distribution/{name}/json"));
        if let Some(credential) = credential {
            request = request.header("X-Registry-Auth", credential.header(reference.registry()));
        }
        let body = timeout(PULL_SILENCE, async { request.send().await?.bytes().await })
            .await
            .map_err(|_| refused("look up", image, "the registry has said nothing for two minutes"))?
            .map_err(|source| {
                self.docker.reset();
                RuntimeError::Unavailable(DockerError::Get {
                    path: "/distribution",
                    source,
                })
            })?;
        match serde_json::from_slice::<Distribution>(&body) {
            Ok(found) => Ok(found.descriptor.digest),
            Err(_) => {
                let reason = pull_error(&body);
                let reason = reason
                    .as_deref()
                    .unwrap_or("the engine's answer is not understood");
                Err(refused("look up", image, reason))
            }
        }
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
            debug!(container = creation.name, warning, "Docker warns");
        }
        for (network, endpoint) in creation.more_networks {
            let request = NetworkConnectRequest {
                container: id.clone(),
                endpoint_config: Some(endpoint),
            };
            let connected = connection.bollard.connect_network(&network, request).await;
            if let Err(error) = self.check(connected, "connect a container to network", &network) {
                // Half of what was asked for is nothing to start; the next attempt makes it anew.
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
            // It has ended by itself, or is gone.
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
        let connection = self.connection().await?;
        let request = connection
            .get(&format!("/containers/{container}/archive"))
            .query(&[("path", path)]);
        let unavailable = |source| {
            self.docker.reset();
            RuntimeError::Unavailable(DockerError::Get {
                path: "/containers/archive",
                source,
            })
        };
        let silent = |_| refused("copy", path, "the engine has said nothing for two minutes");
        let response = timeout(PULL_SILENCE, request.send())
            .await
            .map_err(silent)?
            .map_err(unavailable)?;
        if !response.status().is_success() {
            let status = response.status();
            let body = response.bytes().await.map_err(unavailable)?;
            let reason = pull_error(&body).unwrap_or_else(|| format!("the engine answered {status}"));
            return Err(refused("copy", path, &reason));
        }
        let chunks = futures_util::stream::try_unfold(response, |mut response| async {
            let chunk = timeout(PULL_SILENCE, response.chunk()).await;
            let chunk = chunk.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
            let chunk = chunk.map_err(io::Error::other)?;
            Ok(chunk.map(|chunk| (chunk, response)))
        });
        Ok(chunks.boxed())
    }

    async fn logs(&self, container: &str, query: LogQuery) -> Result<LogStream, RuntimeError> {
        let connection = self.connection().await?;
        let mut output = Box::pin(connection.bollard.logs(container, Some(query.options())));
        // The first piece tells whether the engine can read this container's log at all.
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

/// The engine also answers 404 for what a container needs (a network, a device): then it says no.
fn names(error: &Error, container: &str) -> bool {
    match error {
        Error::DockerResponseServerError { message, .. } => message.contains(container),
        _ => false,
    }
}
