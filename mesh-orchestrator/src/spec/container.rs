//! What a task runs: the container, its resources, health check, mounts and files.

use std::{collections::BTreeMap, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Placement, RestartPolicy, TaskRuntime, duration};

/// What each task of a service is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TaskSpec {
    /// What it is on its node: a container, or the agent.
    #[serde(default, skip_serializing_if = "TaskRuntime::is_container")]
    pub runtime: TaskRuntime,
    /// The container; of the agent its image alone.
    pub container_spec: ContainerSpec,
    /// What it needs and what it may use.
    #[serde(default)]
    pub resources: ResourceRequirements,
    /// When an ended task is replaced.
    #[serde(default)]
    pub restart_policy: RestartPolicy,
    /// Where it may run.
    #[serde(default)]
    pub placement: Placement,
    /// Docker networks of the node to attach to: `bridge`, `host`, or a name. None means `bridge`.
    #[serde(default)]
    pub networks: Vec<String>,
    /// Where its output goes; the engine's default if left out.
    #[serde(default)]
    pub log_driver: Option<LogDriver>,
    /// A number that is raised to roll the service although nothing has changed.
    #[serde(default)]
    pub force_update: u64,
}

/// The container of a task.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ContainerSpec {
    /// Image reference; without tag or digest it is the one with the tag `latest`.
    pub image: String,
    /// Replaces the image's entry point.
    #[serde(default)]
    pub command: Vec<String>,
    /// Replaces the image's command.
    #[serde(default)]
    pub args: Vec<String>,
    /// `NAME=value`, or `NAME` to unset.
    #[serde(default)]
    pub env: Vec<String>,
    /// The container's labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Host name inside the container; the container's id if left out.
    #[serde(default)]
    pub hostname: Option<String>,
    /// Working directory; the image's if left out.
    #[serde(default)]
    pub dir: Option<String>,
    /// User name or number, with an optional group; the image's if left out.
    #[serde(default)]
    pub user: Option<String>,
    /// Run an init process as the first one.
    #[serde(default)]
    pub init: bool,
    /// Mount the root file system read-only.
    #[serde(default)]
    pub read_only: bool,
    /// Folders and file systems.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// Capabilities beyond the engine's default set.
    #[serde(default)]
    pub capability_add: Vec<String>,
    /// Capabilities of the default set to go without.
    #[serde(default)]
    pub capability_drop: Vec<String>,
    /// Device files of the node.
    #[serde(default)]
    pub devices: Vec<Device>,
    /// How the agent finds out that the container is ready; the image's own check if left out.
    #[serde(default)]
    pub healthcheck: Option<HealthCheck>,
    /// Signal that asks it to stop; the image's, or SIGTERM, if left out.
    #[serde(default)]
    pub stop_signal: Option<String>,
    /// Time it has to stop before it is killed; 10 s if left out.
    #[serde(default, with = "optional_duration")]
    #[schemars(with = "Option<String>")]
    pub stop_grace_period: Option<Duration>,
    /// Secrets as files.
    #[serde(default)]
    pub secrets: Vec<FileReference>,
    /// Configs as files.
    #[serde(default)]
    pub configs: Vec<FileReference>,
    /// Namespaced kernel parameters.
    #[serde(default)]
    pub sysctls: BTreeMap<String, String>,
    /// Lines for `/etc/hosts`: `name:address`.
    #[serde(default)]
    pub hosts: Vec<String>,
}

mod optional_duration {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    use crate::spec::duration;

    #[expect(clippy::ref_option, reason = "the signature serde asks for")]
    pub(super) fn serialize<S: Serializer>(
        value: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => serializer.serialize_some(&duration::format(*value)),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        Option::<String>::deserialize(deserializer)?
            .map(|text| duration::parse(&text).map_err(D::Error::custom))
            .transpose()
    }
}

/// What a task needs and what it may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ResourceRequirements {
    /// The most it may use.
    pub limits: Limits,
    /// What is kept free for it on its node.
    pub reservations: Resources,
}

/// The most that a task may use; 0 means no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Billionths of a CPU.
    pub nano_cpus: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
}

/// An amount of CPU and memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Resources {
    /// Billionths of a CPU.
    pub nano_cpus: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
}

impl Resources {
    /// The sum; stops at the largest number.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            nano_cpus: self.nano_cpus.saturating_add(other.nano_cpus),
            memory_bytes: self.memory_bytes.saturating_add(other.memory_bytes),
        }
    }

    /// What is left; stops at nothing.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self {
            nano_cpus: self.nano_cpus.saturating_sub(other.nano_cpus),
            memory_bytes: self.memory_bytes.saturating_sub(other.memory_bytes),
        }
    }

    /// Whether `other` fits in.
    #[must_use]
    pub fn holds(self, other: Self) -> bool {
        self.nano_cpus >= other.nano_cpus && self.memory_bytes >= other.memory_bytes
    }
}

/// A folder or file system inside the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// What it is.
    #[serde(rename = "type")]
    pub kind: MountKind,
    /// A path of the node (bind) or a volume's name; empty for tmpfs and anonymous volumes.
    #[serde(default)]
    pub source: String,
    /// Absolute path inside the container.
    pub target: String,
    /// Whether the container may only read.
    #[serde(default)]
    pub read_only: bool,
    /// Size limit of a tmpfs in bytes; 0 means none.
    #[serde(default)]
    pub tmpfs_size_bytes: u64,
}

/// What is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MountKind {
    /// A path of the node.
    Bind,
    /// A named or anonymous volume of the node's engine.
    Volume,
    /// Memory.
    Tmpfs,
}

/// A device file of the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Path on the node.
    pub host_path: String,
    /// Path inside the container.
    pub container_path: String,
    /// Any of `r`, `w` and `m` (mknod); all if left out.
    #[serde(default = "all_permissions")]
    pub permissions: String,
}

fn all_permissions() -> String {
    "rwm".into()
}

/// How readiness is found out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HealthCheck {
    /// What is tried.
    pub test: Probe,
    /// Time between tries; 30 s.
    #[serde(default = "half_a_minute", with = "duration")]
    #[schemars(with = "String")]
    pub interval: Duration,
    /// Time that a try may take; 30 s.
    #[serde(default = "half_a_minute", with = "duration")]
    #[schemars(with = "String")]
    pub timeout: Duration,
    /// Failed tries in a row that make it unhealthy; 3.
    #[serde(default = "three")]
    pub retries: u32,
    /// Time after the start in which failures do not count.
    #[serde(default, with = "duration")]
    #[schemars(with = "String")]
    pub start_period: Duration,
    /// Time between tries in the start period; 5 s.
    #[serde(default = "five_seconds", with = "duration")]
    #[schemars(with = "String")]
    pub start_interval: Duration,
}

fn half_a_minute() -> Duration {
    Duration::from_secs(30)
}

fn five_seconds() -> Duration {
    Duration::from_secs(5)
}

fn three() -> u32 {
    3
}

/// What is tried to find out whether a container is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Probe {
    /// Nothing: ready as soon as it runs, whatever the image says.
    None,
    /// A program inside the container (Docker's CMD).
    Command(Vec<String>),
    /// A shell's command line inside the container (Docker's CMD-SHELL).
    Shell(String),
    /// A GET request by the agent; 200 to 399 is success.
    Http {
        /// Port inside the container.
        port: u16,
        /// Path and query; begins with `/`.
        path: String,
    },
    /// A TCP connection by the agent.
    Tcp {
        /// Port inside the container.
        port: u16,
    },
}

/// A secret or config as a file inside the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FileReference {
    /// Name of the secret or config.
    pub source: String,
    /// File name below `/run/secrets` (configs: `/`), or an absolute path; the source's name if left out.
    #[serde(default)]
    pub target: Option<String>,
    /// Owner's number; 0.
    #[serde(default)]
    pub uid: u32,
    /// Group's number; 0.
    #[serde(default)]
    pub gid: u32,
    /// Permission bits; 0444.
    #[serde(default = "world_readable")]
    pub mode: u32,
}

impl FileReference {
    /// A secret or config under its own name, for everybody to read.
    #[must_use]
    pub fn of(source: impl Into<String>) -> Self {
        Self {
            source: source.into(),
            target: None,
            uid: 0,
            gid: 0,
            mode: world_readable(),
        }
    }
}

fn world_readable() -> u32 {
    0o444
}

/// Where a container's output goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LogDriver {
    /// Docker's name of it, e.g. `json-file`.
    pub name: String,
    /// Its options.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
}
