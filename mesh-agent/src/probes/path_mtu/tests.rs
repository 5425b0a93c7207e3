//! Simulated paths.

use super::*;

const PEER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const TICK: Duration = Duration::from_millis(20);
const SMALL: Duration = Duration::from_millis(200);

/// A node and the path to its peer, on a clock that only the test moves.
struct Node {
    sizes: PathMtus,
    now: Duration,
    /// What the path carries.
    mtu: u16,
    /// What the interface carries.
    interface: u16,
    /// Whether small probes are answered.
    answers: bool,
    /// Loses every padded probe of this many, counted over all.
    loses_every: Option<u32>,
    sent: u32,
    changes: Vec<(Duration, u16)>,
}

impl Node {
    fn new(route: u16, mtu: u16) -> Self {
        let mut node = Self {
            sizes: PathMtus::default(),
            now: Duration::from_secs(1000),
            mtu,
            interface: u16::MAX,
            answers: true,
            loses_every: None,
            sent: 0,
            changes: Vec::new(),
        };
        node.follow(route);
        node
    }

    fn follow(&mut self, mtu: u16) {
        let route = Route { interface: 2, mtu };
        self.sizes.follow(&BTreeMap::from([(PEER, route)]));
    }

    fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.now < end {
            let mut arrived = None;
            let mut changes = Vec::new();
            let small =
                Duration::from_millis((self.now.as_millis() / SMALL.as_millis() * SMALL.as_millis()) as u64);
            let Self {
                sizes,
                now,
                mtu,
                interface,
                answers,
                loses_every,
                sent,
                ..
            } = self;
            sizes.step(
                *now,
                &mut changes,
                |_| answers.then_some(small),
                |_, size| {
                    if size > *interface {
                        return Outcome::TooBig;
                    }
                    *sent += 1;
                    let lost = loses_every.is_some_and(|every| sent.is_multiple_of(every));
                    if *answers && size <= *mtu && !lost {
                        arrived = Some(size);
                    }
                    Outcome::Sent
                },
            );
            changes.extend(arrived.and_then(|size| sizes.answered(PEER, size, *now)));
            let now = self.now;
            self.changes
                .extend(changes.into_iter().map(|found| (now, found.mtu)));
            self.now += TICK;
        }
    }

    #[track_caller]
    fn check(&self, expected: u16) {
        assert_eq!(self.sizes.found(PEER), Some(expected), "{:?}", self.changes);
    }
}

#[test]
fn a_path_that_carries_what_its_route_says_is_found_at_once() {
    let mut node = Node::new(1500, 9000);
    node.run(TICK * 2);
    node.check(1500);
    assert_eq!(node.sent, 1);
}

#[test]
fn every_size_is_found_exactly_within_seconds_and_never_one_above_is_used() {
    for (route, mtu) in [
        (1500, 1499),
        (1500, 1400),
        (1500, 1281),
        (1500, 1280),
        (1500, 1279),
        (1500, 577),
        (9000, 8999),
        (9000, 1500),
        (9000, 1450),
        (1450, 1400),
        (600, 590),
    ] {
        let mut node = Node::new(route, mtu);
        let begin = node.now;
        node.run(Duration::from_secs(15));
        node.check(mtu);
        assert!(
            node.changes.iter().all(|(_, found)| *found <= mtu),
            "{:?}",
            node.changes
        );
        assert!(node.changes.len() <= 2, "{:?}", node.changes);
        if mtu >= 1280 {
            let safe = node.changes[0].0 - begin;
            assert!(safe < Duration::from_secs(2), "{route}, {mtu}: {safe:?}");
        }
    }
}

#[test]
fn less_than_the_floor_is_not_reported() {
    let mut node = Node::new(1500, 100);
    node.run(Duration::from_secs(20));
    node.check(FLOOR);
    let mut node = Node::new(500, 100);
    node.run(Duration::from_secs(20));
    assert_eq!((node.sizes.found(PEER), node.sent), (None, 0));
}

#[test]
fn what_the_interface_refuses_costs_no_time() {
    let mut node = Node::new(9000, 9000);
    node.interface = 1500;
    node.run(TICK * 20);
    assert_eq!(node.changes[0].1, 1500);
}

#[test]
fn nothing_is_lost_while_small_probes_are_not_answered() {
    let mut node = Node::new(1500, 1500);
    node.answers = false;
    node.run(Duration::from_secs(30));
    assert_eq!(node.sizes.found(PEER), None);
    node.answers = true;
    node.run(Duration::from_secs(6));
    node.check(1500);
    node.answers = false;
    node.run(Duration::from_secs(30));
    node.check(1500);
    assert_eq!(node.changes.len(), 1);
}

#[test]
fn single_losses_change_nothing() {
    let mut node = Node::new(1500, 1400);
    node.run(Duration::from_secs(10));
    node.loses_every = Some(2);
    node.run(Duration::from_secs(90));
    node.check(1400);
    assert_eq!(node.changes.len(), 2, "{:?}", node.changes);
}

#[test]
fn a_path_that_carries_less_is_noticed_within_seconds_and_one_that_carries_more_within_minutes() {
    let mut node = Node::new(1500, 1500);
    node.run(Duration::from_secs(7));
    node.mtu = 1350;
    node.run(VERIFY + Duration::from_secs(2));
    assert!(node.sizes.found(PEER) <= Some(1350), "{:?}", node.changes);
    node.run(Duration::from_secs(10));
    node.check(1350);
    node.mtu = 1500;
    node.run(RAISE + Duration::from_secs(1));
    node.check(1500);
}

#[test]
fn another_route_is_measured_anew_and_never_used_beyond_what_is_known() {
    let mut node = Node::new(1500, 1400);
    node.run(Duration::from_secs(10));
    node.check(1400);
    node.follow(1300);
    node.check(1300);
    node.run(TICK * 2);
    node.check(1300);
    node.follow(1500);
    node.check(1300);
    node.run(Duration::from_secs(10));
    node.check(1400);
    node.sizes.follow(&BTreeMap::new());
    assert_eq!(node.sizes.found(PEER), None);
}
