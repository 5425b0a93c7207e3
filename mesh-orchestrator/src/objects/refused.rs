//! Why the state refuses a change.

use super::{NodeId, ServiceId, TaskId, TaskState};

/// Why a change does not apply. The state is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The service is not there (any more).
    #[error("service {0} does not exist: read the list of services again")]
    UnknownService(ServiceId),
    /// The node is not there (any more).
    #[error("node {0} does not exist: read the list of nodes again")]
    UnknownNode(NodeId),
    /// The task is not there (any more).
    #[error("task {0} does not exist: read the list of tasks again")]
    UnknownTask(TaskId),
    /// There is one already.
    #[error("task {0} exists already: make it with another seed")]
    TaskExists(TaskId),
    /// The name belongs to another service.
    #[error("a service named {0} exists already: choose another name, or update that one")]
    NameTaken(String),
    /// A state would move back.
    #[error("task {task} is {from} and cannot become {to} again: tasks are replaced, not restarted")]
    Backwards {
        /// The task.
        task: TaskId,
        /// Its state.
        from: TaskState,
        /// The earlier one.
        to: TaskState,
    },
}
