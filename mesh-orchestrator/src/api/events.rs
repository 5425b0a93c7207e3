//! What changes, as server-sent events. The last ones are remembered, so that whoever was cut off for a
//! while goes on where they were (`Last-Event-ID`); whoever was for longer is told to list everything anew.

use std::{
    collections::VecDeque,
    fmt,
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    http::HeaderName,
    response::{
        IntoResponse, Response,
        sse::{self, KeepAlive, Sse},
    },
};
use futures_util::stream;
use tokio::{
    sync::broadcast::{self, error::RecvError},
    task::JoinHandle,
};

use super::{call::Call, error::ApiError};
use crate::{
    cluster::{Cluster, Event},
    store::Revision,
};

/// Events that are remembered.
const REMEMBERED: usize = 4096;

/// How often a silent stream shows that it is alive.
const ALIVE: Duration = Duration::from_secs(15);

/// Names one event: the store's revision that made it, and its place among those of that revision. It is
/// the same on every node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct EventId {
    revision: Revision,
    place: u32,
}

impl fmt::Display for EventId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}-{}", self.revision, self.place)
    }
}

impl FromStr for EventId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (revision, place) = text.split_once('-').ok_or(())?;
        Ok(Self {
            revision: Revision(revision.parse().map_err(drop)?),
            place: place.parse().map_err(drop)?,
        })
    }
}

/// The last events, and those to come.
#[derive(Debug)]
pub(super) struct Events {
    shared: Arc<Shared>,
    collector: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    past: Mutex<Past>,
    live: broadcast::Sender<(EventId, Event)>,
}

#[derive(Debug)]
struct Past {
    /// Everything after this is in `events`.
    complete_after: EventId,
    events: VecDeque<(EventId, Event)>,
}

impl Drop for Events {
    fn drop(&mut self) {
        self.collector.abort();
    }
}

impl Events {
    /// Begins to remember. Call it inside a tokio runtime.
    pub(super) fn start(cluster: &Cluster) -> Self {
        let from = cluster.events();
        let shared = Arc::new(Shared {
            past: Mutex::new(Past {
                complete_after: all_of(cluster.revision()),
                events: VecDeque::new(),
            }),
            live: broadcast::Sender::new(REMEMBERED),
        });
        let collector = tokio::spawn(collect(cluster.clone(), from, Arc::clone(&shared)));
        Self { shared, collector }
    }
}

/// After the last event of a revision.
fn all_of(revision: Revision) -> EventId {
    EventId {
        revision,
        place: u32::MAX,
    }
}

async fn collect(cluster: Cluster, mut from: broadcast::Receiver<Event>, shared: Arc<Shared>) {
    let mut next = EventId {
        revision: Revision(0),
        place: 0,
    };
    loop {
        match from.recv().await {
            Ok(event) => {
                next = if event.revision == next.revision {
                    EventId {
                        place: next.place + 1,
                        ..next
                    }
                } else {
                    EventId {
                        revision: event.revision,
                        place: 0,
                    }
                };
                shared.remember(next, event);
            }
            Err(RecvError::Lagged(_)) => {
                let mut past = shared.past();
                past.complete_after = all_of(cluster.revision());
                past.events.clear();
            }
            Err(RecvError::Closed) => return,
        }
    }
}

impl Shared {
    fn past(&self) -> MutexGuard<'_, Past> {
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, id: EventId, event: Event) {
        let mut past = self.past();
        if past.events.len() >= REMEMBERED
            && let Some((forgotten, _)) = past.events.pop_front()
        {
            past.complete_after = forgotten;
        }
        past.events.push_back((id, event.clone()));
        // Under the lock: who copies what has been and follows from there misses nothing. Nobody may follow.
        let _ = self.live.send((id, event));
    }

    /// What came after an event (nothing, if none is named), whether some of that is forgotten, and what
    /// will come.
    fn follow(&self, after: Option<EventId>) -> (VecDeque<Told>, broadcast::Receiver<(EventId, Event)>) {
        let past = self.past();
        let live = self.live.subscribe();
        let mut told = VecDeque::new();
        if let Some(after) = after {
            // Of the revision at which this node began, it cannot know which events there were.
            if after < past.complete_after && after.revision != past.complete_after.revision {
                told.push_back(Told::Reset);
            }
            told.extend(
                past.events
                    .iter()
                    .filter(|(id, _)| *id > after)
                    .map(|(id, event)| Told::Event(*id, event.clone())),
            );
        }
        (told, live)
    }
}

/// What a listener is told.
#[derive(Debug)]
enum Told {
    /// Something has changed.
    Event(EventId, Event),
    /// Some events are lost: list everything anew.
    Reset,
}

impl Told {
    fn into_sse(self) -> sse::Event {
        match self {
            Self::Reset => sse::Event::default().event("reset").data("{}"),
            Self::Event(id, event) => {
                let data = serde_json::to_string(&event).unwrap_or_else(|_| "{}".to_owned());
                let kind = serde_json::to_value(event.kind).ok();
                let kind = kind.as_ref().and_then(|kind| kind.as_str()).unwrap_or("change");
                sse::Event::default().id(id.to_string()).event(kind).data(data)
            }
        }
    }
}

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
    let (told, live) = call.api.events().shared.follow(after);
    // The node's API goes before the stream does; what is collected is needed no longer then.
    let events = stream::unfold((told, live, permit), |(mut told, mut live, permit)| async move {
        let next = match told.pop_front() {
            Some(next) => next,
            None => match live.recv().await {
                Ok((id, event)) => Told::Event(id, event),
                Err(RecvError::Lagged(_)) => Told::Reset,
                Err(RecvError::Closed) => return None,
            },
        };
        let event = Ok::<_, std::convert::Infallible>(next.into_sse());
        Some((event, (told, live, permit)))
    });
    Ok(Sse::new(events)
        .keep_alive(KeepAlive::new().interval(ALIVE))
        .into_response())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cluster::{EventAction, EventKind},
        objects::Timestamp,
    };

    fn shared(complete_after: u64) -> Shared {
        Shared {
            past: Mutex::new(Past {
                complete_after: all_of(Revision(complete_after)),
                events: VecDeque::new(),
            }),
            live: broadcast::Sender::new(8),
        }
    }

    fn event(revision: u64) -> Event {
        Event {
            kind: EventKind::Task,
            id: "t".into(),
            name: "web.1".into(),
            action: EventAction::Update,
            revision: Revision(revision),
            time: Timestamp(1),
        }
    }

    fn told(shared: &Shared, after: &str) -> Vec<String> {
        let (told, _) = shared.follow(Some(after.parse().unwrap()));
        told.into_iter()
            .map(|told| match told {
                Told::Event(id, _) => id.to_string(),
                Told::Reset => "reset".into(),
            })
            .collect()
    }

    #[test]
    fn whoever_was_cut_off_goes_on_where_they_were() {
        let shared = shared(5);
        for (revision, place) in [(6, 0), (6, 1), (9, 0)] {
            let revision = Revision(revision);
            shared.remember(EventId { revision, place }, event(revision.0));
        }
        assert_eq!(told(&shared, "6-0"), ["6-1", "9-0"]);
        assert_eq!(told(&shared, "9-0"), [""; 0]);
        assert_eq!(told(&shared, "5-3"), ["6-0", "6-1", "9-0"]);
        assert_eq!(told(&shared, "4-0"), ["reset", "6-0", "6-1", "9-0"]);
        assert!(shared.follow(None).0.is_empty());
    }

    #[test]
    fn what_is_forgotten_is_told() {
        let shared = shared(0);
        for revision in 1..=REMEMBERED as u64 + 2 {
            shared.remember(
                EventId {
                    revision: Revision(revision),
                    place: 0,
                },
                event(revision),
            );
        }
        assert_eq!(told(&shared, "1-0").first().map(String::as_str), Some("reset"));
        assert_eq!(told(&shared, "2-0").first().map(String::as_str), Some("3-0"));
    }
}
