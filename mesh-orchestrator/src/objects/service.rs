//! A service as the cluster knows it: what was asked for, and how far its tasks have followed.

use std::{collections::BTreeSet, sync::Arc};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{EndpointPort, ServiceId, Slot, Timestamp};
use crate::spec::{ServiceSpec, UpdateConfig};

/// A service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Its name for ever; the specification's name is for people.
    pub id: ServiceId,
    /// What is asked for.
    pub spec: Arc<ServiceSpec>,
    /// Raised by every change of `spec`.
    pub version: u64,
    /// The version whose tasks are current: raised only by changes that replace tasks.
    pub task_version: u64,
    /// What was asked for before, to go back to.
    #[serde(default)]
    pub previous: Option<Previous>,
    /// Its published ports, all with numbers.
    #[serde(default)]
    pub ports: Vec<EndpointPort>,
    /// How the replacement of its tasks stands.
    #[serde(default)]
    pub update_status: Option<UpdateStatus>,
    /// Its dependencies have been ready once: its tasks may start.
    #[serde(default)]
    pub released: bool,
    /// A rebalancing under way.
    #[serde(default)]
    pub rebalance: Option<Rebalance>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When `spec` last changed.
    pub updated_at: Timestamp,
}

impl Service {
    /// Whether its tasks are being replaced right now, paused included.
    #[must_use]
    pub fn is_updating(&self) -> bool {
        self.update_status
            .as_ref()
            .is_some_and(|status| status.completed_at.is_none())
    }

    /// The policy of the replacement under way, or of the next one.
    #[must_use]
    pub fn update_config(&self) -> &UpdateConfig {
        match &self.update_status {
            Some(status) if status.state.is_rollback() => &self.spec.rollback_config,
            _ => &self.spec.update_config,
        }
    }
}

/// An earlier specification.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Previous {
    /// What was asked for.
    pub spec: Arc<ServiceSpec>,
    /// Its task version: tasks that still have it need not be replaced.
    pub task_version: u64,
}

/// How the replacement of a service's tasks stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateStatus {
    /// Where it stands.
    pub state: UpdateState,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended well, or with failures that the policy allows.
    #[serde(default)]
    pub completed_at: Option<Timestamp>,
    /// For people.
    #[serde(default)]
    pub message: String,
    /// Slots to replace when it began: failures are counted against them.
    pub total: u32,
    /// Slots whose new task has failed.
    #[serde(default)]
    pub failed: BTreeSet<Slot>,
}

/// Where the replacement of a service's tasks stands; with Docker's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UpdateState {
    /// Under way.
    Updating,
    /// Stopped by failures.
    Paused,
    /// Done.
    Completed,
    /// Under way back.
    RollbackStarted,
    /// Stopped by failures on the way back.
    RollbackPaused,
    /// Back where it was.
    RollbackCompleted,
}

impl UpdateState {
    /// Whether it is on the way back.
    #[must_use]
    pub fn is_rollback(self) -> bool {
        matches!(
            self,
            Self::RollbackStarted | Self::RollbackPaused | Self::RollbackCompleted
        )
    }

    /// Whether slots are being replaced.
    #[must_use]
    pub fn is_active(self) -> bool {
        matches!(self, Self::Updating | Self::RollbackStarted)
    }
}

/// A rebalancing under way: running tasks move to emptier nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rebalance {
    /// When it was asked for, or may begin.
    pub from: Timestamp,
    /// Moves that may still be made.
    pub moves_left: u32,
}
