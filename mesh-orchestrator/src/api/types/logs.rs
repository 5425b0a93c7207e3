//! The output of tasks.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::objects::TaskId;

/// One line of a task's output. Streams contain one JSON object per line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LogLine {
    /// When it was written: RFC 3339 with nanoseconds, in UTC, so that the order of the texts is that of the
    /// times.
    pub time: String,
    /// The task.
    pub task: TaskId,
    /// The task's name: `web.3`.
    pub task_name: String,
    /// The host name of its node.
    pub node: String,
    /// The stream that it was written to.
    pub stream: LogStream,
    /// The line, without the line break; invalid UTF-8 is replaced.
    pub line: String,
}

/// The stream that a line was written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}
