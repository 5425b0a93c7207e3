//! Leading the cluster: one of the candidates runs the control loops, and whoever does not know yet that it
//! no longer leads can change nothing. Imports `control`, `chores` and the store's membership.

use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{
    ChangeError, Cluster,
    control::{Consistency, Control},
    stored::ELECTION,
};
use crate::{
    objects::{NodeId, Timestamp},
    store::{
        Heartbeat, StoreError,
        membership::{Leadership, campaign},
    },
};

/// The pause before the store is asked again.
const RETRY: Duration = Duration::from_millis(500);

/// The pause before the loops decide anew.
const AGAIN: Duration = Duration::from_millis(20);

/// How a leader leads.
#[derive(Clone, Debug)]
pub struct LeaderConfig {
    /// The candidate: its node.
    pub node: NodeId,
    /// How soon another one takes over; and how long a node that was never heard in a term is waited for.
    pub heartbeat: Heartbeat,
    /// How long a leader that has just come to power waits, beyond the heartbeats, before it gives up a node:
    /// as long as a question can take that a node has asked the store while that was away.
    pub settle: Duration,
    /// How far back the store remembers changes, where it has to be told.
    pub remember: Duration,
}

impl LeaderConfig {
    /// A node with everything else as it usually is.
    #[must_use]
    pub fn new(node: NodeId) -> Self {
        Self {
            node,
            heartbeat: Heartbeat::default(),
            settle: Duration::from_secs(10),
            remember: Duration::from_secs(3600),
        }
    }
}

impl Cluster {
    /// Stands for the lead, and runs the control loops whenever it has it, until it is told to stop; then the
    /// lead is given up. A store that is away is waited for.
    pub async fn lead(&self, config: LeaderConfig, shutdown: CancellationToken) {
        while let Some(leadership) = shutdown.run_until_cancelled(self.win(&config)).await {
            tracing::info!(node = %config.node, term = %leadership.term(), "leads the cluster");
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = leadership.lost() => tracing::warn!("lost leadership of the cluster; another node may lead now"),
                end = self.term(&leadership, &config) => tracing::warn!("{end}: the control loops stop here"),
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
                        "cannot stand for the lead"
                    );
                    sleep(RETRY).await;
                }
            }
        }
    }

    /// Runs the loops until they may not go on, and says why.
    async fn term(&self, leadership: &Leadership, config: &LeaderConfig) -> &'static str {
        // What the leader before us has done must be known, all of it.
        self.reach_surely(leadership.term()).await;
        let mut control = Control::new(self, config);
        let mut inconsistent = false;
        loop {
            if control.sync() == Consistency::Inconsistent {
                if !std::mem::replace(&mut inconsistent, true) {
                    tracing::warn!(
                        "the control loops wait: a backup is being restored, or objects cannot be read"
                    );
                }
                control.news().await;
                continue;
            }
            inconsistent = false;
            match control.step(leadership).await {
                Ok(wake_at) => self.pause(&mut control, wake_at).await,
                Err(ChangeError::NotLeader) => return "another node leads",
                // It may still come true, but not after the lead is given up.
                Err(ChangeError::Store(StoreError::OutcomeUnknown { .. })) => {
                    return "the store does not say what has become of a change";
                }
                Err(ChangeError::Store(StoreError::Conflict { key, found, .. })) => {
                    self.catch_up(&key, found).await;
                }
                Err(ChangeError::Refused(error)) => {
                    tracing::debug!(
                        error = &error as &dyn std::error::Error,
                        "what the control loops have decided is out of date"
                    );
                    // It will not be the same again, but for a fault of ours.
                    sleep(AGAIN).await;
                }
                Err(error) => {
                    // What the store's absence means was said already.
                    if !error.is_unavailable() && !matches!(error, ChangeError::Restoring) {
                        let error = &error as &dyn std::error::Error;
                        tracing::error!(error, "could not store what the control loops have decided");
                    }
                    sleep(RETRY).await;
                }
            }
        }
    }

    /// Waits until something has changed, or until it is time.
    async fn pause(&self, control: &mut Control, wake_at: Option<Timestamp>) {
        let Some(wake_at) = wake_at else {
            control.news().await;
            return;
        };
        let left = wake_at.since(self.clock().now());
        if !left.is_zero() {
            tokio::select! {
                () = control.news() => {}
                () = sleep(left) => {}
            }
        }
    }
}
