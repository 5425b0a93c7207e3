//! What tasks have written.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::objects::TaskId;

/// One line of a task's output. A stream of them is one JSON object a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LogLine {
    /// When it was written: RFC 3339 with nanoseconds, in UTC, so that their order as text is that in time.
    pub time: String,
    /// The task.
    pub task: TaskId,
    /// The task's name: `web.3`.
    pub task_name: String,
    /// The host name of its node.
    pub node: String,
    /// Where it was written to.
    pub stream: LogStream,
    /// The line, without its end; what is not UTF-8 is replaced.
    pub line: String,
}

/// Where a line was written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}
