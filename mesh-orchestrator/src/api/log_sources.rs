//! How the API reads what tasks have written. The agent implements both traits.

use std::fmt;

use async_trait::async_trait;
use futures_util::stream::BoxStream;

use super::types::{LogLine, LogStream};
use crate::{
    objects::{Node, ServiceId, Task, TaskId, Timestamp},
    store::Source,
};

/// What of a task's output is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// Go on with what will be written, until the task ends.
    pub follow: bool,
    /// Only so many of the last lines; all if left out.
    pub tail: Option<u64>,
    /// Only what was written since.
    pub since: Option<Timestamp>,
}

/// Whose output is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTarget {
    /// That of all tasks of a service.
    Service(ServiceId),
    /// That of one task.
    Task(TaskId),
}

impl LogTarget {
    /// Where another node's API has what its own tasks have written: path and query.
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

/// One line that a task has written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskLine {
    /// When: RFC 3339 with nine digits of a second, in UTC.
    pub time: String,
    /// Where to.
    pub stream: LogStream,
    /// The line, without its end.
    pub line: String,
}

/// Why a task's output cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("could not read the logs of {subject}")]
pub struct LogsError {
    /// The task or node.
    pub subject: String,
    /// Why.
    pub source: Source,
}

/// Reads what tasks of this node have written.
#[async_trait]
pub trait Logs: fmt::Debug + Send + Sync + 'static {
    /// The lines of one task, in the order of their times. Nothing, if it has no container (yet).
    ///
    /// # Errors
    /// When the engine cannot be asked, or its log driver cannot read what it has written.
    async fn lines(
        &self,
        task: &Task,
        options: &LogOptions,
    ) -> Result<BoxStream<'static, Result<TaskLine, LogsError>>, LogsError>;
}

/// Asks other nodes' agents.
#[async_trait]
pub trait Peers: fmt::Debug + Send + Sync + 'static {
    /// What tasks of another node have written: what its API answers at [`LogTarget::local_path`].
    ///
    /// # Errors
    /// When its agent cannot be asked.
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
    fn another_node_is_asked_for_its_own_part() {
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
