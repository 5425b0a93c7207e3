//! A node's container runtime: a small trait and its types. Its one implementation is the node's Docker
//! Engine. Knows nothing of the mesh.

mod create;
mod docker;
mod facts;
mod image;
mod logs;
mod template;

use std::{collections::BTreeMap, fmt, io, net::Ipv4Addr, path::PathBuf, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use mesh_orchestrator::{
    objects::{NodeId, Task, TaskId, Timestamp},
    spec::{Platform, Resources},
};

pub use docker::DockerRuntime;
pub use image::{ImageReference, RegistryCredential};
pub use logs::{LogLine, LogQuery, LogStream};

use crate::docker::DockerError;

/// The engine's id of a container.
pub type ContainerId = String;

/// The bytes of a tar archive.
pub type ArchiveStream = BoxStream<'static, io::Result<Bytes>>;

/// Labels on the orchestrator's containers, by which it finds them again.
pub mod label {
    pub use crate::model::orchestrator_label::{ADDRESS, TASK};

    /// The node that created it; a node never touches another's containers.
    pub const NODE: &str = "mesh.node.id";
    /// The task's name, e.g. `web.3`.
    pub const TASK_NAME: &str = "mesh.task.name";
    /// The task's service.
    pub const SERVICE: &str = "mesh.service.id";
    /// That service's name.
    pub const SERVICE_NAME: &str = "mesh.service.name";
}

/// An engine and its machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineDescription {
    /// The machine's host name.
    pub hostname: String,
    /// The engine's configured labels.
    pub labels: BTreeMap<String, String>,
    /// Operating system and architecture.
    pub platform: Platform,
    /// All CPUs and memory of the machine.
    pub resources: Resources,
    /// Its version, e.g. `29.3.1`.
    pub version: String,
    /// Its Swarm state as Docker names it; `inactive` outside any Swarm.
    pub swarm: String,
}

/// A container to create.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// The node that creates it.
    pub node: &'a NodeId,
    /// That node's name in the cluster.
    pub hostname: &'a str,
    /// The labels of the task's service.
    pub service_labels: &'a BTreeMap<String, String>,
    /// The task it runs.
    pub task: &'a Task,
    /// The address by which the mesh identifies it.
    pub address: Option<Ipv4Addr>,
    /// Files with its secrets and configs, to mount.
    pub files: &'a [MountedFile],
}

/// A file of the node that a container mounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountedFile {
    /// Its path on the node.
    pub source: PathBuf,
    /// Its path inside the container.
    pub target: String,
}

/// One of the orchestrator's containers as the engine lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedContainer {
    /// The engine's id.
    pub id: ContainerId,
    /// The task it runs.
    pub task: TaskId,
    /// The address by which the mesh identifies it.
    pub address: Option<Ipv4Addr>,
}

/// One of the orchestrator's containers as the engine describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerFacts {
    /// The engine's id.
    pub id: ContainerId,
    /// The task it runs.
    pub task: TaskId,
    /// The address by which the mesh identifies it.
    pub address: Option<Ipv4Addr>,
    /// Created, running or exited.
    pub phase: Phase,
    /// The result of the engine's health check.
    pub health: Health,
    /// Its first process, in the engine's PID namespace; while it runs.
    pub pid: Option<u32>,
    /// The address at which the node reaches it: on a bridge, or 127.0.0.1 on the host's network.
    pub reached_at: Option<Ipv4Addr>,
    /// Its stop signal; `SIGTERM` unless the specification or the image sets another.
    pub stop_signal: String,
    /// Time from that signal until it is killed.
    pub stop_grace: Duration,
}

/// A container's life cycle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Created, never started.
    Created,
    /// Running.
    Running,
    /// Ended.
    Exited {
        /// Its first process's exit code; 128 plus the number of the signal that ended it.
        code: i32,
        /// Whether it exceeded its memory limit.
        out_of_memory: bool,
        /// The engine's error; empty if there is none.
        error: String,
    },
}

/// A running container's health.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Health {
    /// No health check: running is enough.
    #[default]
    Unchecked,
    /// Not healthy yet.
    Starting,
    /// The last check succeeded.
    Healthy,
    /// It failed too many checks.
    Unhealthy,
}

/// The result of a pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pulled {
    /// The image is the registry's.
    Fresh,
    /// The pull failed for this reason; the node's own image of that name is used.
    Local(String),
}

/// A failed request to the engine.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The engine does not answer. The request may succeed later.
    #[error("Docker does not answer")]
    Unavailable(#[source] DockerError),
    /// The engine refused.
    #[error("Docker refused to {operation} {subject}: {message}")]
    Refused {
        /// The requested operation.
        operation: &'static str,
        /// Its object.
        subject: String,
        /// The engine's message, shortened.
        message: String,
    },
    /// The object does not exist, or no longer.
    #[error("Docker has no {0}; it may have been removed")]
    Gone(String),
}

/// A node's container engine.
#[async_trait]
pub trait Runtime: fmt::Debug + Send + Sync + 'static {
    /// Describes the engine and its machine.
    ///
    /// # Errors
    /// [`RuntimeError::Unavailable`].
    async fn describe(&self) -> Result<EngineDescription, RuntimeError>;

    /// All containers that a node created, including stopped ones. A container that the engine cannot
    /// describe at the moment is listed all the same.
    ///
    /// # Errors
    /// [`RuntimeError::Unavailable`].
    async fn containers(&self, node: &NodeId) -> Result<Vec<ListedContainer>, RuntimeError>;

    /// One of them, by id; `None` if it is gone.
    ///
    /// # Errors
    /// [`RuntimeError::Unavailable`].
    async fn container(&self, container: &str) -> Result<Option<ContainerFacts>, RuntimeError>;

    /// The ids of a node's containers as they change. Ends when the engine goes away.
    ///
    /// # Errors
    /// [`RuntimeError::Unavailable`].
    async fn changes(&self, node: &NodeId) -> Result<BoxStream<'static, ContainerId>, RuntimeError>;

    /// Pulls an image. If that fails, a local image of the same name is used.
    ///
    /// # Errors
    /// When there is no local image either.
    async fn pull(
        &self,
        image: &str,
        credential: Option<&RegistryCredential>,
    ) -> Result<Pulled, RuntimeError>;

    /// The digest that an image's tag currently has at its registry: `sha256:…`.
    ///
    /// # Errors
    /// When the registry does not answer or refuses.
    async fn digest(
        &self,
        image: &str,
        credential: Option<&RegistryCredential>,
    ) -> Result<String, RuntimeError>;

    /// Logs in to a registry, and keeps nothing of it.
    ///
    /// # Errors
    /// When the registry does not answer or refuses the credential.
    async fn log_in(&self, registry: &str, credential: &RegistryCredential) -> Result<(), RuntimeError>;

    /// Creates a container without starting it.
    ///
    /// # Errors
    /// When the engine refuses.
    async fn create(&self, wanted: Wanted<'_>) -> Result<ContainerId, RuntimeError>;

    /// Starts a container.
    ///
    /// # Errors
    /// When the engine cannot run it.
    async fn start(&self, container: &str) -> Result<(), RuntimeError>;

    /// Sends a signal to a container's first process; no error if it has ended.
    ///
    /// # Errors
    /// When the engine refuses.
    async fn signal(&self, container: &str, signal: &str) -> Result<(), RuntimeError>;

    /// Removes a stopped container with its anonymous volumes; no error if it is gone.
    ///
    /// # Errors
    /// When the engine refuses.
    async fn remove(&self, container: &str) -> Result<(), RuntimeError>;

    /// A file of a container, as a tar archive. The container need not be running.
    ///
    /// # Errors
    /// When the file does not exist.
    async fn archive(&self, container: &str, path: &str) -> Result<ArchiveStream, RuntimeError>;

    /// A container's output.
    ///
    /// # Errors
    /// When the engine refuses, as it does for some log drivers.
    async fn logs(&self, container: &str, query: LogQuery) -> Result<LogStream, RuntimeError>;
}

/// The current time as the orchestrator counts it.
#[must_use]
pub fn now() -> Timestamp {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Timestamp(since_epoch.map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)))
}
