//! What tasks have written: this node's own come through [`Logs`], those of other nodes through [`Peers`];
//! all of them are merged into one stream of JSON lines.

mod merge;
mod sources;

use std::{fmt, time::Duration};

use async_trait::async_trait;
use axum::{
    body::{Body, Bytes},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::stream::{self, BoxStream};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    call::Call,
    error::ApiError,
    reference,
    services::find,
    types::{LogLine, LogStream},
};
use crate::{
    objects::{Node, ServiceId, Task, TaskId, Timestamp},
    spec::duration,
    store::Source,
};

/// The content type of a stream of lines.
pub(super) const NDJSON: &str = "application/x-ndjson";

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

pub(super) async fn of_service(call: Call) -> Result<Response, ApiError> {
    let service = find(&call)?;
    answer(&call, LogTarget::Service(service.id.clone()))
}

pub(super) async fn of_task(call: Call) -> Result<Response, ApiError> {
    let name = call.segment("task");
    let task = call
        .api
        .cluster()
        .read(|state| reference::task(state, name).map(|task| task.id.clone()))?;
    answer(&call, LogTarget::Task(task))
}

fn answer(call: &Call, target: LogTarget) -> Result<Response, ApiError> {
    // It changes nothing here: each line has its time.
    call.switch("timestamps")?;
    let options = LogOptions {
        follow: call.switch("follow")?,
        tail: match call.argument("tail") {
            None | Some("all") => None,
            Some(_) => call.number("tail")?,
        },
        since: since(call)?,
    };
    let local = call.switch("local")?;
    let permit = call.api.stream_permit()?;
    let lines = sources::lines(&call.api, target, options, local);
    let text = stream::unfold((lines, permit), |(mut lines, permit)| async move {
        let line = lines.recv().await?;
        let mut text = serde_json::to_vec(&line).unwrap_or_default();
        text.push(b'\n');
        Some((
            Ok::<_, std::convert::Infallible>(Bytes::from(text)),
            (lines, permit),
        ))
    });
    let content_type = [(header::CONTENT_TYPE, HeaderValue::from_static(NDJSON))];
    Ok((StatusCode::OK, content_type, Body::from_stream(text)).into_response())
}

/// As Docker takes it: a time (RFC 3339, or seconds since 1970) or how long ago (`10m`).
fn since(call: &Call) -> Result<Option<Timestamp>, ApiError> {
    let Some(text) = call.argument("since") else {
        return Ok(None);
    };
    let now = call.api.cluster().clock().now();
    parse_since(text, now).map(Some).ok_or_else(|| {
        ApiError::invalid(
            "since",
            text,
            "a time such as 2026-11-21T19:00:00Z, seconds since 1970, or how long ago, such as 10m",
        )
    })
}

fn parse_since(text: &str, now: Timestamp) -> Option<Timestamp> {
    if let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) {
        let milliseconds = time.unix_timestamp_nanos() / 1_000_000;
        return u64::try_from(milliseconds).ok().map(Timestamp);
    }
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits(seconds) && digits(fraction) {
        let seconds = Duration::from_secs(seconds.parse().ok()?);
        let milliseconds = format!("{fraction:0<3}").get(..3)?.parse().ok()?;
        return Some(Timestamp(0) + seconds + Duration::from_millis(milliseconds));
    }
    duration::parse(text).ok().map(|ago| now - ago)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_a_time_or_how_long_ago() {
        let now = Timestamp(1_000_000);
        for (text, expected) in [
            ("1970-01-01T00:00:01.5Z", Some(1500)),
            ("1970-01-01T01:00:00+01:00", Some(0)),
            ("2", Some(2000)),
            ("2.25", Some(2250)),
            ("2.123456789", Some(2123)),
            ("10s", Some(990_000)),
            ("1h", Some(0)),
            ("yesterday", None),
            ("", None),
            ("1.2.3", None),
        ] {
            assert_eq!(parse_since(text, now), expected.map(Timestamp), "{text}");
        }
    }

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
        assert_eq!(parse_since("61.005", Timestamp(0)), options.since);
        let path = LogTarget::Task("t".into()).local_path(&LogOptions::default());
        assert_eq!(path, "/v1/tasks/t/logs?local=true");
    }
}
