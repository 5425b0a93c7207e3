//! A task: one attempt to run a service's container. It is never restarted but replaced.

use std::{fmt, net::Ipv4Addr, sync::Arc};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{EndpointPort, NodeId, Refused, ServiceId, TaskId, TaskState, Timestamp};
use crate::spec::TaskSpec;

/// The place that a task fills in its service. At most one task is meant to run in it, but for the time in
/// which a start-first replacement starts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Slot {
    /// Of a replicated service; counts from 1.
    Number(u32),
    /// Of a global service.
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

/// What is known of a task's doings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TaskStatus {
    /// How far it has come.
    pub state: TaskState,
    /// When that was found.
    pub at: Timestamp,
    /// What it does or waits for, for people.
    #[serde(default)]
    pub message: String,
    /// Why it has failed.
    #[serde(default)]
    pub error: Option<String>,
    /// What its first process returned.
    #[serde(default)]
    pub exit_code: Option<i32>,
    /// The engine's id of its container.
    #[serde(default)]
    pub container: Option<String>,
    /// What the mesh calls it by: unique in the cluster while the container is there, and on no wire. None
    /// where the mesh cannot reach the container (it has the node's own network).
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

    /// The same with an error's text.
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
    /// Its own name.
    pub id: TaskId,
    /// The service it belongs to.
    pub service: ServiceId,
    /// That service's name, which outlives it here.
    pub service_name: Arc<str>,
    /// The place it fills.
    pub slot: Slot,
    /// What it runs, as of its making.
    pub spec: Arc<TaskSpec>,
    /// The service's task version that `spec` is of.
    pub spec_version: u64,
    /// Ports of its node that it takes for itself (host mode).
    #[serde(default)]
    pub host_ports: Vec<EndpointPort>,
    /// Its node; a global service's task has it from the start.
    #[serde(default)]
    pub node: Option<NodeId>,
    /// What is meant to become of it.
    pub desired: TaskState,
    /// What has become of it.
    pub status: TaskStatus,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was first found running.
    #[serde(default)]
    pub started_at: Option<Timestamp>,
    /// When it was found to have ended.
    #[serde(default)]
    pub finished_at: Option<Timestamp>,
    /// While desired is `ready`: the earliest time at which it may run (the restart delay).
    #[serde(default)]
    pub not_before: Option<Timestamp>,
    /// When earlier tasks of the slot were restarted, as far as the restart policy counts them.
    #[serde(default)]
    pub restarts: Vec<Timestamp>,
    /// When the update began with this slot, if an update made the task.
    #[serde(default)]
    pub update_began: Option<Timestamp>,
    /// The restart policy has ended with this task: the slot stays as it is.
    #[serde(default)]
    pub given_up: bool,
}

impl Task {
    /// As Docker shows it: `web.3`, or `web.<node id>`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}.{}", self.service_name, self.slot)
    }

    /// It is meant to run, and has not ended.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.desired.is_wanted() && !self.status.state.is_terminal()
    }

    /// It is meant to run, but has ended; a job's task that has completed is none of these.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.desired.is_wanted()
            && self.status.state.is_terminal()
            && !(self.desired == TaskState::Complete && self.status.state == TaskState::Complete)
    }

    /// It runs and is meant to.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.desired.is_wanted() && self.status.state == TaskState::Running
    }

    /// It is not meant to run any more, but may not have stopped yet.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        !self.desired.is_wanted() && self.status.state.holds_resources()
    }

    /// Gives it a node.
    ///
    /// # Errors
    /// If it has come further already.
    pub fn assign(&mut self, node: &NodeId, at: Timestamp) -> Result<(), Refused> {
        self.forward(self.status.state, TaskState::Assigned)?;
        self.node = Some(node.clone());
        self.status = TaskStatus::new(TaskState::Assigned, at, "assigned to a node");
        Ok(())
    }

    /// Means another end for it.
    ///
    /// # Errors
    /// If its end is meant to be a later one already.
    pub fn set_desired(&mut self, desired: TaskState) -> Result<(), Refused> {
        self.forward(self.desired, desired)?;
        self.desired = desired;
        Ok(())
    }

    /// Its slot stays taken by it, although it has ended.
    ///
    /// # Errors
    /// If it is meant to be removed.
    pub fn give_up(&mut self) -> Result<(), Refused> {
        self.set_desired(TaskState::Shutdown)?;
        self.given_up = true;
        Ok(())
    }

    /// Notes how far it has come.
    ///
    /// # Errors
    /// If it was further already.
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

    /// Whether it has just ended with an error that was not asked for, given what it was before.
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
