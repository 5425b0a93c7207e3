//! Simulated peers, links and clocks.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

const NONE: [Ipv4Addr; 0] = [];

fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, number)
}

/// A node and what it has sent, on a clock that only the test moves.
struct Node {
    liveness: Liveness,
    now: Duration,
    wake_at: Duration,
    /// Answers on their way: when they arrive, from whom, to which probe.
    answers: BTreeSet<(Duration, Ipv4Addr, u32)>,
    cut: BTreeSet<Ipv4Addr>,
    round_trip: Duration,
    changes: Vec<(Duration, Change)>,
    sent: BTreeMap<Ipv4Addr, Vec<Duration>>,
}

impl Node {
    fn with_peers(count: u8) -> Self {
        let mut liveness = Liveness::default();
        let now = ms(12_345);
        liveness.follow((1..=count).map(address), now);
        Self {
            liveness,
            now,
            wake_at: now,
            answers: BTreeSet::new(),
            cut: BTreeSet::new(),
            round_trip: ms(1),
            changes: Vec::new(),
            sent: BTreeMap::new(),
        }
    }

    /// Wakes up at the moments that the state machine and the answers ask for.
    fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            let arrival = self.answers.first().map(|(at, ..)| *at);
            let next = arrival.unwrap_or(end).min(self.wake_at);
            if next >= end {
                self.now = end;
                return;
            }
            self.now = self.now.max(next);
            self.wake();
        }
    }

    /// Is not run at all for a while.
    fn suspend(&mut self, duration: Duration) {
        self.now += duration;
        self.wake();
    }

    fn wake(&mut self) {
        let now = self.now;
        while let Some(first) = self.answers.first().copied().filter(|(at, ..)| *at <= now) {
            self.answers.remove(&first);
            let change = self.liveness.answered(first.1, first.2, now);
            self.changes.extend(change.map(|change| (now, change)));
        }
        let mut changes = Vec::new();
        let Self {
            liveness,
            answers,
            cut,
            round_trip,
            sent,
            ..
        } = self;
        self.wake_at = liveness.step(now, &mut changes, |peer, number| {
            sent.entry(peer).or_default().push(now);
            if !cut.contains(&peer) {
                answers.insert((now + *round_trip, peer, number));
            }
            Sent::Yes
        });
        self.changes
            .extend(changes.into_iter().map(|change| (now, change)));
    }

    fn cut(&mut self, number: u8) -> Duration {
        self.cut.insert(address(number));
        self.answers.retain(|(_, peer, _)| *peer != address(number));
        self.now
    }

    fn mend(&mut self, number: u8) -> Duration {
        self.cut.remove(&address(number));
        self.now
    }

    fn silent(&self) -> Vec<Ipv4Addr> {
        let peers = self.liveness.peers().iter();
        let silent = peers.filter(|peer| peer.answers() == Some(false));
        silent.map(|peer| peer.address).collect()
    }

    #[track_caller]
    fn when(&self, expected: impl Fn(&Change) -> bool) -> Duration {
        match self.changes.iter().rev().find(|(_, change)| expected(change)) {
            Some((at, _)) => *at,
            None => panic!("not among {:?}", self.changes),
        }
    }
}

#[test]
fn a_peer_that_is_cut_off_is_silent_within_900_ms_and_back_within_two_answers() {
    for moment in 0..20 {
        let mut node = Node::with_peers(3);
        node.run(ms(1000 + 10 * moment));
        let cut = node.cut(2);
        node.run(ms(900));
        assert_eq!(node.silent(), [address(2)]);
        let silent = node.when(|change| *change == Change::Silent(address(2)));
        assert!(silent - cut >= ms(600), "{:?}", silent - cut);
        node.run(ms(5000));
        let mended = node.mend(2);
        node.run(ms(600));
        assert_eq!(node.silent(), NONE);
        let back = node.when(|change| matches!(change, Change::Back(..)));
        assert!(back - mended <= ms(450), "{:?}", back - mended);
    }
}

#[test]
fn a_peer_that_never_answers_is_unknown_and_probed_rarely() {
    let mut node = Node::with_peers(2);
    node.cut(2);
    node.run(ms(60_000));
    assert_eq!(node.silent(), NONE);
    assert_eq!(node.liveness.peers()[1].answers(), None);
    assert!(node.sent[&address(1)].len() >= 299);
    assert!(node.sent[&address(2)].len() < 60);
    node.mend(2);
    node.run(ms(2500));
    assert_eq!(node.liveness.peers()[1].answers(), Some(true));
}

#[test]
fn probes_are_spread_over_the_interval() {
    let mut node = Node::with_peers(200);
    node.run(ms(2000));
    let mut by_step: BTreeMap<Duration, usize> = BTreeMap::new();
    for at in node.sent.values().flatten() {
        *by_step.entry(*at).or_default() += 1;
    }
    assert!(by_step.values().all(|count| *count <= 6), "{by_step:?}");
    assert!(node.sent.values().all(|sent| (9..=11).contains(&sent.len())));
}

#[test]
fn a_slow_path_is_no_silence() {
    for round_trip in [60, 150, 210, 450] {
        let mut node = Node::with_peers(2);
        node.round_trip = ms(round_trip);
        node.run(ms(10_000));
        node.cut(2);
        node.run(ms(3000));
        assert_eq!(node.silent(), [address(2)], "{round_trip}");
        node.mend(2);
        node.run(ms(2000));
        assert_eq!(node.silent(), NONE, "{round_trip}");
        let silent = |(_, change): &&(Duration, Change)| matches!(change, Change::Silent(_));
        assert_eq!(node.changes.iter().filter(silent).count(), 1, "{round_trip}");
    }
}

#[test]
fn a_flapping_peer_stays_out_longer_each_time_but_not_for_ever() {
    let mut node = Node::with_peers(2);
    node.run(ms(1000));
    let mut outages = Vec::new();
    for _ in 0..8 {
        node.cut(2);
        node.run(ms(1000));
        let silent = node.when(|change| *change == Change::Silent(address(2)));
        node.mend(2);
        node.run(ms(40_000));
        assert_eq!(node.silent(), NONE);
        outages.push(node.when(|change| matches!(change, Change::Back(..))) - silent);
    }
    assert!(outages.is_sorted(), "{outages:?}");
    assert!(outages[0] < ms(1300), "{outages:?}");
    assert!(outages[7] >= ms(30_000) && outages[7] < ms(31_000), "{outages:?}");
    // A steady minute, and the peer has the trust of the beginning.
    node.run(ms(60_000));
    node.cut(2);
    node.run(ms(1000));
    let silent = node.when(|change| *change == Change::Silent(address(2)));
    node.mend(2);
    node.run(ms(2000));
    assert!(node.when(|change| matches!(change, Change::Back(..))) - silent < ms(1300));
}

#[test]
fn connections_to_a_silent_peer_are_given_up_after_the_grace_unless_no_peer_answers() {
    let mut node = Node::with_peers(3);
    node.run(ms(1000));
    node.cut(1);
    node.run(ms(10_500));
    assert!(!node.liveness.peers()[0].lost);
    node.run(ms(600));
    assert!(node.liveness.peers()[0].lost);
    node.mend(1);
    node.run(ms(1000));
    assert!(!node.liveness.peers()[0].lost);
    for peer in 1..=3 {
        node.cut(peer);
    }
    node.run(ms(60_000));
    assert_eq!(node.silent().len(), 3);
    assert!(node.liveness.peers().iter().all(|peer| !peer.lost));
}

#[test]
fn connections_to_a_peer_that_answers_irregularly_are_not_given_up() {
    let mut node = Node::with_peers(2);
    node.run(ms(1000));
    // Until it is kept out of rotation for longer than the grace.
    for _ in 0..5 {
        node.cut(2);
        node.run(ms(1000));
        node.mend(2);
        node.run(node.liveness.peers()[1].hold_down + ms(1000));
        assert_eq!(node.silent(), NONE);
    }
    node.cut(2);
    node.run(ms(1000));
    assert!(!node.liveness.peers()[1].answers_again());
    node.mend(2);
    node.run(ms(15_000));
    assert_eq!(node.silent(), [address(2)]);
    let peer = &node.liveness.peers()[1];
    assert!(!peer.lost && peer.answers_again());
    node.cut(2);
    node.run(ms(9_500));
    assert!(!node.liveness.peers()[1].lost);
    node.run(ms(1000));
    assert!(node.liveness.peers()[1].lost);
}

#[test]
fn what_this_node_does_late_is_not_counted_against_its_peers() {
    let mut node = Node::with_peers(3);
    node.run(ms(1000));
    for pause in [150, 300, 1000, 5000, 250, 250, 250, 250, 250] {
        // The answers on their way are lost as well, as when a virtual machine is suspended.
        node.answers.clear();
        node.suspend(ms(pause));
        node.answers.clear();
    }
    assert_eq!(node.silent(), NONE);
    node.run(ms(1000));
    assert_eq!(node.silent(), NONE);
}

#[test]
fn an_answer_counts_once_and_only_for_a_recent_probe() {
    let mut liveness = Liveness::default();
    liveness.follow([address(1)].into_iter(), ms(0));
    assert_eq!(liveness.answered(address(1), 0, ms(0)), None, "nothing was sent");
    assert_eq!(liveness.answered(address(1), 1, ms(0)), None, "nothing was sent");
    let mut now = ms(0);
    for _ in 0..100 {
        now = liveness.step(now, &mut Vec::new(), |_, _| Sent::Yes);
    }
    let last = liveness.peers()[0].number;
    assert!(last > WINDOW);
    assert_eq!(liveness.answered(address(1), last - WINDOW, now), None);
    assert_eq!(liveness.answered(address(1), last + 1, now), None);
    assert_eq!(liveness.answered(address(9), last, now), None, "not a peer");
    assert_eq!(
        liveness.answered(address(1), last, now),
        Some(Change::Found(address(1)))
    );
    let once = liveness.peers()[0].clone();
    assert_eq!(liveness.answered(address(1), last, now), None);
    assert_eq!(liveness.peers()[0].in_a_row, once.in_a_row);
}

#[test]
fn peers_that_stay_keep_their_state_when_others_come_and_go() {
    let mut node = Node::with_peers(3);
    node.run(ms(1000));
    node.cut(2);
    node.run(ms(1000));
    node.liveness.follow([2, 3, 4].into_iter().map(address), node.now);
    assert_eq!(node.silent(), [address(2)]);
    assert_eq!(node.liveness.peers()[2].answers(), None);
    node.run(ms(1000));
    assert_eq!(node.liveness.peers()[2].answers(), Some(true));
}

proptest! {
    #[test]
    fn a_peer_is_silent_only_after_four_probes_without_an_answer(
        outcomes in proptest::collection::vec((1_u8..4, any::<bool>(), 5_u64..400), 1..300)
    ) {
        let mut node = Node::with_peers(3);
        node.run(ms(500));
        for (peer, is_cut, duration) in outcomes {
            if is_cut { node.cut(peer) } else { node.mend(peer) };
            node.run(ms(duration));
        }
        for (at, change) in &node.changes {
            if let Change::Silent(peer) = change {
                // Four were sent, the last at least a deadline ago, since whatever was answered before.
                let sent = node.sent[peer].iter().filter(|sent| **sent + DEADLINE <= *at);
                prop_assert!(sent.count() >= 4);
            }
        }
        // Whatever happened, a peer that answers for as long as the longest hold-down is back.
        for peer in 1..=3 {
            node.mend(peer);
        }
        node.run(HOLD_DOWN[1] + ms(1000));
        prop_assert_eq!(node.silent(), NONE);
    }
}
