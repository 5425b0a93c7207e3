//! The snapshot that one manager streams, put together from its messages. Pure; imports the messages.

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use super::{
    dial::Interruption,
    wire::{self, FromManager},
};
use crate::model::{Cluster, TunnelKey};

/// What one connection has received.
#[derive(Debug)]
pub(super) struct Stream {
    cluster_id: String,
    snapshot: Option<Streamed>,
}

/// A manager's snapshot.
#[derive(Debug)]
pub(super) struct Streamed {
    pub(super) cluster: Arc<Cluster>,
    pub(super) revision: u64,
    pub(super) changed: Option<SystemTime>,
    pub(super) epoch: u64,
    /// When the manager last confirmed it; `None` until the manager says.
    pub(super) confirmed: Option<Instant>,
    pub(super) key: Option<TunnelKey>,
    /// What is wrong with the manager's own source.
    pub(super) trouble: Option<String>,
}

impl Stream {
    /// Of a manager of this cluster.
    pub(super) fn new(cluster_id: &str) -> Self {
        Self {
            cluster_id: cluster_id.to_owned(),
            snapshot: None,
        }
    }

    /// The snapshot so far; `None` while a whole one is needed.
    pub(super) fn snapshot(&self) -> Option<&Streamed> {
        self.snapshot.as_ref()
    }

    /// Handles one message that came at `now`.
    pub(super) fn receive(&mut self, message: FromManager, now: Instant) -> Result<(), Interruption> {
        match message {
            FromManager::Full {
                revision,
                changed_age,
                confirmed_age,
                epoch,
                key,
                cluster,
            } => {
                self.snapshot = Some(Streamed {
                    cluster,
                    revision,
                    changed: wire::time(changed_age),
                    epoch,
                    confirmed: wire::instant(confirmed_age, now),
                    key,
                    trouble: None,
                });
            }
            FromManager::Delta {
                from,
                to,
                changed_age,
                confirmed_age,
                epoch,
                delta,
            } => {
                self.snapshot = self.snapshot.take().filter(|snapshot| snapshot.revision == from);
                if let Some(snapshot) = &mut self.snapshot {
                    delta.apply(Arc::make_mut(&mut snapshot.cluster));
                    snapshot.revision = to;
                    snapshot.changed = wire::time(changed_age);
                    snapshot.epoch = epoch;
                    snapshot.confirmed = wire::instant(confirmed_age, now).or(snapshot.confirmed);
                }
            }
            FromManager::Heartbeat {
                revision,
                confirmed_age,
                epoch,
                trouble,
                key,
            } => {
                self.snapshot = self
                    .snapshot
                    .take()
                    .filter(|snapshot| snapshot.revision == revision);
                if let Some(snapshot) = &mut self.snapshot {
                    snapshot.epoch = epoch;
                    snapshot.confirmed = wire::instant(confirmed_age, now).or(snapshot.confirmed);
                    snapshot.trouble = trouble;
                    snapshot.key = key;
                }
            }
            FromManager::Refused { reason } => return Err(Interruption::Refused(reason)),
            FromManager::Hello { .. } => return Err(Interruption::Misbehaved("a second greeting")),
            FromManager::Acknowledged { .. } => {
                return Err(Interruption::Misbehaved(
                    "an acknowledgement without an announcement",
                ));
            }
            FromManager::Drain { .. } | FromManager::Read { .. } => {
                return Err(Interruption::Misbehaved(
                    "a request on a connection that takes none",
                ));
            }
        }
        match &self.snapshot {
            Some(snapshot) if snapshot.cluster.cluster_id != self.cluster_id => {
                Err(Interruption::Misbehaved(
                    "its snapshot is of no cluster, or of another one than its certificate",
                ))
            }
            Some(_) | None => Ok(()),
        }
    }
}
