//! Relays the current source's channel to the agent's own, which outlives a change of the source.

use std::{sync::Arc, time::Duration};

use mesh_support::watched::{Newest as _, Watched as _};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    model::announced::keep_known,
    source::{FeedServerStatus, SourceState},
};

/// How often the time of the last confirmation is copied, of which sources do not notify.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(1);

/// Copies `from` to `to` until stopped.
pub(super) async fn relay<T: Relayed>(
    mut from: watch::Receiver<T>,
    to: &watch::Sender<T>,
    stop: &CancellationToken,
) {
    let mut tick = tokio::time::interval(FOLLOW_INTERVAL);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {
                let now = from.current();
                to.send_if_modified(|last| now.follow(last));
                continue;
            }
            changed = from.changed() => if changed.is_err() {
                return stop.cancelled().await;
            },
        }
        let new = from.newest();
        to.send_modify(|last| new.replace(last));
    }
}

/// A state that can be copied to the agent's own channel.
pub(super) trait Relayed: Clone {
    /// Replaces the last state; a source without a snapshot of a cluster does not discard the last one.
    fn replace(self, last: &mut Self);

    /// Copies what changes without a notification; true if receivers are to be notified all the same.
    fn follow(&self, _last: &mut Self) -> bool {
        false
    }
}

impl Relayed for FeedServerStatus {
    fn replace(self, last: &mut Self) {
        *last = self;
    }
}

impl Relayed for SourceState {
    fn replace(mut self, last: &mut Self) {
        if names_a_cluster(&self) {
            keep_known(&mut self.cluster, &last.cluster);
            // A manager of an earlier release does not know it, and one that has just started not yet.
            self.key = self.key.or(last.key);
            *last = self;
        } else {
            last.trouble = self.trouble;
            last.no_manager = self.no_manager;
        }
    }

    fn follow(&self, last: &mut Self) -> bool {
        if !names_a_cluster(self) {
            return false;
        }
        if last.confirmed.is_none() {
            // There is no earlier snapshot to keep.
            *last = self.clone();
            return true;
        }
        last.confirmed = self.confirmed;
        last.epoch = self.epoch;
        last.replicas = Arc::clone(&self.replicas);
        false
    }
}

/// Whether there is a snapshot. One without a cluster's id is of no cluster: an engine without a quorum has
/// an empty answer.
fn names_a_cluster(state: &SourceState) -> bool {
    state.confirmed.is_some() && !state.cluster.cluster_id.is_empty()
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::model::Cluster;

    #[test]
    fn a_source_without_a_snapshot_does_not_discard_the_last_one() {
        let cluster = Arc::new(Cluster {
            cluster_id: "cluster".into(),
            ..Cluster::default()
        });
        let mut last = SourceState {
            cluster: Arc::clone(&cluster),
            revision: 7,
            confirmed: Some(SystemTime::UNIX_EPOCH),
            ..SourceState::default()
        };
        let starting = SourceState {
            trouble: Some("no manager answers".into()),
            ..SourceState::default()
        };
        starting.replace(&mut last);
        assert_eq!((last.cluster.as_ref(), last.revision), (cluster.as_ref(), 7));
        assert_eq!(last.trouble.as_deref(), Some("no manager answers"));
        let nameless = SourceState {
            revision: 8,
            confirmed: Some(SystemTime::UNIX_EPOCH),
            trouble: Some("no quorum".into()),
            ..SourceState::default()
        };
        assert!(!nameless.follow(&mut last));
        nameless.replace(&mut last);
        assert_eq!((last.cluster.as_ref(), last.revision), (cluster.as_ref(), 7));
        assert_eq!(last.trouble.as_deref(), Some("no quorum"));
        let ready = SourceState {
            cluster,
            revision: 1,
            confirmed: Some(SystemTime::UNIX_EPOCH),
            ..SourceState::default()
        };
        ready.clone().replace(&mut last);
        assert_eq!(last.revision, 1);
        let confirmed = SourceState {
            confirmed: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(9)),
            ..ready
        };
        assert!(!confirmed.follow(&mut last), "a heartbeat notifies no one");
        assert_eq!(last.confirmed, confirmed.confirmed);
    }
}
