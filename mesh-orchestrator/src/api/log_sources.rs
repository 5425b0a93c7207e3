//! How the API reads the logs of tasks, of this node and of others. The agent implements both traits.

use std::fmt;

use async_trait::async_trait;
use futures_util::stream::BoxStream;

use super::types::{LogLine, LogStream};
use crate::{
    objects::{Node, ServiceId, Task, TaskId, Timestamp},
    store::Source,
};

/// Which part of a task's output to read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// Continue with new output until the task ends.
    pub follow: bool,
    /// Only this number of last lines; all if left out.
    pub tail: Option<u64>,
    /// Only output since this time.
    pub since: Option<Timestamp>,
}

/// Whose output to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTarget {
    /// All tasks of a service.
    Service(ServiceId),
    /// One task.
    Task(TaskId),
}

impl LogTarget {
    /// Path and query at which another node's API has the output of its own tasks.
    #[must_use]
    pub fn local_path(&self, options: &LogOptions) -> String {
        let mut path = match self {
            Self::Service(id) => format!("/v1/services/{id}/logs?local=true"),
            Self::Task(id) => format!("/v1/tasks/{id}/logs?local=true"),
        };
        if options.follow {
            path += "&follow=true";
        }
        if let Some(tail) = options.tail {
            path += &format!("&tail={tail}");
        }
        if let Some(since) = options.since {
            // Milliseconds as seconds with a fraction.
            path += &format!("&since={}.{:03}", since.0 / 1000, since.0 % 1000);
        }
        path
    }
}

/// One line of a task's output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskLine {
    /// When it was written: RFC 3339 with nanoseconds, in UTC.
    pub time: String,
    /// Which stream it was written to.
    pub stream: LogStream,
    /// The line, without the line break.
    pub line: String,
}

/// Why output cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("could not read the logs of {subject}")]
pub struct LogsError {
    /// The task or node.
    pub subject: String,
    /// Why.
    pub source: Source,
}

/// Reads the output of tasks on this node.
#[async_trait]
pub trait Logs: fmt::Debug + Send + Sync + 'static {
    /// The lines of one task, ordered by time. None if it has no container yet.
    ///
    /// # Errors
    /// If the engine does not answer, or its log driver does not support reading.
    async fn lines(
        &self,
        task: &Task,
        options: &LogOptions,
    ) -> Result<BoxStream<'static, Result<TaskLine, LogsError>>, LogsError>;
}

/// Reads output from the agents of other nodes.
#[async_trait]
pub trait Peers: fmt::Debug + Send + Sync + 'static {
    /// The output of tasks on another node, which its API serves at [`LogTarget::local_path`].
    ///
    /// # Errors
    /// If its agent does not answer.
    async fn lines(
        &self,
        node: &Node,
        target: &LogTarget,
        options: &LogOptions,
    ) -> Result<BoxStream<'static, Result<LogLine, LogsError>>, LogsError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_node_is_asked_for_its_own_tasks() {
        let options = LogOptions {
            follow: true,
            tail: Some(3),
            since: Some(Timestamp(61_005)),
        };
        let path = LogTarget::Service("s".into()).local_path(&options);
        assert_eq!(
            path,
            "/v1/services/s/logs?local=true&follow=true&tail=3&since=61.005"
        );
        let path = LogTarget::Task("t".into()).local_path(&LogOptions::default());
        assert_eq!(path, "/v1/tasks/t/logs?local=true");
    }
}
