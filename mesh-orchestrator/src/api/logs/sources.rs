//! Whose lines are wanted, and where they come from: this node's engine, other nodes' agents; while a stream
//! is followed also those of tasks that appear later.

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

/// Lines that may wait for whoever reads them.
const AHEAD: usize = 256;

/// The pause before a node that has broken off is asked again.
const RETRY: Duration = Duration::from_secs(2);

/// All lines that are wanted. They stop when nobody receives them any more.
pub(super) fn lines(
    api: &Api,
    target: LogTarget,
    options: LogOptions,
    local: bool,
) -> mpsc::Receiver<LogLine> {
    let (into, lines) = mpsc::channel(AHEAD);
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
            let wanted = request.wanted();
            let streams = wanted.into_iter().map(|source| request.once(source)).collect();
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

/// Where lines come from.
#[derive(Clone, Debug)]
enum Wanted {
    /// A task of this node.
    Here(Box<Task>),
    /// All that another node has of the target.
    There(Box<Node>),
}

impl Wanted {
    fn id(&self) -> String {
        match self {
            Self::Here(task) => task.id.to_string(),
            Self::There(node) => format!("node {}", node.id),
        }
    }
}

impl Request {
    /// The sources that there are now.
    fn wanted(&self) -> Vec<Wanted> {
        self.api
            .cluster()
            .read(|state| wanted(state, &self.target, self.api.node(), self.local))
    }

    /// Whether the target may still get lines.
    fn lives(&self) -> bool {
        self.api.cluster().read(|state| match &self.target {
            LogTarget::Service(id) => state.service(id).is_some(),
            LogTarget::Task(id) => state
                .tasks()
                .get(id)
                .is_some_and(|task| !task.status.state.is_terminal()),
        })
    }

    /// The lines of a source, once. What goes wrong is told in a line: the other sources' are good.
    fn once(&self, source: Wanted) -> BoxStream<'static, LogLine> {
        let request = self.clone();
        let options = self.options;
        stream::once(async move { request.open(source, options).await })
            .flatten()
            .boxed()
    }

    async fn open(self, source: Wanted, options: LogOptions) -> BoxStream<'static, LogLine> {
        let now = self.api.cluster().clock().now();
        match source {
            Wanted::Here(task) => {
                let hostname = self.hostname(task.node.as_ref());
                let named = (task.id.clone(), task.name(), hostname);
                match self.api.logs().lines(&task, &options).await {
                    Ok(lines) => lines.map(move |line| written(&named, line, now)).boxed(),
                    Err(error) => only(trouble(&named, &error, now)),
                }
            }
            Wanted::There(node) => {
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

fn wanted(state: &State, target: &LogTarget, here: &NodeId, local: bool) -> Vec<Wanted> {
    // Before that there is no container, and nothing written.
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
    let mut wanted = Vec::new();
    for task in tasks {
        match &task.node {
            Some(node) if node == here => wanted.push(Wanted::Here(Box::new(task.clone()))),
            Some(node) if !local && others.insert(node) => {
                wanted.extend(
                    state
                        .nodes()
                        .get(node)
                        .map(|node| Wanted::There(Box::new(node.clone()))),
                );
            }
            Some(_) | None => {}
        }
    }
    wanted
}

async fn follow(request: Request, into: mpsc::Sender<LogLine>) {
    let (sorted, from) = mpsc::channel(AHEAD);
    let mut sources = JoinSet::new();
    let passing = tokio::spawn(nearly_in_order(from, into.clone()));
    let mut changes = request.api.cluster().changes();
    let mut known: BTreeSet<String> = BTreeSet::new();
    let mut later = request.clone();
    // Of a task that appears later, everything is wanted.
    later.options.tail = None;
    let mut first = true;
    loop {
        for source in request.wanted() {
            if known.insert(source.id()) {
                let one = if first { request.clone() } else { later.clone() };
                sources.spawn(pass(one, source, sorted.clone()));
            }
        }
        first = false;
        if sources.is_empty() && !request.lives() {
            break;
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { break },
            Some(_) = sources.join_next(), if !sources.is_empty() => {}
            () = into.closed() => break,
        }
    }
    drop(sorted);
    // An error means that the runtime ends.
    let _ = passing.await;
}

/// Passes on a source's lines until it ends. Another node that breaks off is asked again, for what came
/// after its last line.
async fn pass(request: Request, source: Wanted, into: mpsc::Sender<LogLine>) {
    let mut last = String::new();
    let mut options = request.options;
    loop {
        let mut lines = request.clone().open(source.clone(), options).await;
        let mut told_anything = false;
        while let Some(line) = lines.next().await {
            if line.time <= last && !last.is_empty() && matches!(source, Wanted::There(_)) && !told_anything {
                continue;
            }
            told_anything = true;
            last.clone_from(&line.time);
            if into.send(line).await.is_err() {
                return;
            }
        }
        let Wanted::There(node) = &source else {
            return;
        };
        let has_more = request.lives()
            && request
                .wanted()
                .iter()
                .any(|wanted| matches!(wanted, Wanted::There(other) if other.id == node.id));
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

/// A line of ours in the place of those that cannot be had.
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
