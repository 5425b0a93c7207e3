//! Everything that can change the cluster's state.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Node, NodeId, PortLedger, Service, ServiceId, Task, TaskId, TaskState, TaskStatus, Timestamp};

/// One change of the cluster's state: users' commands, agents' reports and control loops all produce these.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectChange {
    /// A service is created or replaced.
    PutService(Arc<Service>),
    /// A service is removed; the control loops remove its tasks.
    RemoveService(ServiceId),
    /// A node is added or replaced.
    PutNode(Box<Node>),
    /// A node is removed; the state of its tasks becomes unknown.
    RemoveNode(NodeId),
    /// Published ports were assigned.
    PutPorts(PortLedger),
    /// A task is created.
    CreateTask(Box<Task>),
    /// A task is set to what the store holds, whatever it was before.
    PutTask(Box<Task>),
    /// A task is assigned to a node.
    Assign {
        /// The task.
        task: TaskId,
        /// Its node.
        node: NodeId,
        /// When.
        at: Timestamp,
    },
    /// The desired state of a task changes.
    SetDesired {
        /// The task.
        task: TaskId,
        /// The new desired state.
        desired: TaskState,
    },
    /// A task has ended and is not replaced: its desired state becomes `shutdown` and it keeps its slot.
    GiveUp(TaskId),
    /// A task was observed in the same or a later state, or with another message.
    Observe {
        /// The task.
        task: TaskId,
        /// The observed status.
        status: TaskStatus,
    },
    /// A task is removed.
    RemoveTask(TaskId),
}
