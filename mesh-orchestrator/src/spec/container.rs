//! What a task runs: the container, its resources, health check, mounts and files.

use std::{collections::BTreeMap, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Placement, RestartPolicy, TaskRuntime, duration};

/// The template of a service's tasks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TaskSpec {
    /// What runs on the node: a container, or the agent.
    #[serde(default, skip_serializing_if = "TaskRuntime::is_container")]
    pub runtime: TaskRuntime,
    /// The container; for the agent only its image.
    pub container_spec: ContainerSpec,
    /// Reserved resources and limits.
    #[serde(default)]
    pub resources: ResourceRequirements,
    /// When an ended task is replaced.
    #[serde(default)]
    pub restart_policy: RestartPolicy,
    /// Where it may run.
    #[serde(default)]
    pub placement: Placement,
    /// Docker networks of the node to attach to: `bridge`, `host`, or a name; `bridge` if empty.
    #[serde(default)]
    pub networks: Vec<String>,
    /// Where its output goes; the engine's default if left out.
    #[serde(default)]
    pub log_driver: Option<LogDriver>,
    /// A counter; incrementing it replaces the tasks even if nothing else changes.
    #[serde(default)]
    pub force_update: u64,
}

/// The container of a task.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ContainerSpec {
    /// Image reference; the tag is `latest` if neither tag nor digest is given.
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
    /// Directories and file systems.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// Capabilities beyond the engine's default set.
    #[serde(default)]
    pub capability_add: Vec<String>,
    /// Capabilities to remove from the default set.
    #[serde(default)]
    pub capability_drop: Vec<String>,
    /// Device files of the node.
    #[serde(default)]
    pub devices: Vec<Device>,
    /// How the agent checks that the container is healthy; the image's own check if left out.
    #[serde(default)]
    pub healthcheck: Option<HealthCheck>,
    /// Signal that stops it; the image's, or SIGTERM, if left out.
    #[serde(default)]
    pub stop_signal: Option<String>,
    /// Time to stop before it is killed; 10 s if left out.
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

/// Reserved resources and limits of a task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ResourceRequirements {
    /// Upper limits.
    pub limits: Limits,
    /// What the scheduler reserves for it on its node.
    pub reservations: Resources,
}

/// Upper limits of a task; 0 means no limit.
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
    /// The sum, saturating.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            nano_cpus: self.nano_cpus.saturating_add(other.nano_cpus),
            memory_bytes: self.memory_bytes.saturating_add(other.memory_bytes),
        }
    }

    /// The difference, saturating at zero.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self {
            nano_cpus: self.nano_cpus.saturating_sub(other.nano_cpus),
            memory_bytes: self.memory_bytes.saturating_sub(other.memory_bytes),
        }
    }

    /// Whether `other` fits into it.
    #[must_use]
    pub fn holds(self, other: Self) -> bool {
        self.nano_cpus >= other.nano_cpus && self.memory_bytes >= other.memory_bytes
    }
}

/// A directory or file system inside the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// What is mounted.
    #[serde(rename = "type")]
    pub kind: MountKind,
    /// A path on the node (bind) or the name of a volume; empty for tmpfs and anonymous volumes.
    #[serde(default)]
    pub source: String,
    /// Absolute path inside the container.
    pub target: String,
    /// Whether it is mounted read-only.
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
    /// A path on the node.
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

/// How health is checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HealthCheck {
    /// The probe.
    pub test: Probe,
    /// Time between probes; 30 s.
    #[serde(default = "half_a_minute", with = "duration")]
    #[schemars(with = "String")]
    pub interval: Duration,
    /// Time that a probe may take; 30 s.
    #[serde(default = "half_a_minute", with = "duration")]
    #[schemars(with = "String")]
    pub timeout: Duration,
    /// Consecutive failures that make it unhealthy; 3.
    #[serde(default = "three")]
    pub retries: u32,
    /// Time after the start during which failures do not count.
    #[serde(default, with = "duration")]
    #[schemars(with = "String")]
    pub start_period: Duration,
    /// Time between probes during the start period; 5 s.
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

/// How a container is probed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Probe {
    /// No probe: healthy as soon as it runs, even if the image has a check.
    None,
    /// A program inside the container (Docker's CMD).
    Command(Vec<String>),
    /// A shell command inside the container (Docker's CMD-SHELL).
    Shell(String),
    /// A GET request by the agent; 200 to 399 is success.
    Http {
        /// Port inside the container.
        port: u16,
        /// Path and query; starts with `/`.
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
    /// Owner's numeric id; 0.
    #[serde(default)]
    pub uid: u32,
    /// Group's numeric id; 0.
    #[serde(default)]
    pub gid: u32,
    /// Permission bits; 0444.
    #[serde(default = "world_readable")]
    pub mode: u32,
}

impl FileReference {
    /// A secret or config under its own name, readable by all users.
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
    /// Docker's name of the driver, e.g. `json-file`.
    pub name: String,
    /// Its options.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
}
