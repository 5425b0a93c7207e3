//! Logs of tasks, read from this node's engine and from other nodes, and merged into one stream of JSON
//! lines.

mod follow;
mod merge;
mod since;
mod sources;

use axum::{
    body::{Body, Bytes},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::stream;

use tokio::sync::mpsc;

use self::{follow::follow, merge::in_order, since::parse_since, sources::Request};
use super::{
    Api,
    call::Call,
    error::ApiError,
    log_sources::{LogOptions, LogTarget},
    reference,
    service_access::find,
    types::LogLine,
};
use crate::objects::Timestamp;

/// Number of lines that are buffered for the client.
const BUFFER: usize = 256;

/// The content type of a stream of lines.
pub(super) const NDJSON: &str = "application/x-ndjson";

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
    let lines = lines(&call.api, target, options, local);
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

/// All lines of the target. They stop when the receiver is dropped.
fn lines(api: &Api, target: LogTarget, options: LogOptions, local: bool) -> mpsc::Receiver<LogLine> {
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
            let streams = sources.into_iter().map(|source| request.once(source));
            in_order(streams.collect(), into).await;
        }
    });
    lines
}

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
