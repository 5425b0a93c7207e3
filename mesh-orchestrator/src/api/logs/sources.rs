//! The sources of a target's lines: this node's engine and other nodes' agents. A followed stream also
//! includes tasks that appear later.

use std::{collections::BTreeSet, time::Duration};

use futures_util::{
    StreamExt,
    stream::{self, BoxStream},
};
use mesh_support::error_chain;
use tokio::{sync::mpsc, task::JoinSet, time::sleep};

use super::{
    merge::{in_order, nearly_in_order},
    since::parse_since,
};
use crate::{
    api::{
        Api,
        log_sources::{LogOptions, LogTarget, LogsError, TaskLine},
        types::{LogLine, LogStream},
    },
    objects::{Node, NodeId, State, Task, TaskId, TaskState, Timestamp},
};

/// Number of lines that are buffered for the client.
const BUFFER: usize = 256;

/// The pause before a node is asked again whose stream has ended.
const RETRY: Duration = Duration::from_secs(2);

/// All lines of the target. They stop when the receiver is dropped.
pub(super) fn lines(
    api: &Api,
    target: LogTarget,
    options: LogOptions,
    local: bool,
) -> mpsc::Receiver<LogLine> {
    let (into, lines) = mpsc::channel(BUFFER);
    let request = Request {
        api: api.clone(),
        target,
        options,
        local,
    };
    tokio::spawn(async move {
        if request.options.follow {
            follow(request, into).await;
        } else {
            let sources = request.sources();
            let streams = sources.into_iter().map(|source| request.once(source)).collect();
            in_order(streams, into).await;
        }
    });
    lines
}

#[derive(Clone)]
struct Request {
    api: Api,
    target: LogTarget,
    options: LogOptions,
    local: bool,
}

/// A source of lines.
#[derive(Clone, Debug)]
enum LineSource {
    /// A task of this node.
    Local(Box<Task>),
    /// The tasks of the target on another node.
    Remote(Box<Node>),
}

impl LineSource {
    fn id(&self) -> String {
        match self {
            Self::Local(task) => task.id.to_string(),
            Self::Remote(node) => format!("node {}", node.id),
        }
    }
}

impl Request {
    /// The current sources.
    fn sources(&self) -> Vec<LineSource> {
        self.api
            .cluster()
            .read(|state| sources(state, &self.target, self.api.node(), self.local))
    }

    /// Whether the target may still write lines.
    fn is_alive(&self) -> bool {
        self.api.cluster().read(|state| match &self.target {
            LogTarget::Service(id) => state.service(id).is_some(),
            LogTarget::Task(id) => state
                .tasks()
                .get(id)
                .is_some_and(|task| !task.status.state.is_terminal()),
        })
    }

    /// The lines of a source. A failure is reported as a line, as the other sources may be fine.
    fn once(&self, source: LineSource) -> BoxStream<'static, LogLine> {
        let request = self.clone();
        let options = self.options;
        stream::once(async move { request.open(source, options).await })
            .flatten()
            .boxed()
    }

    async fn open(self, source: LineSource, options: LogOptions) -> BoxStream<'static, LogLine> {
        let now = self.api.cluster().clock().now();
        match source {
            LineSource::Local(task) => {
                let hostname = self.hostname(task.node.as_ref());
                let named = (task.id.clone(), task.name(), hostname);
                match self.api.logs().lines(&task, &options).await {
                    Ok(lines) => lines.map(move |line| written(&named, line, now)).boxed(),
                    Err(error) => only(trouble(&named, &error, now)),
                }
            }
            LineSource::Remote(node) => {
                let named = (TaskId::from(""), "-".to_owned(), node.hostname.clone());
                match self.api.peers().lines(&node, &self.target, &options).await {
                    Ok(lines) => lines
                        .map(move |line| line.unwrap_or_else(|error| trouble(&named, &error, now)))
                        .boxed(),
                    Err(error) => only(trouble(&named, &error, now)),
                }
            }
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

async fn follow(request: Request, into: mpsc::Sender<LogLine>) {
    let (sorted, from) = mpsc::channel(BUFFER);
    let mut sources = JoinSet::new();
    let passing = tokio::spawn(nearly_in_order(from, into.clone()));
    let mut changes = request.api.cluster().changes();
    let mut known: BTreeSet<String> = BTreeSet::new();
    let mut later = request.clone();
    // All output of tasks that appear later is included.
    later.options.tail = None;
    let mut first = true;
    loop {
        for source in request.sources() {
            if known.insert(source.id()) {
                let one = if first { request.clone() } else { later.clone() };
                sources.spawn(pass(one, source, sorted.clone()));
            }
        }
        first = false;
        if sources.is_empty() && !request.is_alive() {
            break;
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { break },
            Some(_) = sources.join_next(), if !sources.is_empty() => {}
            () = into.closed() => break,
        }
    }
    drop(sorted);
    // It fails only when the runtime shuts down.
    let _ = passing.await;
}

/// Forwards the lines of a source until it ends. Another node whose stream ends early is asked again for the
/// output after its last line.
async fn pass(request: Request, source: LineSource, into: mpsc::Sender<LogLine>) {
    let mut last = String::new();
    let mut options = request.options;
    loop {
        let mut lines = request.clone().open(source.clone(), options).await;
        let mut sent_any = false;
        while let Some(line) = lines.next().await {
            if line.time <= last && !last.is_empty() && matches!(source, LineSource::Remote(_)) && !sent_any {
                continue;
            }
            sent_any = true;
            last.clone_from(&line.time);
            if into.send(line).await.is_err() {
                return;
            }
        }
        let LineSource::Remote(node) = &source else {
            return;
        };
        let has_more = request.is_alive()
            && request
                .sources()
                .iter()
                .any(|other| matches!(other, LineSource::Remote(other) if other.id == node.id));
        if !has_more {
            return;
        }
        sleep(RETRY).await;
        options.tail = None;
        options.since = parse_since(&last, request.api.cluster().clock().now()).or(options.since);
    }
}

type Named = (TaskId, String, String);

fn written(named: &Named, line: Result<TaskLine, LogsError>, now: Timestamp) -> LogLine {
    let (task, task_name, node) = named.clone();
    match line {
        Ok(line) => LogLine {
            time: line.time,
            task,
            task_name,
            node,
            stream: line.stream,
            line: line.line,
        },
        Err(error) => trouble(named, &error, now),
    }
}

/// A line that reports why a source could not be read.
fn trouble(named: &Named, error: &LogsError, now: Timestamp) -> LogLine {
    let (task, task_name, node) = named.clone();
    LogLine {
        time: rfc3339(now),
        task,
        task_name,
        node,
        stream: LogStream::Stderr,
        line: format!("[{}]", error_chain(error)),
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

fn only(line: LogLine) -> BoxStream<'static, LogLine> {
    stream::iter([line]).boxed()
}
