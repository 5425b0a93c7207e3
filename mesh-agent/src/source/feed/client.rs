//! The feed's client, on workers: follows one manager, and another one when that one is silent or has no
//! current snapshot. While no manager answers, the last snapshot stays in use.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    dial::{Interruption, LIMIT, SILENCE, STALE, dial},
    wire::{self, FromManager, FromNode, Purpose, WireError},
};
use crate::{
    backoff::Backoff,
    source::{HintHandle, NodeIdentity, SourceState},
};

/// The minimum time between two hints.
const HINT_GAP: Duration = Duration::from_millis(60);

/// What a feed client needs.
#[derive(Clone, Debug)]
pub struct FeedClientOptions {
    /// The managers' feed addresses (`docker info`'s RemoteManagers with the feed port), as they change.
    pub managers: watch::Receiver<Vec<SocketAddr>>,
    /// This node's credentials, as they are renewed.
    pub identity: watch::Receiver<Arc<NodeIdentity>>,
}

/// Follows a manager's feed, and another one when that falls silent.
#[derive(Debug)]
pub struct FeedClient {
    options: FeedClientOptions,
    state: watch::Sender<SourceState>,
    hint: HintHandle,
}

impl FeedClient {
    /// Does nothing before [`FeedClient::run`]. Hints on the handle are sent to the manager.
    #[must_use]
    pub fn new(options: FeedClientOptions) -> (Self, watch::Receiver<SourceState>, HintHandle) {
        let (state, receiver) = watch::channel(SourceState::default());
        let hint = HintHandle::new();
        let client = Self {
            options,
            state,
            hint: hint.clone(),
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
            let managers = self.options.managers.borrow_and_update().clone();
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
                if matches!(interruption, Interruption::Renewed) {
                    // The manager itself is fine.
                    turn = turn.wrapping_sub(1);
                    info!(%manager, "connecting again with the renewed node certificate");
                } else {
                    let trouble = mesh_support::error_chain(&interruption);
                    self.set_trouble(format!("manager {manager}: {trouble}"));
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
        self.state.send_if_modified(|state| {
            let changed = state.trouble.as_ref() != Some(&trouble);
            if changed {
                warn!(trouble, "no manager is followed; the last snapshot stays in use");
            }
            state.trouble = Some(trouble);
            changed
        });
    }

    async fn follow(
        &mut self,
        manager: SocketAddr,
        others: bool,
        backoff: &mut Backoff,
    ) -> Result<std::convert::Infallible, Interruption> {
        let identity = Arc::clone(&self.options.identity.borrow_and_update());
        let (mut reader, mut writer) = dial(manager, &identity, Purpose::Follow).await?;
        info!(%manager, "following a manager");
        // Deltas need a whole snapshot to apply to.
        let mut revision = None;
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
            let next = self.receive(message, manager, revision, others)?;
            if next.is_some() {
                backoff.reset();
            }
            // Requested once after a gap, which the answer closes.
            if next.is_none() && !asked {
                writer.send(&FromNode::NeedFull, LIMIT).await?;
            }
            asked = next.is_none();
            revision = next;
        }
    }

    /// Handles one message; returns the resulting revision, or `None` when a whole snapshot is needed.
    fn receive(
        &self,
        message: FromManager,
        manager: SocketAddr,
        revision: Option<u64>,
        others: bool,
    ) -> Result<Option<u64>, Interruption> {
        match message {
            FromManager::Full {
                revision,
                changed_age,
                cluster,
            } => {
                self.state.send_replace(SourceState {
                    cluster,
                    revision,
                    confirmed: Some(SystemTime::now()),
                    changed: wire::time(changed_age),
                    origin: format!("manager {manager}"),
                    trouble: None,
                });
                Ok(Some(revision))
            }
            FromManager::Delta {
                from,
                to,
                changed_age,
                delta,
            } => {
                if revision != Some(from) {
                    return Ok(None);
                }
                self.state.send_modify(|state| {
                    delta.apply(Arc::make_mut(&mut state.cluster));
                    state.revision = to;
                    state.confirmed = Some(SystemTime::now());
                    state.changed = wire::time(changed_age);
                });
                Ok(Some(to))
            }
            FromManager::Heartbeat {
                revision: current,
                confirmed_age,
                trouble,
            } => {
                let stale = confirmed_age.is_none_or(|age| Duration::from_millis(age) > STALE);
                if stale && others {
                    return Err(Interruption::Stale);
                }
                let trouble = trouble.map(|trouble| format!("manager {manager}: {trouble}"));
                self.state.send_if_modified(|state| {
                    state.confirmed = wire::time(confirmed_age).or(state.confirmed);
                    let changed = state.trouble != trouble;
                    state.trouble = trouble;
                    changed
                });
                Ok(revision.filter(|&revision| revision == current))
            }
            FromManager::Refused { reason } => Err(Interruption::Refused(reason)),
            FromManager::Hello { .. } => Err(Interruption::Misbehaved("a second greeting")),
            FromManager::Acknowledged { .. } => Err(Interruption::Misbehaved(
                "an acknowledgement without an announcement",
            )),
        }
    }
}
