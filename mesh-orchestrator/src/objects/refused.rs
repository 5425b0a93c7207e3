//! Why the state refuses a change.

use super::{NodeId, ServiceId, TaskId, TaskState};

/// Why a change cannot be applied. The state is unchanged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There is no such service (any more).
    #[error("service {0} does not exist: read the list of services again")]
    UnknownService(ServiceId),
    /// There is no such node (any more).
    #[error("node {0} does not exist: read the list of nodes again")]
    UnknownNode(NodeId),
    /// There is no such task (any more).
    #[error("task {0} does not exist: read the list of tasks again")]
    UnknownTask(TaskId),
    /// There is already a task with this id.
    #[error("task {0} already exists: derive its id from another seed")]
    TaskExists(TaskId),
    /// The name belongs to another service.
    #[error("a service named {0} already exists: choose another name, or update that service")]
    NameTaken(String),
    /// The task would return to an earlier state.
    #[error("task {task} is {from} and cannot become {to} again: tasks are replaced, not restarted")]
    Backwards {
        /// The task.
        task: TaskId,
        /// Its state.
        from: TaskState,
        /// The earlier state.
        to: TaskState,
    },
}
