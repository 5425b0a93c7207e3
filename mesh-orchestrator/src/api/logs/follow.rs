//! Follows a target: first what its sources have written, in order, then what they write. Tasks that appear
//! later are included, and a source whose stream ends early (an engine or an agent that restarts, a container
//! that has not started yet) is read on from its last line.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::StreamExt;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{
    merge::{in_order, nearly_in_order},
    since::parse_since,
    sources::{LineSource, Request},
};
use crate::{
    api::{log_sources::LogOptions, types::LogLine},
    objects::{TaskId, Timestamp},
};

/// Number of lines that are buffered for sorting.
const BUFFER: usize = 256;

/// The pause before a source is read again whose stream has ended.
const RETRY: Duration = Duration::from_secs(1);

/// How far before the last line a source is read again: another node's tasks are not exactly in order.
const OVERLAP: Duration = Duration::from_secs(10);

/// Forwards lines until the target writes no more, or the client has gone.
pub(super) async fn follow(request: Request, into: mpsc::Sender<LogLine>) {
    let mut changes = request.api.cluster().changes();
    changes.mark_unchanged();
    let mut known: BTreeSet<String> = BTreeSet::new();
    let mut passed = history(&request, &into).await;
    let (sorted, from) = mpsc::channel(BUFFER);
    let mut sources = JoinSet::new();
    let passing = tokio::spawn(nearly_in_order(from, into.clone()));
    loop {
        for source in request.sources() {
            if known.insert(source.id()) {
                let passed = passed.remove(&source.id()).unwrap_or_default();
                sources.spawn(pass(request.clone(), source, passed, sorted.clone()));
            }
        }
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

/// Forwards what the sources have written so far, in order. Returns how far each was read.
async fn history(request: &Request, into: &mpsc::Sender<LogLine>) -> BTreeMap<String, Passed> {
    let options = LogOptions {
        follow: false,
        ..request.options
    };
    let mut all = BTreeMap::new();
    let mut streams = Vec::new();
    for source in request.sources() {
        let passed = Arc::new(Mutex::new(Passed::default()));
        all.insert(source.id(), Arc::clone(&passed));
        if options.tail == Some(0) {
            passed.lock().unwrap_or_else(PoisonError::into_inner).from =
                Some(request.api.cluster().clock().now());
            continue;
        }
        // The stream that follows reports what cannot be read.
        let lines = request
            .open(source, options)
            .filter_map(|line| std::future::ready(line.ok()));
        let noted = lines.inspect(move |line| {
            passed.lock().unwrap_or_else(PoisonError::into_inner).note(line);
        });
        streams.push(noted.boxed());
    }
    tokio::select! {
        () = in_order(streams, into.clone()) => {}
        () = into.closed() => {}
    }
    let read = |passed: Arc<Mutex<Passed>>| passed.lock().unwrap_or_else(PoisonError::into_inner).clone();
    all.into_iter().map(|(id, passed)| (id, read(passed))).collect()
}

/// Forwards the lines of a source until it writes no more.
async fn pass(request: Request, source: LineSource, mut passed: Passed, into: mpsc::Sender<LogLine>) {
    let mut changes = request.api.cluster().changes();
    let mut has_complained = false;
    loop {
        changes.mark_unchanged();
        let state = request.state_of(&source);
        let is_last = request.is_over(&source);
        let options = LogOptions {
            follow: true,
            tail: None,
            since: passed.since().or(request.options.since),
        };
        let mut lines = request.open(source.clone(), options);
        let mut resumed = passed.resume();
        while let Some(line) = lines.next().await {
            let line = match line {
                Ok(line) if resumed.is_new(&line) => {
                    passed.note(&line);
                    has_complained = false;
                    line
                }
                Ok(_) => continue,
                // Once for each outage.
                Err(_) if has_complained => continue,
                Err(error) => {
                    has_complained = true;
                    request.trouble(&source, &error)
                }
            };
            if into.send(line).await.is_err() {
                return;
            }
        }
        if is_last {
            return;
        }
        let until = Instant::now() + RETRY;
        loop {
            tokio::select! {
                () = sleep_until(until) => break,
                () = into.closed() => return,
                changed = changes.changed() => {
                    if changed.is_err() || request.state_of(&source) != state {
                        break;
                    }
                }
            }
        }
    }
}

/// How far a source was read.
#[derive(Clone, Debug, Default)]
struct Passed {
    /// Of each task: the time of its latest line, and how many of its lines have that time.
    last: BTreeMap<TaskId, (String, usize)>,
    /// Nothing before this time is wanted.
    from: Option<Timestamp>,
}

impl Passed {
    fn note(&mut self, line: &LogLine) {
        let (time, count) = self.last.entry(line.task.clone()).or_default();
        if *time < line.time {
            time.clone_from(&line.time);
            *count = 0;
        }
        *count += usize::from(*time == line.time);
    }

    /// From when on the source is to be read again.
    fn since(&self) -> Option<Timestamp> {
        let latest = self.last.values().map(|(time, _)| time).max();
        let latest = latest.and_then(|time| parse_since(time, Timestamp(0)));
        latest.map(|latest| latest - OVERLAP).max(self.from)
    }

    fn resume(&self) -> Resumed {
        Resumed {
            until: self.last.clone(),
        }
    }
}

/// A stream that begins with lines that were passed on before.
#[derive(Debug)]
struct Resumed {
    /// Of each task whose last line has not come again yet: as in [`Passed`].
    until: BTreeMap<TaskId, (String, usize)>,
}

impl Resumed {
    /// Whether a line comes after those.
    fn is_new(&mut self, line: &LogLine) -> bool {
        let Some((time, count)) = self.until.get_mut(&line.task) else {
            return true;
        };
        if line.time > *time {
            self.until.remove(&line.task);
            return true;
        }
        if line.time == *time {
            *count -= 1;
            if *count == 0 {
                self.until.remove(&line.task);
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::LogStream;

    fn line(task: &str, time: u64, text: &str) -> LogLine {
        LogLine {
            time: format!("2026-01-02T03:04:05.{time:09}Z"),
            task: task.into(),
            task_name: task.into(),
            node: "n1".into(),
            stream: LogStream::Stdout,
            line: text.into(),
        }
    }

    #[test]
    fn a_resumed_stream_repeats_and_omits_no_line() {
        let all = [
            line("a", 1, "one"),
            line("b", 1, "other task"),
            line("a", 2, "same time, first"),
            line("a", 2, "same time, second"),
            line("a", 2, "same time, third"),
            // Standard output and standard error are stamped side by side.
            line("a", 1, "stamped before the last"),
            line("b", 3, "late"),
        ];
        for end in 0..=all.len() {
            let mut passed = Passed::default();
            all[..end].iter().for_each(|line| passed.note(line));
            let mut resumed = passed.resume();
            let rest: Vec<&LogLine> = all.iter().filter(|line| resumed.is_new(line)).collect();
            let expected: Vec<&LogLine> = all[end..].iter().collect();
            // The line that is stamped before another may come twice, and is never lost.
            assert!(rest.ends_with(&expected), "{end}: {rest:#?}");
            assert!(
                rest.len() <= expected.len() + usize::from(end >= 6),
                "{end}: {rest:#?}"
            );
        }
    }

    #[test]
    fn a_source_is_read_again_from_before_its_last_line() {
        let mut passed = Passed::default();
        assert_eq!(passed.since(), None);
        passed.note(&line("a", 0, ""));
        passed.note(&line("b", 500_000_000, ""));
        let at = parse_since("2026-01-02T03:04:05.5Z", Timestamp(0)).unwrap();
        assert_eq!(passed.since(), Some(at - OVERLAP));
    }
}
