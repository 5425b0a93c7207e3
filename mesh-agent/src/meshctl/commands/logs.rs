//! `meshctl service logs`: the lines of all tasks on all nodes, each with its task and node in front.

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
};

use clap::Args;
use mesh_orchestrator::{
    api::types::{LogLine, LogStream, ServiceView, TaskView},
    spec::ServiceMode,
};
use reqwest::StatusCode;
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};

use crate::meshctl::{
    client::{Api, Lines},
    failure::Failure,
    flags::units,
    output::people::{rfc3339, short_id},
    signals::interrupted,
    views::tasks::slot_number,
};

/// Output of a service's tasks, or of one task.
#[derive(Debug, Args)]
pub struct Logs {
    /// Follow log output
    #[arg(long, short = 'f')]
    follow: bool,
    /// Number of lines to show from the end of the logs
    #[arg(long, short = 'n', default_value = "all", value_name = "LINES", value_parser = tail)]
    tail: String,
    /// Show logs since timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Show timestamps
    #[arg(long, short = 't')]
    timestamps: bool,
    /// Do not truncate output
    #[arg(long)]
    no_trunc: bool,
    /// Do not include task IDs in output
    #[arg(long)]
    no_task_ids: bool,
    /// Do not neatly format logs
    #[arg(long)]
    raw: bool,
    /// The service or task, by name or id
    #[arg(value_name = "SERVICE|TASK")]
    target: String,
}

fn tail(text: &str) -> Result<String, String> {
    if text == "all" || text.parse::<u32>().is_ok() {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} is no number of lines: use a number or all"))
    }
}

/// A moment, from one or from a time before now.
fn since(text: &str, now: OffsetDateTime) -> Result<String, Failure> {
    let refuse = || {
        Failure::Usage(format!(
            "invalid value {text:?} for --since: use a time such as 2026-01-02T13:23:37Z, or how long ago such as 42m"
        ))
    };
    let written = |moment: OffsetDateTime| moment.format(&Rfc3339).map_err(|_| refuse());
    if let Ok(ago) = units::time(text) {
        let ago = Duration::try_from(ago).map_err(|_| refuse())?;
        return written(now.checked_sub(ago).ok_or_else(refuse)?);
    }
    if let Ok(moment) = OffsetDateTime::parse(text, &Rfc3339) {
        return written(moment);
    }
    if let Ok(seconds) = text.parse::<i64>() {
        return written(OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| refuse())?);
    }
    // A date, or one with a time, is in UTC.
    for whole in [
        format!("{text}T00:00:00Z"),
        format!("{text}Z"),
        format!("{text}:00Z"),
    ] {
        if let Ok(moment) = OffsetDateTime::parse(&whole, &Rfc3339) {
            return written(moment);
        }
    }
    Err(refuse())
}

impl Logs {
    pub(super) async fn run(&self, api: &Api) -> Result<(), Failure> {
        let since = match &self.since {
            Some(text) => Some(since(text, OffsetDateTime::now_utc())?),
            None => None,
        };
        let follow = self.follow.to_string();
        let timestamps = self.timestamps.to_string();
        let mut query = vec![
            ("follow", follow.as_str()),
            ("tail", self.tail.as_str()),
            ("timestamps", timestamps.as_str()),
        ];
        if let Some(since) = &since {
            query.push(("since", since));
        }
        let (path, width) = self.target(api).await?;
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        let mut lines = api.lines(&path, &query).await?;
        let format = Format {
            timestamps: self.timestamps,
            raw: self.raw,
            trunc: !self.no_trunc,
            task_ids: !self.no_task_ids,
            width,
        };
        tokio::select! {
            printed = print_all(&mut lines, &format) => printed,
            signal = interrupted() => Err(Failure::Signal(signal)),
        }
    }

    /// Where the lines are, and how wide a slot's number is.
    async fn target(&self, api: &Api) -> Result<(Vec<String>, usize), Failure> {
        let path = |parts: [&str; 3]| parts.map(str::to_owned).to_vec();
        match api.get::<ServiceView>(&["services", &self.target], &[]).await {
            Ok(view) => {
                let most = match view.spec.mode {
                    ServiceMode::Replicated(settings) => settings.replicas,
                    ServiceMode::ReplicatedJob(job) => job.total_completions,
                    ServiceMode::Global(_) | ServiceMode::GlobalJob(_) => 0,
                };
                Ok((path(["services", view.id.as_str(), "logs"]), digits(most)))
            }
            Err(error) if error.is(StatusCode::NOT_FOUND) => {
                match api.get::<TaskView>(&["tasks", &self.target], &[]).await {
                    Ok(view) => Ok((
                        path(["tasks", view.task.id.as_str(), "logs"]),
                        digits(slot_number(&view.task.slot)),
                    )),
                    Err(error) if error.is(StatusCode::NOT_FOUND) => Err(Failure::Outcome(format!(
                        "no such task or service: {}",
                        self.target
                    ))),
                    Err(error) => Err(error.into()),
                }
            }
            Err(error) => Err(error.into()),
        }
    }
}

fn digits(number: u32) -> usize {
    number.checked_ilog10().unwrap_or(0) as usize + 1
}

/// How lines are shown.
#[derive(Clone, Copy, Debug)]
struct Format {
    timestamps: bool,
    raw: bool,
    trunc: bool,
    task_ids: bool,
    width: usize,
}

async fn print_all(lines: &mut Lines, format: &Format) -> Result<(), Failure> {
    let mut prefixes = BTreeMap::new();
    while let Some(line) = lines.next::<LogLine>().await? {
        let prefix = prefixes
            .entry(line.task.clone())
            .or_insert_with(|| prefix(&line, format));
        let text = shown(&line, prefix, format);
        let printed = match line.stream {
            LogStream::Stdout => io::stdout().lock().write_all(text.as_bytes()),
            LogStream::Stderr => io::stderr().lock().write_all(text.as_bytes()),
        };
        printed.map_err(Failure::io("cannot write the logs"))?;
    }
    io::stdout().flush().map_err(Failure::io("cannot write the logs"))
}

/// `web.3.x7k2m9q4w1z8@alpha    | `, padded for the widest slot.
fn prefix(line: &LogLine, format: &Format) -> String {
    let id = line.task.as_str();
    let id = if format.trunc { short_id(id) } else { id };
    let task = if format.task_ids {
        format!("{}.{id}", line.task_name)
    } else {
        line.task_name.clone()
    };
    let slot = line.task_name.rsplit('.').next().unwrap_or_default();
    let width = if slot.bytes().all(|byte| byte.is_ascii_digit()) {
        slot.len()
    } else {
        1
    };
    let padding = " ".repeat(format.width.saturating_sub(width));
    format!("{task}@{}{padding}    | ", line.node)
}

fn shown(line: &LogLine, prefix: &str, format: &Format) -> String {
    let time = match (format.timestamps, line.time.as_str()) {
        (false, _) => String::new(),
        (true, "") => format!("{} ", rfc3339(super::now())),
        (true, time) => format!("{time} "),
    };
    let prefix = if format.raw { "" } else { prefix };
    format!("{time}{prefix}{}\n", line.line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(task_name: &str) -> LogLine {
        serde_json::from_value(serde_json::json!({
            "time": "2026-11-21T22:00:00.123456789Z",
            "task": "x7k2m9q4w1z8abcdefghijklm",
            "task_name": task_name,
            "node": "alpha",
            "stream": "stdout",
            "line": "hello",
        }))
        .unwrap()
    }

    #[test]
    fn lines_begin_as_dockers() {
        let mut format = Format {
            timestamps: false,
            raw: false,
            trunc: true,
            task_ids: true,
            width: 2,
        };
        let text = |name: &str, format: &Format| shown(&line(name), &prefix(&line(name), format), format);
        assert_eq!(text("web.3", &format), "web.3.x7k2m9q4w1z8@alpha     | hello\n");
        assert_eq!(text("web.10", &format), "web.10.x7k2m9q4w1z8@alpha    | hello\n");
        format.timestamps = true;
        format.task_ids = false;
        assert_eq!(
            text("web.10", &format),
            "2026-11-21T22:00:00.123456789Z web.10@alpha    | hello\n"
        );
        format.raw = true;
        format.timestamps = false;
        assert_eq!(text("web.10", &format), "hello\n");
    }

    #[test]
    fn since_is_a_time_or_how_long_ago() {
        let now = OffsetDateTime::from_unix_timestamp(1_000_000).unwrap();
        for (text, expected) in [
            ("42m", "1970-01-12T13:04:40Z"),
            ("1970-01-02T00:00:00Z", "1970-01-02T00:00:00Z"),
            ("1970-01-02", "1970-01-02T00:00:00Z"),
            ("1970-01-02T10:11", "1970-01-02T10:11:00Z"),
            ("86400", "1970-01-02T00:00:00Z"),
        ] {
            assert_eq!(since(text, now).unwrap(), expected, "{text}");
        }
        assert!(since("yesterday", now).is_err());
        assert!(tail("10").is_ok() && tail("all").is_ok() && tail("-1").is_err());
    }
}
