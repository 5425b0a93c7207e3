//! What changes, as server-sent events. A client whose connection was cut resumes after the last event that
//! it has seen (`Last-Event-ID`); if that event is no longer remembered, `reset` tells it to list everything
//! again.

use std::time::Duration;

use axum::{
    http::HeaderName,
    response::{
        IntoResponse, Response,
        sse::{self, KeepAlive, Sse},
    },
};
use futures_util::stream;
use tokio::sync::broadcast::error::RecvError;

use super::{
    call::Call,
    error::ApiError,
    event_log::{EventId, Notice},
};

/// How often an idle stream sends a comment to show that it is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

pub(super) async fn follow(call: Call) -> Result<Response, ApiError> {
    static LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
    let last = call.header(&LAST_EVENT_ID).or(call.argument("after"));
    let after = last
        .map(|text| {
            text.parse::<EventId>()
                .map_err(|()| ApiError::invalid("Last-Event-ID", text, "the id of an event, such as 42-0"))
        })
        .transpose()?;
    let permit = call.api.stream_permit()?;
    let (past, live) = call.api.event_log().follow(after);
    // The stream holds no `Api`: it must not keep the collector of events running.
    let events = stream::unfold((past, live, permit), |(mut past, mut live, permit)| async move {
        let next = match past.pop_front() {
            Some(next) => next,
            None => match live.recv().await {
                Ok((id, event)) => Notice::Event(id, event),
                Err(RecvError::Lagged(_)) => Notice::Reset,
                Err(RecvError::Closed) => return None,
            },
        };
        let event = Ok::<_, std::convert::Infallible>(to_sse(next));
        Some((event, (past, live, permit)))
    });
    Ok(Sse::new(events)
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
        .into_response())
}

fn to_sse(notice: Notice) -> sse::Event {
    match notice {
        Notice::Reset => sse::Event::default().event("reset").data("{}"),
        Notice::Event(id, event) => {
            let data = serde_json::to_string(&event).unwrap_or_else(|_| "{}".to_owned());
            let kind = serde_json::to_value(event.kind).ok();
            let kind = kind.as_ref().and_then(|kind| kind.as_str()).unwrap_or("change");
            sse::Event::default().id(id.to_string()).event(kind).data(data)
        }
    }
}
