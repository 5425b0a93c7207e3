//! A lease: keys that are there as long as whoever put them is. Depends on nothing of ours.

use std::{fmt, time::Duration};

use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
};

use super::{Key, Prefix};

/// The first segment of all keys that may vanish by themselves. They are in no backup.
pub const EPHEMERAL: &str = "ephemeral";

/// Whether a key may vanish with a lease.
#[must_use]
pub fn is_ephemeral(key: &Key) -> bool {
    key.segments().next() == Some(EPHEMERAL)
}

/// All keys that may vanish with a lease.
pub(super) fn ephemeral() -> Prefix {
    Prefix::of_ours("/ephemeral/")
}

/// Held as long as the store hears from its holder; then the ephemeral keys committed under it vanish.
///
/// Dropping it gives it up at once, [`Lease::revoke`] also waits for that. When the process dies or is cut
/// off, it ends after its time to live.
pub struct Lease {
    id: i64,
    lost: watch::Receiver<bool>,
    keep: oneshot::Sender<()>,
    keeper: JoinHandle<()>,
}

/// The keeping side: what a store's task uses to tell that the lease is lost, and to learn that it shall end.
pub(super) struct Keeper {
    pub(super) lost: watch::Sender<bool>,
    pub(super) given_up: oneshot::Receiver<()>,
}

impl Lease {
    /// Starts the task that keeps the lease until it is given up or lost, and then ends it.
    pub(super) fn start<F>(id: i64, keep: impl FnOnce(Keeper) -> F) -> Self
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

    /// Its name in the store.
    #[must_use]
    pub fn id(&self) -> i64 {
        self.id
    }

    /// Whether it is lost: its keys may be gone, and others may have put theirs.
    ///
    /// It is known here before it is true in the store, as far as both clocks run at one pace.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        *self.lost.borrow()
    }

    /// Waits until it is lost.
    pub async fn lost(&self) {
        // An error means that the keeper has ended, which is the end of the lease too.
        let _ = self.lost.clone().wait_for(|lost| *lost).await;
    }

    /// Gives it up and waits until the store has been told, if it can be.
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

/// How often a holder is heard, and when it counts as gone.
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
    /// The time without a heartbeat after which a holder counts as gone: whole seconds, at least two, which
    /// is the least that etcd grants.
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
    fn a_holder_is_gone_after_three_missed_heartbeats() {
        assert_eq!(Heartbeat::default().time_to_live(), Duration::from_secs(15));
        let quick = Heartbeat {
            interval: Duration::from_millis(100),
            missed: 3,
        };
        assert_eq!(quick.time_to_live(), Duration::from_secs(2));
    }

    #[test]
    fn only_keys_below_ephemeral_can_vanish() {
        assert!(is_ephemeral(&"/ephemeral/nodes/a".parse().unwrap()));
        assert!(!is_ephemeral(&"/services/ephemeral".parse().unwrap()));
        assert!(ephemeral().contains(&"/ephemeral/nodes/a".parse().unwrap()));
    }
}
