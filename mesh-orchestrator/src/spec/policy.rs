//! The policies of a service: restart, update, placement and rebalancing, with Docker's defaults.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Constraint, duration};

/// When a task that has ended is replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RestartPolicy {
    /// Which ends are followed by a new task; `any`, for jobs `on-failure`.
    pub condition: Option<RestartCondition>,
    /// Time between the end of one task and the start of the next; 5 s.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub delay: Duration,
    /// New tasks within the window before the slot is given up; 0 means any number.
    pub max_attempts: u32,
    /// The time in which attempts are counted; 0 counts all of them.
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

/// Which ends of a task are followed by a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RestartCondition {
    /// None.
    None,
    /// Those with an error.
    OnFailure,
    /// All.
    Any,
}

/// How a service's tasks are replaced by those of another specification.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UpdateConfig {
    /// Slots that are replaced at the same time; 0 means all.
    pub parallelism: u32,
    /// Time to wait after each slot.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub delay: Duration,
    /// What to do when more slots fail than allowed.
    pub failure_action: FailureAction,
    /// Time after its start in which a new task's failure counts; 5 s.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub monitor: Duration,
    /// Share of slots that may fail, 0 to 1.
    pub max_failure_ratio: f64,
    /// Whether the old task stops before or after the new one runs.
    pub order: UpdateOrder,
    /// Time in which a slot's new task must run, else the slot has failed; 10 min, 0 means for ever.
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

/// What becomes of an update that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FailureAction {
    /// It stops where it is.
    Pause,
    /// It goes on.
    Continue,
    /// The previous specification is put back.
    Rollback,
}

/// Which of the old and the new task goes first.
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
    /// All must hold.
    pub constraints: Vec<Constraint>,
    /// Spread evenly over the values of these, the first first.
    pub preferences: Vec<Spread>,
    /// Tasks of the service on one node at most; 0 means any number.
    pub max_replicas_per_node: u32,
    /// Platforms the image is for; none means any.
    pub platforms: Vec<Platform>,
}

/// A preference to spread evenly over the values of a label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Spread {
    /// What is looked up on each node, e.g. `node.labels.zone`. Nodes without it form one group.
    pub spread: String,
}

/// What a machine is, or what an image is for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Platform {
    /// `linux`; empty means any.
    pub os: String,
    /// As images name it (`amd64`, `arm64`) or as the kernel does (`x86_64`, `aarch64`); empty means any.
    pub architecture: String,
}

impl Platform {
    /// Whether something for `self` runs on a machine that is `other`.
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

/// Whether, and how carefully, running tasks move to emptier nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RebalanceConfig {
    /// Move by itself after a node joins or returns.
    pub automatic: bool,
    /// Tasks that one automatic rebalancing moves at most; 10.
    pub max_moves: u32,
    /// Time that the node must have been up before.
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
