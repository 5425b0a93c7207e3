//! The policies of a service: restart, update, placement and rebalancing, with Docker's defaults.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Constraint, duration};

/// When a task that has ended is replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RestartPolicy {
    /// When a new task follows; `any`, for jobs `on-failure`.
    pub condition: Option<RestartCondition>,
    /// Time between the end of one task and the start of the next; 5 s.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub delay: Duration,
    /// New tasks within the window before the slot is given up; 0 means no limit.
    pub max_attempts: u32,
    /// The time during which attempts are counted; 0 counts all of them.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub window: Duration,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            condition: None,
            delay: Duration::from_secs(5),
            max_attempts: 0,
            window: Duration::ZERO,
        }
    }
}

/// After which ends of a task a new one follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RestartCondition {
    /// Never.
    None,
    /// After a failure.
    OnFailure,
    /// Always.
    Any,
}

/// How a service's tasks are replaced after a change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UpdateConfig {
    /// Number of slots that are replaced at the same time; 0 means all.
    pub parallelism: u32,
    /// Time to wait after each slot.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub delay: Duration,
    /// What to do when more slots fail than allowed.
    pub failure_action: FailureAction,
    /// Time after its start during which a new task's failure counts; 5 s.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub monitor: Duration,
    /// Ratio of slots that may fail, 0 to 1.
    pub max_failure_ratio: f64,
    /// Whether the old task stops before or after the new one runs.
    pub order: UpdateOrder,
    /// Time within which a slot's new task must run, or the slot counts as failed; 10 min, 0 means no limit.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub progress_deadline: Duration,
}

impl Default for UpdateConfig {
    fn default() -> Self {
        Self {
            parallelism: 1,
            delay: Duration::ZERO,
            failure_action: FailureAction::Pause,
            monitor: Duration::from_secs(5),
            max_failure_ratio: 0.0,
            order: UpdateOrder::StopFirst,
            progress_deadline: Duration::from_secs(600),
        }
    }
}

/// What happens when an update fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FailureAction {
    /// It pauses.
    Pause,
    /// It continues.
    Continue,
    /// It is rolled back to the previous specification.
    Rollback,
}

/// Whether the old task stops before the new one starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum UpdateOrder {
    /// The new task starts when the old one has stopped.
    StopFirst,
    /// The old task stops when the new one is ready.
    StartFirst,
}

/// Where tasks may run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Placement {
    /// Conditions on the node, all of which must hold.
    pub constraints: Vec<Constraint>,
    /// Attributes over whose values tasks are spread evenly, the most important first.
    pub preferences: Vec<Spread>,
    /// Maximum number of the service's tasks on one node; 0 means no limit.
    pub max_replicas_per_node: u32,
    /// Platforms that the image supports; any if empty.
    pub platforms: Vec<Platform>,
}

/// A preference to spread evenly over the values of a label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Spread {
    /// The attribute of the node, e.g. `node.labels.zone`. Nodes without it form one group.
    pub spread: String,
}

/// The platform of a machine or an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Platform {
    /// `linux`; empty means any.
    pub os: String,
    /// Its name in images (`amd64`, `arm64`) or in the kernel (`x86_64`, `aarch64`); empty means any.
    pub architecture: String,
}

impl Platform {
    /// Whether an image for this platform runs on a machine of another.
    #[must_use]
    pub fn runs_on(&self, other: &Self) -> bool {
        (self.os.is_empty() || self.os == other.os)
            && (self.architecture.is_empty()
                || common_name(&self.architecture) == common_name(&other.architecture))
    }
}

fn common_name(architecture: &str) -> &str {
    match architecture {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Whether and how running tasks move to emptier nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RebalanceConfig {
    /// Rebalance automatically after a node joins or becomes ready again.
    pub automatic: bool,
    /// Maximum number of tasks that one automatic rebalancing moves; 10.
    pub max_moves: u32,
    /// Time that the node must have been ready before; 60 s.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub settle: Duration,
}

impl Default for RebalanceConfig {
    fn default() -> Self {
        Self {
            automatic: false,
            max_moves: 10,
            settle: Duration::from_secs(60),
        }
    }
}
