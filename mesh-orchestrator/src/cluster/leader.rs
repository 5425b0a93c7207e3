//! Leading the cluster: one of the candidates runs the control loops, and a leader that was replaced cannot
//! change anything, even before it notices. Imports `control`, `chores` and the store's membership.

use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{
    ChangeError, Cluster,
    control::{Consistency, Control},
    liveness::Liveness,
    stored::ELECTION,
};
use crate::{
    objects::{NodeId, Timestamp},
    store::{
        Heartbeat, StoreError,
        membership::{Leadership, campaign},
    },
};

/// The pause before the store is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// The pause before the loops decide again.
const AGAIN: Duration = Duration::from_millis(20);

/// How a candidate campaigns and leads.
#[derive(Clone, Debug)]
pub struct LeaderConfig {
    /// The candidate: its node.
    pub node: NodeId,
    /// How soon another candidate takes over, and how long to wait for a node that has not been seen in a
    /// term.
    pub heartbeat: Heartbeat,
    /// How long a new leader waits, beyond the heartbeats, before it marks a node down: as long as a node's
    /// request to an unavailable store can take.
    pub settle: Duration,
    /// How long the store keeps old revisions, if it does not compact by itself.
    pub remember: Duration,
}

impl LeaderConfig {
    /// A candidate with default settings.
    #[must_use]
    pub fn new(node: NodeId) -> Self {
        Self {
            node,
            heartbeat: Heartbeat::default(),
            settle: Duration::from_secs(10),
            // A rollout of 50,000 tasks writes 200 MB, and etcd's default quota is 2 GiB. A member that was
            // away for longer reads everything again.
            remember: Duration::from_secs(300),
        }
    }
}

impl Cluster {
    /// Campaigns for leadership, and runs the control loops during each term, until `shutdown`; then resigns.
    /// Waits for a store that is unavailable.
    pub async fn run_candidate(&self, config: LeaderConfig, shutdown: CancellationToken) {
        while let Some(leadership) = shutdown.run_until_cancelled(self.win(&config)).await {
            tracing::info!(node = %config.node, term = %leadership.term(), "leads the cluster");
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = leadership.lost() => tracing::warn!("lost leadership of the cluster; another node may lead now"),
                end = self.term(&leadership, &config) => tracing::warn!("{end}: resigning"),
                () = self.forget_old(config.remember) => {}
            }
            leadership.resign().await;
        }
    }

    async fn win(&self, config: &LeaderConfig) -> Leadership {
        loop {
            match campaign(self.store(), ELECTION, config.node.as_str(), config.heartbeat).await {
                Ok(leadership) => return leadership,
                Err(error) => {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "could not campaign for leadership"
                    );
                    sleep(RETRY).await;
                }
            }
        }
    }

    /// Runs the loops until they have to stop, and returns why.
    async fn term(&self, leadership: &Leadership, config: &LeaderConfig) -> &'static str {
        // All changes of the previous leader must be in the mirror.
        self.wait_for(leadership.term()).await;
        let time_to_live = config.heartbeat.time_to_live();
        let liveness = Liveness::new(time_to_live, config.settle, self.clock().now());
        let mut control = Control::new(self, liveness);
        let mut inconsistent = false;
        loop {
            if control.sync() == Consistency::Inconsistent {
                if !std::mem::replace(&mut inconsistent, true) {
                    tracing::warn!(
                        "the control loops wait: a backup is being restored, or an object cannot be read"
                    );
                }
                control.changed().await;
                continue;
            }
            inconsistent = false;
            match control.step(leadership).await {
                Ok(wake_at) => self.pause(&mut control, wake_at).await,
                Err(ChangeError::NotLeader) => return "another node leads",
                // It may still be committed, but not after we resign.
                Err(ChangeError::Store(StoreError::OutcomeUnknown { .. })) => {
                    return "the outcome of a change is unknown";
                }
                Err(ChangeError::Store(StoreError::Conflict { key, found, .. })) => {
                    self.catch_up(&key, found).await;
                }
                Err(ChangeError::Refused(error)) => {
                    tracing::debug!(
                        error = &error as &dyn std::error::Error,
                        "the control loops' decisions are out of date"
                    );
                    // Only a bug would repeat it.
                    sleep(AGAIN).await;
                }
                Err(error) => {
                    // `note` has logged that the store is unavailable.
                    if !error.is_unavailable() && !matches!(error, ChangeError::Restoring) {
                        let error = &error as &dyn std::error::Error;
                        tracing::error!(error, "could not store the control loops' decisions");
                    }
                    sleep(RETRY).await;
                }
            }
        }
    }

    /// Waits until something changes or `wake_at`.
    async fn pause(&self, control: &mut Control, wake_at: Option<Timestamp>) {
        let Some(wake_at) = wake_at else {
            control.changed().await;
            return;
        };
        let left = wake_at.since(self.clock().now());
        if !left.is_zero() {
            tokio::select! {
                () = control.changed() => {}
                () = sleep(left) => {}
            }
        }
    }
}
