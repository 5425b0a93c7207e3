//! The source on a manager: lists the local engine's services, tasks and nodes when an event, a hint or the
//! pace calls for it, and publishes changes. I/O only: `lists` interprets the lists, `pace` decides when to
//! read them.

mod lists;
mod pace;
#[cfg(test)]
mod tests;
mod tokens;

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bollard::models::{EventMessage, EventMessageTypeEnum};
use futures_util::StreamExt;
use mesh_support::watched::Watched as _;
use tokio::{sync::watch, time::sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

pub(super) use self::lists::Lists;
use self::{pace::Pace, tokens::Tokens};
use super::{Announcements, HintHandle, SourceState};
use crate::{
    backoff::Backoff,
    docker::{Docker, DockerError},
};

/// Services and nodes are listed at least this often, even without events.
const RELIST: Duration = Duration::from_secs(10);

/// A change that comes later after an event was not caused by it.
const NOTICED: Duration = Duration::from_secs(1);

/// Follows the Swarm through the local engine; for managers only.
pub struct SwarmSource {
    docker: Docker,
    state: watch::Sender<SourceState>,
    hint: HintHandle,
    announcements: Announcements,
    lists: Lists,
    /// The UDP port of overlay networks.
    data_path_port: Option<u16>,
    /// The first event or hint since the snapshot last changed.
    noticed: Option<SystemTime>,
    /// The invalid labels that were logged.
    logged: BTreeSet<String>,
}

/// Why following the engine was interrupted.
#[derive(Debug, thiserror::Error)]
enum Interruption {
    #[error(transparent)]
    Docker(#[from] DockerError),
    #[error("Docker closed its stream of events; it is restarting, or this node is leaving the Swarm")]
    EventsEnded,
    #[error("Swarm does not name its cluster; it has probably lost its quorum (docker node ls)")]
    NoCluster,
    #[error("this manager is locked, as its engine was restarted: it waits for 'docker swarm unlock'")]
    Locked,
    #[error("this node is in no Swarm whose services it can list; is it still a manager (docker node ls)?")]
    NoManager,
}

impl SwarmSource {
    /// Reads from `docker`, and the nodes' data paths from `announcements`. Does nothing before
    /// [`SwarmSource::run`]. The handle requests a fresh list.
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
            data_path_port: None,
            noticed: None,
            logged: BTreeSet::new(),
        };
        (source, receiver, hint)
    }

    /// Follows the Swarm until cancelled; retries after every failure of the engine.
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
                let changed = state.trouble.as_ref() != Some(&trouble);
                if changed {
                    warn!(trouble, "cannot follow the Swarm; the last snapshot stays in use");
                }
                state.trouble = Some(trouble);
                changed
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
        if info.is_locked() {
            return Err(Interruption::Locked);
        }
        if !info.manager {
            return Err(Interruption::NoManager);
        }
        let cluster_id = info.cluster_id.ok_or(Interruption::NoCluster)?;
        self.data_path_port = info.data_path_port;
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
                self.read_key(&cluster_id).await;
                self.log_label_errors();
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

    /// Derives the key of packets between nodes from the managers' join token, which every manager can read
    /// and no worker. When the token is rotated, so is the key.
    async fn read_key(&self, cluster_id: &str) {
        match self.docker.get::<Tokens>("/swarm").await {
            Ok(tokens) => {
                let key = tokens.key(cluster_id);
                self.state.send_if_modified(|state| state.take_key(key));
            }
            Err(error) => debug!(
                error = mesh_support::error_chain(&error),
                "the tunnel's key cannot be derived yet"
            ),
        }
    }

    /// Logs each invalid label once.
    fn log_label_errors(&mut self) {
        let errors = self.lists.label_errors();
        for error in errors.difference(&self.logged) {
            warn!("{error}");
        }
        self.logged = errors;
    }

    /// Publishes the snapshot that the lists make; returns whether it changed.
    fn publish(&mut self, cluster_id: &str, seen: SystemTime) -> bool {
        let mut cluster = self.lists.cluster(cluster_id);
        cluster.data_path_port = self.data_path_port;
        let noticed = self.noticed;
        let mut changed = false;
        self.state.send_if_modified(|state| {
            let recovered = state.trouble.take().is_some();
            state.confirmed = Some(seen);
            state.epoch = self.lists.epoch();
            state.replicas = Arc::new(self.lists.replicas());
            self.announcements.put_into(&mut cluster);
            changed = state.revision == 0 || *state.cluster != cluster;
            if changed {
                state.cluster = Arc::new(cluster);
                state.revision = next_revision(state.revision, seen);
                state.changed = Some(noticed.unwrap_or(seen));
            }
            if recovered {
                info!("following the Swarm again");
            }
            changed || recovered
        });
        if changed {
            let state = self.state.current();
            debug!(
                revision = state.revision,
                services = state.cluster.services.len(),
                tasks = state.cluster.tasks.len(),
                nodes = state.cluster.nodes.len(),
                "the cluster has changed"
            );
            self.noticed = None;
        } else if noticed.is_some_and(|noticed| seen.duration_since(noticed).is_ok_and(|age| age > NOTICED)) {
            // That event changed nothing; a later change must not be attributed to it.
            self.noticed = None;
        }
        changed
    }
}

/// The first revision of a process is the time in milliseconds, so that revisions keep growing across
/// restarts of the agent: it makes fewer than a thousand per second.
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

/// Events of local containers precede a change of their task; the `exec_…` of health checks do not.
fn concerns_tasks(event: &EventMessage) -> bool {
    let task = event
        .actor
        .as_ref()
        .and_then(|actor| actor.attributes.as_ref())
        .is_some_and(|labels| labels.contains_key("com.docker.swarm.task.id"));
    let action = event.action.as_deref().unwrap_or_default();
    task && (matches!(action, "start" | "kill" | "die") || action.starts_with("health_status"))
}
