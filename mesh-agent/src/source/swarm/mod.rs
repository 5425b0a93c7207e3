//! The cluster's snapshot on a manager: lists services, tasks and nodes of the local engine whenever an
//! event, a hint or the pace says so, and publishes what has changed. I/O only; what the lists mean is
//! decided in `lists`, when to read them in `pace`.

mod lists;
mod pace;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bollard::models::{EventMessage, EventMessageTypeEnum};
use futures_util::StreamExt;
use tokio::{sync::watch, time::sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

pub(super) use self::lists::Lists;
use self::pace::Pace;
use super::{Announcements, HintHandle, SourceState, labels::LabelError};
use crate::{
    backoff::Backoff,
    docker::{Docker, DockerError},
};

/// Services and nodes are listed at least this often, whatever the events say.
const RELIST: Duration = Duration::from_secs(10);

/// A change that comes later than this after an event is not the event's.
const NOTICED: Duration = Duration::from_secs(1);

/// Follows the Swarm through the local engine; for managers only.
pub struct SwarmSource {
    docker: Docker,
    state: watch::Sender<SourceState>,
    hint: HintHandle,
    announcements: Announcements,
    lists: Lists,
    /// The first event or hint since the snapshot last changed.
    noticed: Option<SystemTime>,
    /// What of the labels is not understood, and has been said.
    said: BTreeSet<LabelError>,
}

/// Why following the engine ended.
#[derive(Debug, thiserror::Error)]
enum Interruption {
    #[error(transparent)]
    Docker(#[from] DockerError),
    #[error("Docker closed its stream of events; it is restarting, or this node is leaving the Swarm")]
    EventsEnded,
    #[error("this node is in no Swarm whose services it can list; is it still a manager (docker node ls)?")]
    NoManager,
}

impl SwarmSource {
    /// A source that reads from `docker`, and from `announcements` what the nodes balance with; nothing
    /// happens before [`SwarmSource::run`]. The handle asks for a fresh list at once.
    #[must_use]
    pub fn new(
        docker: Docker,
        announcements: Announcements,
    ) -> (Self, watch::Receiver<SourceState>, HintHandle) {
        let (state, receiver) = watch::channel(SourceState {
            origin: "this manager's engine".to_owned(),
            ..SourceState::default()
        });
        let hint = HintHandle::new();
        let source = Self {
            docker,
            state,
            hint: hint.clone(),
            announcements,
            lists: Lists::default(),
            noticed: None,
            said: BTreeSet::new(),
        };
        (source, receiver, hint)
    }

    /// Follows the Swarm until cancelled; survives every failure of the engine.
    pub async fn run(self, shutdown: CancellationToken) {
        let (announcements, state) = (self.announcements.clone(), self.state.clone());
        tokio::select! {
            () = self.follow_swarm(shutdown) => {}
            () = announcements.publish_to(&state) => {}
        }
    }

    async fn follow_swarm(mut self, shutdown: CancellationToken) {
        let mut backoff = Backoff::default();
        loop {
            let Some(interruption) = shutdown.run_until_cancelled(self.follow(&mut backoff)).await else {
                return;
            };
            self.docker.reset();
            self.noticed = None;
            let trouble = mesh_support::error_chain(&interruption);
            self.state.send_if_modified(|state| {
                let news = state.trouble.as_ref() != Some(&trouble);
                if news {
                    warn!(
                        trouble,
                        "the Swarm cannot be followed; the last snapshot stays in force"
                    );
                }
                state.trouble = Some(trouble);
                news
            });
            let wait = tokio::time::sleep(backoff.next());
            if shutdown.run_until_cancelled(wait).await.is_none() {
                return;
            }
        }
    }

    async fn follow(&mut self, backoff: &mut Backoff) -> Interruption {
        match self.try_follow(backoff).await {
            Ok(never) => match never {},
            Err(interruption) => interruption,
        }
    }

    async fn try_follow(&mut self, backoff: &mut Backoff) -> Result<std::convert::Infallible, Interruption> {
        let info = self.docker.info().await?;
        let cluster_id = info
            .cluster_id
            .filter(|_| info.manager)
            .ok_or(Interruption::NoManager)?;
        // Subscribe first, list afterwards: what changes in between is then seen twice, not never.
        let mut events = self.docker.events(&["service", "node", "container"]).await?;
        let mut pace = Pace::new(Instant::now());
        let mut relist = true;
        let mut relisted = Instant::now();
        loop {
            let started = Instant::now();
            let seen = SystemTime::now();
            if relist || started - relisted >= RELIST || self.lists.names_unknown_service() {
                (self.lists.services, self.lists.nodes) =
                    tokio::try_join!(self.docker.get("/services"), self.docker.get("/nodes"))?;
                relist = false;
                self.say_label_errors();
                relisted = started;
            }
            self.lists.tasks = self.docker.get("/tasks").await?;
            backoff.reset();
            let changed = self.publish(&cluster_id, seen);
            let now = Instant::now();
            pace.listed(started, now, changed, self.lists.converging());
            let mut next = pace.next(now);
            loop {
                tokio::select! {
                    () = sleep_until(next.into()) => break,
                    () = self.hint.hinted() => {}
                    event = events.next() => match event.ok_or(Interruption::EventsEnded)?? {
                        event if concerns_lists(&event) => relist = true,
                        event if concerns_tasks(&event) => {}
                        _ => continue,
                    }
                }
                pace.hint(Instant::now());
                self.noticed.get_or_insert_with(SystemTime::now);
                next = next.min(pace.next_hinted());
            }
        }
    }

    /// Each label that is not understood once.
    fn say_label_errors(&mut self) {
        let errors = self.lists.label_errors();
        for error in errors.difference(&self.said) {
            warn!("{error}");
        }
        self.said = errors;
    }

    /// Publishes the lists if they make another snapshot than before; says whether they do.
    fn publish(&mut self, cluster_id: &str, seen: SystemTime) -> bool {
        let mut cluster = self.lists.cluster(cluster_id);
        let noticed = self.noticed;
        let mut changed = false;
        self.state.send_if_modified(|state| {
            let recovered = state.trouble.take().is_some();
            state.confirmed = Some(seen);
            self.announcements.put_into(&mut cluster);
            changed = state.revision == 0 || *state.cluster != cluster;
            if changed {
                state.cluster = Arc::new(cluster);
                state.revision = next_revision(state.revision, seen);
                state.changed = Some(noticed.unwrap_or(seen));
            }
            if recovered {
                info!("the Swarm is followed again");
            }
            changed || recovered
        });
        if changed {
            let state = self.state.borrow();
            debug!(
                revision = state.revision,
                services = state.cluster.services.len(),
                tasks = state.cluster.tasks.len(),
                nodes = state.cluster.nodes.len(),
                "the cluster has changed"
            );
            self.noticed = None;
        } else if noticed.is_some_and(|noticed| seen.duration_since(noticed).is_ok_and(|age| age > NOTICED)) {
            // That event changed nothing here: a later change must not be dated back to it.
            self.noticed = None;
        }
        changed
    }
}

/// The first revision of a process is the time in milliseconds, so that revisions go on growing when
/// the agent restarts: it makes fewer than a thousand a second.
fn next_revision(last: u64, now: SystemTime) -> u64 {
    if last > 0 {
        return last + 1;
    }
    let milliseconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    u64::try_from(milliseconds).unwrap_or(u64::MAX / 2).max(1)
}

fn concerns_lists(event: &EventMessage) -> bool {
    matches!(
        event.typ,
        Some(EventMessageTypeEnum::SERVICE | EventMessageTypeEnum::NODE)
    )
}

/// Local containers' events foretell a change of their task; health checks' `exec_…` do not.
fn concerns_tasks(event: &EventMessage) -> bool {
    let task = event
        .actor
        .as_ref()
        .and_then(|actor| actor.attributes.as_ref())
        .is_some_and(|labels| labels.contains_key("com.docker.swarm.task.id"));
    let action = event.action.as_deref().unwrap_or_default();
    task && (matches!(action, "start" | "kill" | "die") || action.starts_with("health_status"))
}
