//! The feed's client, on workers: follows one manager, and another one when that one is silent or has no
//! current snapshot. The snapshot in use is replaced by a fresher one only; while no manager has one, it
//! stays.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use mesh_support::watched::{Newest as _, Watched as _};
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    dial::{Connection, Interruption, LIMIT, SILENCE, STALE, dial},
    fresh::{Freshest, Freshness},
    stream::{Stream, Streamed},
    wire::{FromManager, FromNode, Purpose, WireError},
};
use crate::{
    backoff::Backoff,
    source::{HintHandle, NodeIdentity, SourceState},
};

/// The minimum time between two hints.
const HINT_GAP: Duration = Duration::from_millis(60);
/// A manager whose snapshot is older than the one in use has this long to confirm a newer one.
const OLDER_LIMIT: Duration = SILENCE;

/// What a feed client needs.
#[derive(Clone, Debug)]
pub struct FeedClientOptions {
    /// The managers' feed addresses (`docker info`'s RemoteManagers with the feed port), as they change.
    pub managers: watch::Receiver<Vec<SocketAddr>>,
    /// This node's credentials, as they are renewed.
    pub identity: watch::Receiver<Arc<NodeIdentity>>,
    /// The snapshot in use, from whatever source; it stays until a manager has a fresher one.
    pub last: SourceState,
}

/// Follows a manager's feed, and another one when that falls silent.
#[derive(Debug)]
pub struct FeedClient {
    options: FeedClientOptions,
    state: watch::Sender<SourceState>,
    hint: HintHandle,
    freshest: Freshest,
    /// The managers that could not be reached when they were last tried.
    unreachable: BTreeSet<SocketAddr>,
}

impl FeedClient {
    /// Does nothing before [`FeedClient::run`]. Hints on the handle are sent to the manager.
    #[must_use]
    pub fn new(mut options: FeedClientOptions) -> (Self, watch::Receiver<SourceState>, HintHandle) {
        let ours = options.last.cluster.cluster_id == options.identity.current().subject.cluster_id;
        let last = Some(std::mem::take(&mut options.last)).filter(|_| ours);
        let held = last.as_ref().and_then(|last| {
            let age = last.confirmed?.elapsed().unwrap_or_default();
            Some(Freshness {
                manager: None,
                epoch: last.epoch,
                confirmed: Instant::now().checked_sub(age)?,
            })
        });
        let (state, receiver) = watch::channel(last.unwrap_or_default());
        let hint = HintHandle::new();
        let client = Self {
            options,
            state,
            hint: hint.clone(),
            freshest: Freshest::new(held),
            unreachable: BTreeSet::new(),
        };
        (client, receiver, hint)
    }

    /// Follows the managers until cancelled. Retries after every failure, during which the last snapshot
    /// stays in use.
    pub async fn run(mut self, shutdown: CancellationToken) {
        shutdown.run_until_cancelled(self.follow_managers()).await;
    }

    async fn follow_managers(&mut self) {
        let mut backoff = Backoff::default();
        // Spreads the workers over the managers.
        let mut turn = fastrand::usize(..1 << 16);
        loop {
            let managers = self.options.managers.newest();
            self.unreachable.retain(|manager| managers.contains(manager));
            let wait = if managers.is_empty() {
                self.set_trouble("no manager is known; is this node in a Swarm (docker info)?".to_owned());
                LIMIT
            } else {
                let manager = managers[turn % managers.len()];
                turn = turn.wrapping_add(1);
                let interruption = match self.follow(manager, managers.len() > 1, &mut backoff).await {
                    Ok(never) => match never {},
                    Err(interruption) => interruption,
                };
                if interruption.is_unreachable() {
                    self.unreachable.insert(manager);
                } else {
                    self.unreachable.remove(&manager);
                }
                match interruption {
                    Interruption::Renewed => {
                        // The manager itself is fine.
                        turn = turn.wrapping_sub(1);
                        info!(%manager, "connecting again with the renewed node certificate");
                    }
                    // Of each manager in turn if the quorum is lost, so it names none.
                    Interruption::Stale => self.set_trouble(stale_trouble()),
                    interruption => {
                        let trouble = mesh_support::error_chain(&interruption);
                        self.set_trouble(format!("manager {manager}: {trouble}"));
                    }
                }
                backoff.next()
            };
            tokio::select! {
                () = sleep(wait) => {}
                Ok(()) = self.options.managers.changed() => {}
            }
        }
    }

    fn set_trouble(&self, trouble: String) {
        let managers = self.options.managers.current();
        let no_manager = !managers.is_empty() && managers.iter().all(|one| self.unreachable.contains(one));
        self.state.send_if_modified(|state| {
            let changed = state.trouble.as_ref() != Some(&trouble);
            if changed {
                warn!(trouble, "the last snapshot of the cluster stays in use");
            }
            state.trouble = Some(trouble);
            changed | (std::mem::replace(&mut state.no_manager, no_manager) != no_manager)
        });
    }

    async fn follow(
        &mut self,
        manager: SocketAddr,
        others: bool,
        backoff: &mut Backoff,
    ) -> Result<std::convert::Infallible, Interruption> {
        let identity = self.options.identity.newest();
        let Connection {
            mut reader,
            mut writer,
            ..
        } = dial(manager, &identity, Purpose::Follow).await?;
        info!(%manager, "following a manager");
        self.unreachable.remove(&manager);
        let mut stream = Stream::new(&identity.subject.cluster_id);
        let mut link = Link {
            manager,
            others,
            since: Instant::now(),
            in_use: false,
        };
        // Deltas need a whole snapshot to apply to.
        let mut asked = true;
        let mut silence = std::pin::pin!(sleep(SILENCE));
        let mut hint_after = tokio::time::Instant::now();
        let hint = self.hint.clone();
        loop {
            let hinted = async {
                tokio::time::sleep_until(hint_after).await;
                hint.hinted().await;
            };
            let message = tokio::select! {
                message = reader.next() => message?,
                () = hinted => {
                    hint_after = tokio::time::Instant::now() + HINT_GAP;
                    writer.send(&FromNode::Hint, LIMIT).await?;
                    continue;
                }
                () = &mut silence => return Err(WireError::Silent(SILENCE).into()),
                Ok(()) = self.options.identity.changed() => return Err(Interruption::Renewed),
            };
            silence.as_mut().reset(tokio::time::Instant::now() + SILENCE);
            let now = Instant::now();
            let is_heartbeat = matches!(message, FromManager::Heartbeat { .. });
            stream.receive(message, now)?;
            if let Some(streamed) = stream.snapshot() {
                self.consider(&mut link, streamed, is_heartbeat, now)?;
            }
            if link.in_use {
                backoff.reset();
            }
            // Requested once after a gap, which the answer closes.
            let incomplete = stream.snapshot().is_none();
            if incomplete && !asked {
                writer.send(&FromNode::NeedFull, LIMIT).await?;
            }
            asked = incomplete;
        }
    }

    /// Uses a manager's snapshot if it is the freshest. An error calls for another manager.
    fn consider(
        &mut self,
        link: &mut Link,
        streamed: &Streamed,
        is_heartbeat: bool,
        now: Instant,
    ) -> Result<(), Interruption> {
        let Some(confirmed) = streamed.confirmed else {
            // A manager that has confirmed its snapshot says so with its first heartbeat, if not before.
            return if is_heartbeat && link.others {
                Err(Interruption::Stale)
            } else {
                Ok(())
            };
        };
        let freshness = Freshness {
            manager: Some(link.manager),
            epoch: streamed.epoch,
            confirmed,
        };
        if link.in_use {
            self.freshest.advance(freshness);
        } else {
            link.in_use = self.freshest.offer(freshness);
        }
        let age = now.saturating_duration_since(confirmed);
        let stale = age > STALE;
        if link.in_use {
            self.install(link.manager, streamed, age);
        }
        if stale && link.others {
            link.in_use = false;
            return Err(Interruption::Stale);
        }
        if !link.in_use && is_heartbeat {
            if link.others && now.duration_since(link.since) > OLDER_LIMIT {
                return Err(Interruption::Older);
            }
            self.set_trouble(format!("manager {}: {}", link.manager, Interruption::Older));
        }
        Ok(())
    }

    fn install(&self, manager: SocketAddr, streamed: &Streamed, age: Duration) {
        let trouble = streamed.trouble.as_ref();
        let trouble = trouble.map(|trouble| format!("manager {manager}: {trouble}"));
        let trouble = if age > STALE {
            Some(stale_trouble())
        } else {
            trouble
        };
        let new = SourceState {
            cluster: Arc::clone(&streamed.cluster),
            revision: streamed.revision,
            epoch: streamed.epoch,
            confirmed: SystemTime::now().checked_sub(age),
            changed: streamed.changed,
            replicas: Arc::default(),
            key: streamed.key,
            origin: format!("manager {manager}"),
            trouble,
            no_manager: false,
        };
        self.state.send_if_modified(|state| {
            let notify = state.revision != new.revision
                || state.origin != new.origin
                || state.trouble != new.trouble
                || state.key != new.key
                || !Arc::ptr_eq(&state.cluster, &new.cluster);
            *state = new;
            notify
        });
    }
}

/// Why a stale snapshot is in use. Logged once, whichever managers are tried meanwhile.
fn stale_trouble() -> String {
    format!(
        "the managers' snapshots of the cluster are more than {STALE:?} old; have they lost their quorum \
         (docker node ls)?"
    )
}

/// A connection to a manager.
struct Link {
    manager: SocketAddr,
    /// Whether there are other managers.
    others: bool,
    since: Instant,
    /// Whether its snapshot is the one in use.
    in_use: bool,
}
