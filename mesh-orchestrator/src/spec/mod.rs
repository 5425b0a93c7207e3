//! The specification of a service, and its validation. Imports nothing of ours.
//!
//! The JSON has the shape of Docker's `ServiceSpec` with names in snake case; durations are written as in a
//! compose file (`"1m30s"`). Fields that are left out have Docker's defaults.

pub mod constraint;
pub mod container;
pub mod dependencies;
pub mod duration;
mod error;
mod json;
pub mod name;
pub mod policy;
pub mod port;
pub mod runtime;
mod validate;

use std::{collections::BTreeMap, sync::Arc};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use constraint::{Constraint, Operator};
pub use container::{
    ContainerSpec, Device, FileReference, HealthCheck, Limits, LogDriver, Mount, MountKind, Probe,
    ResourceRequirements, Resources, TaskSpec,
};
pub use dependencies::check_dependencies;
pub use error::{MAX_SPEC_BYTES, SpecError};
pub(crate) use json::{nearest, read as read_json};
pub use policy::{
    FailureAction, Placement, Platform, RebalanceConfig, RestartCondition, RestartPolicy, Spread,
    UpdateConfig, UpdateOrder,
};
pub use port::{PortConfig, PortRange, Protocol, PublishMode};
pub use runtime::TaskRuntime;

/// The specification of a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceSpec {
    /// Unique in the cluster; letters, digits, `-`, `_` and `.`, 63 at most.
    pub name: String,
    /// The service's own labels (containers get those of [`ContainerSpec::labels`]).
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// How many tasks it has, and where.
    #[serde(default)]
    pub mode: ServiceMode,
    /// What each task runs. Changing it replaces the tasks.
    pub task_template: Arc<TaskSpec>,
    /// How tasks are replaced after a change.
    #[serde(default)]
    pub update_config: UpdateConfig,
    /// How tasks are replaced in a rollback.
    #[serde(default)]
    pub rollback_config: UpdateConfig,
    /// Whether tasks move to nodes that join or become ready again.
    #[serde(default)]
    pub rebalance_config: RebalanceConfig,
    /// How it is reachable from outside.
    #[serde(default)]
    pub endpoint_spec: EndpointSpec,
    /// Names of services that must be ready before the first task of this one starts.
    #[serde(default)]
    pub depends_on: Vec<String>,
}

/// How many tasks a service has, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ServiceMode {
    /// A number of tasks, on any suitable nodes.
    Replicated(Replicated),
    /// One task on each suitable node.
    Global(Global),
    /// A number of tasks that run to completion.
    ReplicatedJob(ReplicatedJob),
    /// A task that runs to completion once on each suitable node.
    GlobalJob(Global),
}

impl Default for ServiceMode {
    fn default() -> Self {
        Self::Replicated(Replicated::default())
    }
}

impl ServiceMode {
    /// Whether its tasks are meant to end.
    #[must_use]
    pub fn is_job(self) -> bool {
        matches!(self, Self::ReplicatedJob(_) | Self::GlobalJob(_))
    }

    /// Whether it has one task on each suitable node.
    #[must_use]
    pub fn is_global(self) -> bool {
        matches!(self, Self::Global(_) | Self::GlobalJob(_))
    }

    /// The mode's name in Docker's MODE column.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Replicated(_) => "replicated",
            Self::Global(_) => "global",
            Self::ReplicatedJob(_) => "replicated job",
            Self::GlobalJob(_) => "global job",
        }
    }
}

/// Settings of a replicated service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Replicated {
    /// Number of tasks; 0 pauses the service and keeps its definition.
    pub replicas: u32,
}

impl Default for Replicated {
    fn default() -> Self {
        Self { replicas: 1 }
    }
}

/// A global service has no settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Global {}

/// Settings of a replicated job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ReplicatedJob {
    /// Maximum number of tasks that run at the same time.
    pub max_concurrent: u32,
    /// Number of tasks that must complete successfully.
    pub total_completions: u32,
}

impl Default for ReplicatedJob {
    fn default() -> Self {
        Self {
            max_concurrent: 1,
            total_completions: 1,
        }
    }
}

/// How a service is reachable from outside.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EndpointSpec {
    /// Published ports.
    pub ports: Vec<PortConfig>,
}
