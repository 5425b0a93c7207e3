//! The sources of a target's lines: this node's engine and other nodes' agents.

use std::collections::BTreeSet;

use futures_util::{
    StreamExt,
    stream::{self, BoxStream},
};
use mesh_support::error_chain;

use crate::{
    api::{
        Api,
        log_sources::{LogOptions, LogTarget, LogsError, TaskLine},
        types::{LogLine, LogStream},
    },
    objects::{Node, NodeId, State, Task, TaskId, TaskState, Timestamp},
};

/// Lines of one source, or why they cannot be read.
pub(super) type Lines = BoxStream<'static, Result<LogLine, LogsError>>;

/// What a client asks for.
#[derive(Clone)]
pub(super) struct Request {
    pub(super) api: Api,
    pub(super) target: LogTarget,
    pub(super) options: LogOptions,
    /// Only of this node's tasks.
    pub(super) local: bool,
}

/// A source of lines.
#[derive(Clone, Debug)]
pub(super) enum LineSource {
    /// A task of this node.
    Local(Box<Task>),
    /// The tasks of the target on another node.
    Remote(Box<Node>),
}

impl LineSource {
    pub(super) fn id(&self) -> String {
        match self {
            Self::Local(task) => task.id.to_string(),
            Self::Remote(node) => format!("node {}", node.id),
        }
    }
}

impl Request {
    /// The current sources.
    pub(super) fn sources(&self) -> Vec<LineSource> {
        self.api
            .cluster()
            .read(|state| sources(state, &self.target, self.api.node(), self.local))
    }

    /// Whether the target may still write lines.
    pub(super) fn is_alive(&self) -> bool {
        self.api.cluster().read(|state| match &self.target {
            LogTarget::Service(id) => state.service(id).is_some(),
            LogTarget::Task(id) => state
                .tasks()
                .get(id)
                .is_some_and(|task| !task.status.state.is_terminal()),
        })
    }

    /// The state of a source that is a task, if the task is still there.
    pub(super) fn state_of(&self, source: &LineSource) -> Option<TaskState> {
        match source {
            LineSource::Local(task) => self
                .api
                .cluster()
                .read(|state| state.tasks().get(&task.id).map(|task| task.status.state)),
            LineSource::Remote(_) => None,
        }
    }

    /// Whether a source writes no more lines.
    pub(super) fn is_over(&self, source: &LineSource) -> bool {
        match source {
            LineSource::Local(_) => self.state_of(source).is_none_or(TaskState::is_terminal),
            LineSource::Remote(node) => {
                let is_node =
                    |other: &LineSource| matches!(other, LineSource::Remote(other) if other.id == node.id);
                !self.is_alive() || !self.sources().iter().any(is_node)
            }
        }
    }

    /// The lines that a source has. A failure is reported as a line, as the other sources may be fine.
    pub(super) fn once(&self, source: LineSource) -> BoxStream<'static, LogLine> {
        let request = self.clone();
        let lines = self.open(source.clone(), self.options);
        lines
            .map(move |line| line.unwrap_or_else(|error| request.trouble(&source, &error)))
            .boxed()
    }

    /// Reads a source's lines.
    pub(super) fn open(&self, source: LineSource, options: LogOptions) -> Lines {
        let request = self.clone();
        stream::once(async move {
            match request.try_open(source, options).await {
                Ok(lines) => lines,
                Err(error) => stream::iter([Err(error)]).boxed(),
            }
        })
        .flatten()
        .boxed()
    }

    async fn try_open(&self, source: LineSource, options: LogOptions) -> Result<Lines, LogsError> {
        match &source {
            LineSource::Local(known) => {
                // It may have a container now.
                let task = self
                    .api
                    .cluster()
                    .read(|state| state.tasks().get(&known.id).cloned())
                    .unwrap_or_else(|| (**known).clone());
                let lines = self.api.logs().lines(&task, &options).await?;
                let named = self.named(&source);
                Ok(lines
                    .map(move |line| line.map(|line| written(&named, line)))
                    .boxed())
            }
            LineSource::Remote(node) => self.api.peers().lines(node, &self.target, &options).await,
        }
    }

    /// A line that reports why a source could not be read.
    pub(super) fn trouble(&self, source: &LineSource, error: &LogsError) -> LogLine {
        let (task, task_name, node) = self.named(source);
        LogLine {
            time: rfc3339(self.api.cluster().clock().now()),
            task,
            task_name,
            node,
            stream: LogStream::Stderr,
            line: format!("[{}]", error_chain(error)),
        }
    }

    fn named(&self, source: &LineSource) -> Named {
        match source {
            LineSource::Local(task) => (task.id.clone(), task.name(), self.hostname(task.node.as_ref())),
            LineSource::Remote(node) => (TaskId::from(""), "-".to_owned(), node.hostname.clone()),
        }
    }

    fn hostname(&self, node: Option<&NodeId>) -> String {
        let Some(node) = node else {
            return String::new();
        };
        self.api.cluster().read(|state| {
            state
                .nodes()
                .get(node)
                .map_or_else(|| node.to_string(), |node| node.hostname.clone())
        })
    }
}

fn sources(state: &State, target: &LogTarget, here: &NodeId, local: bool) -> Vec<LineSource> {
    // Before that there is no container, hence no output.
    let has_written =
        |task: &&Task| task.status.container.is_some() || task.status.state >= TaskState::Starting;
    let tasks: Vec<&Task> = match target {
        LogTarget::Task(id) => state.tasks().get(id).into_iter().filter(has_written).collect(),
        LogTarget::Service(id) => state
            .tasks_of(id)
            .into_iter()
            .flat_map(|index| index.slots.values().flatten())
            .filter_map(|(_, id)| state.tasks().get(id))
            .filter(has_written)
            .collect(),
    };
    let mut others = BTreeSet::new();
    let mut sources = Vec::new();
    for task in tasks {
        match &task.node {
            Some(node) if node == here => sources.push(LineSource::Local(Box::new(task.clone()))),
            Some(node) if !local && others.insert(node) => {
                sources.extend(
                    state
                        .nodes()
                        .get(node)
                        .map(|node| LineSource::Remote(Box::new(node.clone()))),
                );
            }
            Some(_) | None => {}
        }
    }
    sources
}

type Named = (TaskId, String, String);

fn written(named: &Named, line: TaskLine) -> LogLine {
    let (task, task_name, node) = named.clone();
    LogLine {
        time: line.time,
        task,
        task_name,
        node,
        stream: line.stream,
        line: line.line,
    }
}

fn rfc3339(at: Timestamp) -> String {
    let format = time::macros::format_description!(
        "[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:9]Z"
    );
    time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(at.0) * 1_000_000)
        .ok()
        .and_then(|time| time.format(format).ok())
        .unwrap_or_default()
}
