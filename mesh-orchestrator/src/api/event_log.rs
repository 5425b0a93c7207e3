//! The last events of this node, kept so that a client can resume after the one that it saw last.

use std::{
    collections::VecDeque,
    fmt,
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    sync::broadcast::{self, error::RecvError},
    task::JoinHandle,
};

use crate::{
    cluster::{Cluster, Event},
    store::Revision,
};

/// How many events are kept.
const REMEMBERED: usize = 4096;

/// Identifies an event: the store's revision that caused it, and its index among the events of that revision.
/// It is the same on every node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EventId {
    revision: Revision,
    index: u32,
}

impl fmt::Display for EventId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}-{}", self.revision, self.index)
    }
}

impl FromStr for EventId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (revision, index) = text.split_once('-').ok_or(())?;
        Ok(Self {
            revision: Revision(revision.parse().map_err(drop)?),
            index: index.parse().map_err(drop)?,
        })
    }
}

/// Keeps the last events and passes new ones on.
#[derive(Debug)]
pub(super) struct EventLog {
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

impl Drop for EventLog {
    fn drop(&mut self) {
        self.collector.abort();
    }
}

impl EventLog {
    /// Starts to collect events. Must be called inside a tokio runtime.
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

    /// The events after the given one (none if no event is given), preceded by a reset if some of them are no
    /// longer kept, and a receiver for those to come.
    pub(super) fn follow(
        &self,
        after: Option<EventId>,
    ) -> (VecDeque<Notice>, broadcast::Receiver<(EventId, Event)>) {
        self.shared.follow(after)
    }
}

/// The position after the last event of a revision.
fn all_of(revision: Revision) -> EventId {
    EventId {
        revision,
        index: u32::MAX,
    }
}

async fn collect(cluster: Cluster, mut from: broadcast::Receiver<Event>, shared: Arc<Shared>) {
    let mut next = EventId {
        revision: Revision(0),
        index: 0,
    };
    loop {
        match from.recv().await {
            Ok(event) => {
                next = if event.revision == next.revision {
                    EventId {
                        index: next.index + 1,
                        ..next
                    }
                } else {
                    EventId {
                        revision: event.revision,
                        index: 0,
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
        // Sent under the lock, so that a client that copies the past and then follows misses nothing.
        // Without receivers sending fails, which is fine.
        let _ = self.live.send((id, event));
    }

    fn follow(&self, after: Option<EventId>) -> (VecDeque<Notice>, broadcast::Receiver<(EventId, Event)>) {
        let past = self.past();
        let live = self.live.subscribe();
        let mut notices = VecDeque::new();
        if let Some(after) = after {
            // Which events the revision had at which this node started is unknown.
            if after < past.complete_after && after.revision != past.complete_after.revision {
                notices.push_back(Notice::Reset);
            }
            notices.extend(
                past.events
                    .iter()
                    .filter(|(id, _)| *id > after)
                    .map(|(id, event)| Notice::Event(*id, event.clone())),
            );
        }
        (notices, live)
    }
}

/// What a client receives.
#[derive(Debug)]
pub(super) enum Notice {
    /// Something has changed.
    Event(EventId, Event),
    /// Some events are no longer kept: the client must list everything again.
    Reset,
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

    fn notices(shared: &Shared, after: &str) -> Vec<String> {
        let (notices, _) = shared.follow(Some(after.parse().unwrap()));
        notices
            .into_iter()
            .map(|notice| match notice {
                Notice::Event(id, _) => id.to_string(),
                Notice::Reset => "reset".into(),
            })
            .collect()
    }

    #[test]
    fn a_client_resumes_after_the_last_event_that_it_saw() {
        let shared = shared(5);
        for (revision, index) in [(6, 0), (6, 1), (9, 0)] {
            let revision = Revision(revision);
            shared.remember(EventId { revision, index }, event(revision.0));
        }
        assert_eq!(notices(&shared, "6-0"), ["6-1", "9-0"]);
        assert_eq!(notices(&shared, "9-0"), [""; 0]);
        assert_eq!(notices(&shared, "5-3"), ["6-0", "6-1", "9-0"]);
        assert_eq!(notices(&shared, "4-0"), ["reset", "6-0", "6-1", "9-0"]);
        assert!(shared.follow(None).0.is_empty());
    }

    #[test]
    fn a_client_behind_the_kept_events_gets_a_reset() {
        let shared = shared(0);
        for revision in 1..=REMEMBERED as u64 + 2 {
            shared.remember(
                EventId {
                    revision: Revision(revision),
                    index: 0,
                },
                event(revision),
            );
        }
        assert_eq!(notices(&shared, "1-0").first().map(String::as_str), Some("reset"));
        assert_eq!(notices(&shared, "2-0").first().map(String::as_str), Some("3-0"));
    }
}
