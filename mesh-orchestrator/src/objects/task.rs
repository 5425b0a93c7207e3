//! A task: one attempt to run a service's container. A task is never restarted; a new one replaces it.

use std::{fmt, net::Ipv4Addr, sync::Arc};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{EndpointPort, NodeId, Refused, ServiceId, TaskId, TaskState, Timestamp};
use crate::spec::TaskSpec;

/// The slot of a service that a task fills. At most one task of a slot is meant to run, except while a
/// start-first replacement starts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Slot {
    /// A slot of a replicated service; counts from 1.
    Number(u32),
    /// A node's slot of a global service.
    Node(NodeId),
}

impl fmt::Display for Slot {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(formatter, "{number}"),
            Self::Node(node) => write!(formatter, "{node}"),
        }
    }
}

/// The observed status of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TaskStatus {
    /// Its state.
    pub state: TaskState,
    /// When the state was observed.
    pub at: Timestamp,
    /// What it does or waits for; for people.
    #[serde(default)]
    pub message: String,
    /// Why it failed.
    #[serde(default)]
    pub error: Option<String>,
    /// Exit code of its main process.
    #[serde(default)]
    pub exit_code: Option<i32>,
    /// Id of its container in the engine.
    #[serde(default)]
    pub container: Option<String>,
    /// The address by which the mesh identifies it: unique in the cluster while the container exists, and
    /// never used on the wire. None if the mesh cannot reach the container (it uses the node's own network).
    #[serde(default)]
    pub address: Option<Ipv4Addr>,
}

impl TaskStatus {
    /// A status without error, exit code or container.
    #[must_use]
    pub fn new(state: TaskState, at: Timestamp, message: impl Into<String>) -> Self {
        Self {
            state,
            at,
            message: message.into(),
            error: None,
            exit_code: None,
            container: None,
            address: None,
        }
    }

    /// The status with an error message.
    #[must_use]
    pub fn with_error(mut self, error: impl Into<String>) -> Self {
        self.error = Some(error.into());
        self
    }
}

/// One attempt to run a service's container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// The task's id.
    pub id: TaskId,
    /// The service it belongs to.
    pub service: ServiceId,
    /// The name of the service, kept here when the service is removed.
    pub service_name: Arc<str>,
    /// The slot it fills.
    pub slot: Slot,
    /// What it runs: the service's task template when the task was created.
    pub spec: Arc<TaskSpec>,
    /// The service's task version of `spec`.
    pub spec_version: u64,
    /// Ports that it publishes on its own node (host mode).
    #[serde(default)]
    pub host_ports: Vec<EndpointPort>,
    /// Its node; a task of a global service has it from the start.
    #[serde(default)]
    pub node: Option<NodeId>,
    /// The desired state.
    pub desired: TaskState,
    /// The observed status.
    pub status: TaskStatus,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was first observed running.
    #[serde(default)]
    pub started_at: Option<Timestamp>,
    /// When it was observed to have ended.
    #[serde(default)]
    pub finished_at: Option<Timestamp>,
    /// While desired is `ready`: the earliest time at which it may run (the restart delay).
    #[serde(default)]
    pub not_before: Option<Timestamp>,
    /// When earlier tasks of the slot were replaced, as far as the restart policy counts that.
    #[serde(default)]
    pub restarts: Vec<Timestamp>,
    /// How many tasks of the slot have failed in a row before it: the restart delay grows with it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub failures: u32,
    /// When the update started with this slot, if an update created the task.
    #[serde(default)]
    pub update_began: Option<Timestamp>,
    /// The restart policy allows no further task in this slot: it stays as it is.
    #[serde(default)]
    pub given_up: bool,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature that serde asks for"
)]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Task {
    /// As Docker shows it: `web.3`, or `web.<node id>`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}.{}", self.service_name, self.slot)
    }

    /// Whether it is meant to run and has not ended.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.desired.is_wanted() && !self.status.state.is_terminal()
    }

    /// Whether it is meant to run but has ended. Not so a job's task that has completed.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.desired.is_wanted()
            && self.status.state.is_terminal()
            && !(self.desired == TaskState::Complete && self.status.state == TaskState::Complete)
    }

    /// Whether it runs and is meant to.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.desired.is_wanted() && self.status.state == TaskState::Running
    }

    /// Whether it is no longer meant to run but may not have stopped yet.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        !self.desired.is_wanted() && self.status.state.holds_resources()
    }

    /// Assigns it to a node.
    ///
    /// # Errors
    /// If it is in a later state already.
    pub fn assign(&mut self, node: &NodeId, at: Timestamp) -> Result<(), Refused> {
        self.forward(self.status.state, TaskState::Assigned)?;
        self.node = Some(node.clone());
        self.status = TaskStatus::new(TaskState::Assigned, at, "assigned to a node");
        Ok(())
    }

    /// Sets the desired state.
    ///
    /// # Errors
    /// If the desired state is a later one already.
    pub fn set_desired(&mut self, desired: TaskState) -> Result<(), Refused> {
        self.forward(self.desired, desired)?;
        self.desired = desired;
        Ok(())
    }

    /// Gives it up: it has ended, is not replaced and keeps its slot.
    ///
    /// # Errors
    /// If it is to be removed.
    pub fn give_up(&mut self) -> Result<(), Refused> {
        self.set_desired(TaskState::Shutdown)?;
        self.given_up = true;
        Ok(())
    }

    /// Records an observed status.
    ///
    /// # Errors
    /// If it is in a later state already.
    pub fn observe(&mut self, status: &TaskStatus) -> Result<(), Refused> {
        self.forward(self.status.state, status.state)?;
        if status.state.is_terminal() && !self.status.state.is_terminal() {
            self.finished_at = Some(status.at);
        }
        if status.state == TaskState::Running && self.started_at.is_none() {
            self.started_at = Some(status.at);
        }
        self.status = status.clone();
        Ok(())
    }

    /// Whether it has failed on its own since it was in the state `before`.
    pub(super) fn has_failed_since(&self, before: TaskState) -> bool {
        !before.is_terminal()
            && matches!(self.status.state, TaskState::Failed | TaskState::Rejected)
            && self.desired.is_wanted()
    }

    fn forward(&self, from: TaskState, to: TaskState) -> Result<(), Refused> {
        if to >= from {
            return Ok(());
        }
        Err(Refused::Backwards {
            task: self.id.clone(),
            from,
            to,
        })
    }
}
