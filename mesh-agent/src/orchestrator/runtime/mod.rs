//! What a node runs containers with: a small trait, and what it speaks of. Its one implementation is the
//! node's Docker Engine. Depends on the orchestrator's objects only; knows nothing of the mesh.

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

use crate::source::DockerError;

/// The engine's name of a container.
pub type ContainerId = String;

/// The bytes of a tar archive as they come.
pub type ArchiveStream = BoxStream<'static, io::Result<Bytes>>;

/// Labels that the orchestrator puts on its containers, by which it finds them again.
pub mod label {
    pub use crate::model::orchestrator_label::{ADDRESS, TASK};

    /// The node that made it; nobody else's are ever touched.
    pub const NODE: &str = "mesh.node.id";
    /// The task's name, e.g. `web.3`.
    pub const TASK_NAME: &str = "mesh.task.name";
    /// The task's service.
    pub const SERVICE: &str = "mesh.service.id";
    /// That service's name.
    pub const SERVICE_NAME: &str = "mesh.service.name";
}

/// What an engine is and has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineDescription {
    /// The machine's host name.
    pub hostname: String,
    /// What it was configured with.
    pub labels: BTreeMap<String, String>,
    /// Operating system and architecture.
    pub platform: Platform,
    /// All CPUs and memory of the machine.
    pub resources: Resources,
    /// Its version, e.g. `29.3.1`.
    pub version: String,
    /// Its place in a Swarm, in its own words (`inactive` where it is in none).
    pub swarm: String,
}

/// A container that is to be made.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// The node that makes it.
    pub node: &'a NodeId,
    /// What it is of.
    pub task: &'a Task,
    /// What the mesh calls it by.
    pub address: Option<Ipv4Addr>,
    /// Files of the node that hold its secrets and configs, with where it sees them.
    pub files: &'a [MountedFile],
}

/// A file of the node that a container sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountedFile {
    /// Its path on the node.
    pub source: PathBuf,
    /// Its path inside the container.
    pub target: String,
}

/// What the engine says of one of the orchestrator's containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerFacts {
    /// The engine's id of it.
    pub id: ContainerId,
    /// The task it is of.
    pub task: TaskId,
    /// What the mesh calls it by.
    pub address: Option<Ipv4Addr>,
    /// How far it has come.
    pub phase: Phase,
    /// What the engine's own check says.
    pub health: Health,
    /// Its first process, in the engine's namespace; while it runs.
    pub pid: Option<u32>,
    /// Where the node reaches it: its address on a bridge, or 127.0.0.1 on the node's own network.
    pub reached_at: Option<Ipv4Addr>,
    /// The signal that asks it to stop; `SIGTERM` where neither specification nor image say otherwise.
    pub stop_signal: String,
    /// Time from that signal to the end.
    pub stop_grace: Duration,
}

/// How far a container has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Made, never started.
    Created,
    /// It runs.
    Running,
    /// It has ended.
    Exited {
        /// What its first process returned; 128 and the signal's number if that ended it.
        code: i32,
        /// Whether it used more memory than it may.
        out_of_memory: bool,
        /// What the engine says went wrong; empty if nothing did.
        error: String,
    },
}

/// What is known of a running container's health.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Health {
    /// Nobody looks: running is enough.
    #[default]
    Unchecked,
    /// It is looked at, and not healthy yet.
    Starting,
    /// It is well.
    Healthy,
    /// It has failed its check too often.
    Unhealthy,
}

/// How a pull went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pulled {
    /// The image is what the registry has.
    Fresh,
    /// The registry could not be asked: an image of that name that the node has is used, for this reason.
    Local(String),
}

/// The engine could not do something.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The engine cannot be asked just now. What it was asked for may still be possible.
    #[error("Docker cannot be asked")]
    Unavailable(#[source] DockerError),
    /// The engine has answered no.
    #[error("Docker refused to {operation} {subject}: {message}")]
    Refused {
        /// What it was asked to do.
        operation: &'static str,
        /// With what.
        subject: String,
        /// The engine's own words, shortened.
        message: String,
    },
    /// There is no such thing (any more).
    #[error("Docker knows no {0} (any more)")]
    Gone(String),
}

/// A node's container engine.
#[async_trait]
pub trait Runtime: fmt::Debug + Send + Sync + 'static {
    /// What the engine is and has.
    ///
    /// # Errors
    /// [`RuntimeError::Unavailable`].
    async fn describe(&self) -> Result<EngineDescription, RuntimeError>;

    /// All containers that a node has made, stopped ones too.
    ///
    /// # Errors
    /// [`RuntimeError::Unavailable`].
    async fn containers(&self, node: &NodeId) -> Result<Vec<ContainerFacts>, RuntimeError>;

    /// One of them, by its engine's id; `None` if it is gone.
    ///
    /// # Errors
    /// [`RuntimeError::Unavailable`].
    async fn container(&self, container: &str) -> Result<Option<ContainerFacts>, RuntimeError>;

    /// Tells whenever one of a node's containers has changed. Ends when the engine goes away.
    ///
    /// # Errors
    /// [`RuntimeError::Unavailable`].
    async fn changes(&self, node: &NodeId) -> Result<BoxStream<'static, ContainerId>, RuntimeError>;

    /// Brings an image here. Where the registry cannot be asked, or says no, an image that is here will do.
    ///
    /// # Errors
    /// When there is none here either.
    async fn pull(
        &self,
        image: &str,
        credential: Option<&RegistryCredential>,
    ) -> Result<Pulled, RuntimeError>;

    /// What an image's tag means at its registry just now: `sha256:…`.
    ///
    /// # Errors
    /// When the registry cannot be asked, or says no.
    async fn digest(
        &self,
        image: &str,
        credential: Option<&RegistryCredential>,
    ) -> Result<String, RuntimeError>;

    /// Makes a container, not started.
    ///
    /// # Errors
    /// When the engine refuses what is asked for.
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

    /// Removes a container that does not run, with its anonymous volumes; no error if it is gone.
    ///
    /// # Errors
    /// When the engine refuses.
    async fn remove(&self, container: &str) -> Result<(), RuntimeError>;

    /// A file of a container, as a tar archive. The container need not run.
    ///
    /// # Errors
    /// When there is no such file.
    async fn archive(&self, container: &str, path: &str) -> Result<ArchiveStream, RuntimeError>;

    /// What a container has written.
    ///
    /// # Errors
    /// When the engine refuses, as it does with some log drivers.
    async fn logs(&self, container: &str, query: LogQuery) -> Result<LogStream, RuntimeError>;
}

/// The time now, as the orchestrator counts it.
#[must_use]
pub fn now() -> Timestamp {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Timestamp(since_epoch.map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)))
}
