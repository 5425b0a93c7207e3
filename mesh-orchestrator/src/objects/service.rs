//! A service as the cluster knows it: its specification, and how far its tasks have been updated to it.

use std::{collections::BTreeSet, sync::Arc};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{EndpointPort, ServiceId, Slot, Timestamp};
use crate::spec::{ServiceSpec, UpdateConfig};

/// A service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// The service's id, which never changes; the specification's name is for people.
    pub id: ServiceId,
    /// The specification.
    pub spec: Arc<ServiceSpec>,
    /// Incremented by every change of `spec`.
    pub version: u64,
    /// The version whose tasks are current; only changes that replace tasks advance it.
    pub task_version: u64,
    /// The previous specification, for a rollback.
    #[serde(default)]
    pub previous: Option<Previous>,
    /// Its published ports as assigned.
    #[serde(default)]
    pub ports: Vec<EndpointPort>,
    /// Status of the current or the last update of its tasks.
    #[serde(default)]
    pub update_status: Option<UpdateStatus>,
    /// Whether its dependencies have been ready once, so that its tasks may start.
    #[serde(default)]
    pub released: bool,
    /// The current rebalancing.
    #[serde(default)]
    pub rebalance: Option<Rebalance>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When `spec` last changed.
    pub updated_at: Timestamp,
}

impl Service {
    /// Whether an update of its tasks is in progress or paused.
    #[must_use]
    pub fn is_updating(&self) -> bool {
        self.update_status
            .as_ref()
            .is_some_and(|status| status.completed_at.is_none())
    }

    /// The policy of the current or the next update.
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
    /// The specification.
    pub spec: Arc<ServiceSpec>,
    /// Its task version: tasks that still have it need not be replaced.
    pub task_version: u64,
}

/// Status of an update of a service's tasks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateStatus {
    /// Its state.
    pub state: UpdateState,
    /// When it started.
    pub started_at: Timestamp,
    /// When it completed, possibly with failures that the policy allows.
    #[serde(default)]
    pub completed_at: Option<Timestamp>,
    /// A message for people.
    #[serde(default)]
    pub message: String,
    /// Number of slots to replace when it started; the failure ratio is relative to it.
    pub total: u32,
    /// Slots whose new task has failed.
    #[serde(default)]
    pub failed: BTreeSet<Slot>,
}

/// The state of an update, with Docker's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UpdateState {
    /// In progress.
    Updating,
    /// Paused by failures.
    Paused,
    /// Completed.
    Completed,
    /// A rollback is in progress.
    RollbackStarted,
    /// A rollback was paused by failures.
    RollbackPaused,
    /// A rollback is complete.
    RollbackCompleted,
}

impl UpdateState {
    /// Whether it is a rollback.
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

/// A rebalancing: running tasks move to emptier nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rebalance {
    /// The earliest time at which it may start.
    pub from: Timestamp,
    /// How many tasks may still be moved.
    pub moves_left: u32,
}
