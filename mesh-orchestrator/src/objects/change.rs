//! Everything that can change the cluster's state.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Node, NodeId, PortLedger, Service, ServiceId, Task, TaskId, TaskState, TaskStatus, Timestamp};

/// One change of the cluster's state. Users' commands, agents' reports and control loops all speak it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectChange {
    /// A service appears or is another.
    PutService(Arc<Service>),
    /// A service is gone; its tasks follow.
    RemoveService(ServiceId),
    /// A node appears or is another.
    PutNode(Box<Node>),
    /// A node is gone; nobody knows what becomes of its tasks.
    RemoveNode(NodeId),
    /// Port numbers were given.
    PutPorts(PortLedger),
    /// A task appears.
    CreateTask(Box<Task>),
    /// A task is as the store has it, whatever it was before.
    PutTask(Box<Task>),
    /// A task gets a node.
    Assign {
        /// The task.
        task: TaskId,
        /// Its node.
        node: NodeId,
        /// When.
        at: Timestamp,
    },
    /// Another end is meant for a task.
    SetDesired {
        /// The task.
        task: TaskId,
        /// What is meant to become of it.
        desired: TaskState,
    },
    /// A task has ended and is not replaced: desired `shutdown`, and its slot stays taken.
    GiveUp(TaskId),
    /// A task was seen to have come further, or has something else to say.
    Observe {
        /// The task.
        task: TaskId,
        /// What was seen.
        status: TaskStatus,
    },
    /// A task is forgotten.
    RemoveTask(TaskId),
}
