//! A lease: keys that exist as long as their owner. Depends on nothing of ours.

use std::{fmt, time::Duration};

use mesh_support::watched::Watched as _;
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time::timeout,
};

use super::{Key, Prefix};

/// The first segment of all keys that are removed with a lease. Backups leave them out.
pub const EPHEMERAL: &str = "ephemeral";

/// Whether a key is removed with its lease.
#[must_use]
pub fn is_ephemeral(key: &Key) -> bool {
    key.segments().next() == Some(EPHEMERAL)
}

/// All keys that are removed with a lease.
pub(super) fn ephemeral() -> Prefix {
    Prefix::of_ours("/ephemeral/")
}

/// Valid as long as the store receives its holder's heartbeats; then the ephemeral keys committed under it
/// are removed.
///
/// Dropping it revokes it, [`Lease::revoke`] also waits for that. When the process dies or is cut off, it
/// ends after its time to live.
pub struct Lease {
    id: i64,
    lost: watch::Receiver<bool>,
    keep: oneshot::Sender<()>,
    keeper: JoinHandle<()>,
}

/// The renewing side: a store's task reports a lost lease, and learns that it is to be revoked.
#[derive(Debug)]
pub struct Keeper {
    /// To be set once the lease has ended or may have ended.
    pub lost: watch::Sender<bool>,
    /// Ends when the lease is dropped: it is to be revoked then.
    pub given_up: oneshot::Receiver<()>,
}

/// How long revoking may take.
const REVOKE: Duration = Duration::from_secs(2);

impl Keeper {
    /// Lets heartbeats go on until the lease is lost, or revokes it once it is given up.
    pub(super) async fn keep(
        mut self,
        beats_until_lost: impl Future<Output = ()>,
        revoke: impl Future<Output = ()>,
    ) {
        tokio::select! {
            () = beats_until_lost => {}
            _ = &mut self.given_up => {
                // Otherwise it ends after its time to live.
                let _ = timeout(REVOKE, revoke).await;
            }
        }
        self.lost.send_replace(true);
    }
}

impl Lease {
    /// Starts the task that renews the lease until it is revoked or lost, and then ends it. For
    /// implementations of a store.
    pub fn start<F>(id: i64, keep: impl FnOnce(Keeper) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (lost, loss) = watch::channel(false);
        let (alive, given_up) = oneshot::channel();
        Self {
            id,
            lost: loss,
            keep: alive,
            keeper: tokio::spawn(keep(Keeper { lost, given_up })),
        }
    }

    /// Its identifier in the store.
    #[must_use]
    pub fn id(&self) -> i64 {
        self.id
    }

    /// Whether it is lost: its keys may have been removed, and others may have put them again.
    ///
    /// This turns true before the lease ends in the store, provided that both clocks run at the same rate.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lost.current()
    }

    /// Waits until it is lost.
    pub async fn lost(&self) {
        // An error means that the keeper has ended, and the lease with it.
        let _ = self.lost.clone().wait_for(|lost| *lost).await;
    }

    /// Revokes it, and waits until the store has acknowledged that, if it is available.
    pub async fn revoke(self) {
        drop(self.keep);
        // It can only fail if the runtime ends, and the lease with it.
        let _ = self.keeper.await;
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Lease")
            .field("id", &self.id)
            .field("lost", &self.is_lost())
            .finish_non_exhaustive()
    }
}

/// How often a holder sends heartbeats, and how many it may miss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// The time between two heartbeats.
    pub interval: Duration,
    /// How many may be missed.
    pub missed: u32,
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(5),
            missed: 3,
        }
    }
}

impl Heartbeat {
    /// The time without a heartbeat after which a lease ends: whole seconds, and at least two, etcd's
    /// minimum.
    #[must_use]
    pub fn time_to_live(self) -> Duration {
        let time = self.interval * self.missed.max(1);
        Duration::from_secs(time.as_secs() + u64::from(time.subsec_nanos() > 0)).max(Duration::from_secs(2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_ends_after_three_missed_heartbeats() {
        assert_eq!(Heartbeat::default().time_to_live(), Duration::from_secs(15));
        let quick = Heartbeat {
            interval: Duration::from_millis(100),
            missed: 3,
        };
        assert_eq!(quick.time_to_live(), Duration::from_secs(2));
    }

    #[test]
    fn only_keys_below_ephemeral_belong_to_leases() {
        assert!(is_ephemeral(&"/ephemeral/nodes/a".parse().unwrap()));
        assert!(!is_ephemeral(&"/services/ephemeral".parse().unwrap()));
        assert!(ephemeral().contains(&"/ephemeral/nodes/a".parse().unwrap()));
    }
}
