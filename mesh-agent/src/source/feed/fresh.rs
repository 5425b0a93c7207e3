//! Which of several managers' snapshots is the freshest. Pure; the feed's client asks it before it replaces
//! the snapshot in use. Imports nothing of ours.
//!
//! A manager that is cut off from its quorum goes on streaming. Once its lists fail, the age of its snapshot
//! shows it. A leader, however, answers lists from its own memory until it notices, and its snapshot looks
//! confirmed meanwhile; then the epoch decides, because a new leader writes to the store at once (it marks
//! the nodes). The epoch alone does not suffice: it is that of the newest object, which may be removed, and
//! a Swarm that is restored from a backup starts with a lower one.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

/// For how long a leader without a quorum may believe that it leads: two of Swarm's election time-outs. When
/// two snapshots were confirmed further apart, the later one is the fresher, whatever their epochs.
pub(super) const LEASE: Duration = Duration::from_secs(20);

/// How fresh a manager's snapshot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Freshness {
    /// Whose snapshot it is; `None` for one from before this client started.
    pub(super) manager: Option<SocketAddr>,
    /// The store's version of the newest object in it; 0 if the manager does not say.
    pub(super) epoch: u64,
    /// When the manager last confirmed it by a list.
    pub(super) confirmed: Instant,
}

impl Freshness {
    fn is_fresher_than(&self, other: &Self) -> bool {
        if self.manager.is_some() && self.manager == other.manager {
            return self.confirmed >= other.confirmed;
        }
        let (earlier, later) = if self.confirmed < other.confirmed {
            (self.confirmed, other.confirmed)
        } else {
            (other.confirmed, self.confirmed)
        };
        let by_epoch = self.epoch > 0 && other.epoch > 0 && later.duration_since(earlier) <= LEASE;
        if by_epoch && self.epoch != other.epoch {
            self.epoch > other.epoch
        } else {
            self.confirmed > other.confirmed
        }
    }
}

/// The freshest snapshot so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Freshest {
    held: Option<Freshness>,
    /// The latest confirmation of any snapshot that was held.
    latest: Option<Instant>,
}

impl Freshest {
    /// Starts with the snapshot that is in use, if there is one.
    pub(super) fn new(held: Option<Freshness>) -> Self {
        Self {
            held,
            latest: held.map(|held| held.confirmed),
        }
    }

    /// Whether to replace the snapshot in use by this one, which then counts as the one in use.
    pub(super) fn offer(&mut self, candidate: Freshness) -> bool {
        let expired = self
            .latest
            .is_some_and(|latest| latest.saturating_duration_since(candidate.confirmed) > LEASE);
        let is_fresher = self.held.is_none_or(|held| candidate.is_fresher_than(&held));
        if expired || !is_fresher {
            return false;
        }
        self.advance(candidate);
        true
    }

    /// Notes how fresh the snapshot in use is now. The messages of one connection are in order, so what
    /// follows on the connection of the snapshot in use needs no decision.
    pub(super) fn advance(&mut self, held: Freshness) {
        self.latest = self.latest.max(Some(held.confirmed));
        self.held = Some(held);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn manager(number: usize) -> Option<SocketAddr> {
        let port = 7946 + u16::try_from(number).unwrap();
        Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
    }

    fn at(start: Instant, number: usize, epoch: u64, milliseconds: u64) -> Freshness {
        Freshness {
            manager: manager(number),
            epoch,
            confirmed: start + Duration::from_millis(milliseconds),
        }
    }

    fn key(freshness: &Freshness) -> (u64, Instant) {
        (freshness.epoch, freshness.confirmed)
    }

    /// What up to four managers stream within a leader's lease, each in order of its own, and an order in
    /// which a worker sees it.
    fn streams() -> impl Strategy<Value = (Vec<Vec<(u64, u64)>>, Vec<usize>)> {
        let lease = u64::try_from(LEASE.as_millis()).unwrap();
        let stream = vec((1..50_u64, 0..lease), 1..8).prop_map(|mut steps| {
            // The epoch of one manager's snapshots and their confirmations grow.
            let (mut epochs, mut times): (Vec<_>, Vec<_>) = steps.iter().copied().unzip();
            epochs.sort_unstable();
            times.sort_unstable();
            steps = epochs.into_iter().zip(times).collect();
            steps
        });
        vec(stream, 1..5).prop_flat_map(|streams| {
            let turns: Vec<usize> = streams
                .iter()
                .enumerate()
                .flat_map(|(number, steps)| steps.iter().map(move |_| number))
                .collect();
            (Just(streams), Just(turns).prop_shuffle())
        })
    }

    proptest! {
        #[test]
        fn any_order_of_several_managers_snapshots_ends_at_the_freshest((streams, turns) in streams()) {
            let start = Instant::now();
            let mut freshest = Freshest::default();
            let mut next = vec![0; streams.len()];
            let mut all = Vec::new();
            for number in turns {
                let (epoch, milliseconds) = streams[number][next[number]];
                next[number] += 1;
                let candidate = at(start, number, epoch, milliseconds);
                all.push(candidate);
                let before = freshest.held;
                if freshest.offer(candidate) {
                    prop_assert!(before.is_none_or(|before| key(&before) <= key(&candidate)));
                }
            }
            let expected = all.iter().map(key).max();
            prop_assert_eq!(freshest.held.as_ref().map(key), expected);
        }

        #[test]
        fn no_snapshot_in_use_is_a_lease_older_than_one_before(
            offers in vec((0..4_usize, 0..50_u64, 0..200_000_u64), 1..40),
        ) {
            let start = Instant::now();
            let mut freshest = Freshest::default();
            let mut latest = start;
            for (number, epoch, milliseconds) in offers {
                freshest.offer(at(start, number, epoch, milliseconds));
                let held = freshest.held.unwrap();
                latest = latest.max(held.confirmed);
                prop_assert!(held.confirmed + LEASE >= latest);
            }
        }
    }

    #[test]
    fn an_old_leader_that_still_believes_in_itself_does_not_win() {
        let start = Instant::now();
        let mut freshest = Freshest::new(Some(at(start, 1, 120, 1_000)));
        assert!(
            !freshest.offer(at(start, 2, 100, 9_000)),
            "it looks confirmed later"
        );
        assert!(
            freshest.offer(at(start, 3, 121, 900)),
            "the new leader's next snapshot"
        );
    }

    #[test]
    fn a_restored_swarm_with_lower_versions_is_followed_after_the_lease() {
        let start = Instant::now();
        let mut freshest = Freshest::new(Some(at(start, 1, 120, 0)));
        assert!(!freshest.offer(at(start, 2, 30, 20_000)));
        assert!(freshest.offer(at(start, 2, 30, 20_001)));
        assert!(
            !freshest.offer(at(start, 1, 120, 0)),
            "what was before does not come back"
        );
    }

    #[test]
    fn the_same_manager_may_remove_its_newest_object() {
        let start = Instant::now();
        let mut freshest = Freshest::new(Some(at(start, 1, 120, 0)));
        assert!(freshest.offer(at(start, 1, 90, 500)));
    }

    #[test]
    fn a_manager_of_the_previous_version_is_judged_by_its_confirmation_alone() {
        let start = Instant::now();
        let mut freshest = Freshest::new(Some(at(start, 1, 120, 500)));
        assert!(!freshest.offer(at(start, 2, 0, 400)));
        assert!(freshest.offer(at(start, 2, 0, 600)));
    }
}
