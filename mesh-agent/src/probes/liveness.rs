//! Decides which peers answer. Pure: results of probes and the time go in, silent peers come out.
//!
//! A peer falls silent when [`LIMIT`] probes in a row are unanswered, and is back after two answers in a row,
//! but not before its hold-down has passed. A late answer is as good as one in time. What this node did late
//! itself is not counted against its peers.

use std::{net::Ipv4Addr, time::Duration};

/// How often each peer is probed.
pub(super) const INTERVAL: Duration = Duration::from_millis(200);
/// So many unanswered probes in a row make a peer silent.
const LIMIT: u32 = 4;
/// How long to wait for an answer before a probe counts as unanswered.
const DEADLINE: Duration = Duration::from_millis(50);
/// A step that comes so much later than asked for means that this node was busy or suspended.
const STALL: Duration = Duration::from_millis(100);
/// Steps are no closer than this, so that many peers cost few wake-ups.
const STEP: Duration = Duration::from_millis(5);
/// Answers to older probes no longer count.
const WINDOW: u32 = 16;
/// How long a peer is silent at least: doubled for each time that it falls silent soon after its return.
const HOLD_DOWN: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];
/// What soon means.
const STEADY: Duration = Duration::from_secs(60);
/// After so long, connections to a silent peer are given up.
const GRACE: Duration = Duration::from_secs(10);
/// A peer that has never answered so many probes is probed more rarely: it may be of an older version.
const RARELY_AFTER: u32 = 25;
const RARELY: u32 = 10;

/// Every probed peer.
#[derive(Debug, Default)]
pub(super) struct Liveness {
    /// By address.
    peers: Vec<Peer>,
    /// When the next step was asked for.
    expected: Option<Duration>,
}

/// One peer. Times are since any fixed moment.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) address: Ipv4Addr,
    next_at: Duration,
    /// Of the last probe that was sent.
    number: u32,
    sent_at: Duration,
    /// Whether that one may still be answered in time.
    waiting: bool,
    unanswered: u32,
    last_answered: Option<u32>,
    /// When that one had been sent.
    answered_at: Option<Duration>,
    in_a_row: u32,
    pub(super) round_trip: Option<Duration>,
    pub(super) silent_since: Option<Duration>,
    pub(super) lost: bool,
    hold_down: Duration,
    back_at: Option<Duration>,
}

/// A peer's change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// It answered for the first time.
    Found(Ipv4Addr),
    /// It no longer answers.
    Silent(Ipv4Addr),
    /// It has been silent for the whole grace.
    Lost(Ipv4Addr),
    /// It answers again, after so long.
    Back(Ipv4Addr, Duration),
}

/// Whether a probe left this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// It did, or failed because nothing leads to the peer.
    Yes,
    /// It failed for a reason of this node's own, which says nothing of the peer.
    No,
}

impl Liveness {
    /// Probes these peers from now on. Known ones keep their state. Sending is spread over the interval.
    pub(super) fn follow(&mut self, addresses: impl Iterator<Item = Ipv4Addr>, now: Duration) {
        let mut peers: Vec<Peer> = addresses
            .map(|address| match self.index(address) {
                Some(index) => self.peers[index].clone(),
                None => Peer::new(address),
            })
            .collect();
        peers.sort_unstable_by_key(|peer| peer.address);
        let count = peers.len().max(1) as u32;
        for (index, peer) in peers.iter_mut().enumerate() {
            peer.next_at = now + INTERVAL * index as u32 / count;
        }
        self.peers = peers;
        self.expected = None;
    }

    pub(super) fn peers(&self) -> &[Peer] {
        &self.peers
    }

    /// Takes an answer. Those that have arrived are taken before the next [`Self::step`].
    pub(super) fn answered(&mut self, address: Ipv4Addr, number: u32, now: Duration) -> Option<Change> {
        let index = self.index(address)?;
        self.peers[index].answered(number, now)
    }

    /// Counts what is unanswered, and sends what is due. Returns when to do so next.
    pub(super) fn step(
        &mut self,
        now: Duration,
        changes: &mut Vec<Change>,
        mut send: impl FnMut(Ipv4Addr, u32) -> Sent,
    ) -> Duration {
        let stalled = self.expected.is_some_and(|expected| now > expected + STALL);
        for peer in &mut self.peers {
            peer.count(now, stalled, changes);
        }
        self.give_up(now, changes);
        let mut next = now + INTERVAL;
        for peer in &mut self.peers {
            peer.send(now, &mut send);
            next = next.min(peer.wakes_at());
        }
        let next = next.max(now + STEP);
        self.expected = Some(next);
        next
    }

    /// Gives up silent peers after a grace without any answer: one that is kept out of rotation because it
    /// answers irregularly carries its connections. None if no peer answers, as this node may be the one cut
    /// off.
    fn give_up(&mut self, now: Duration, changes: &mut Vec<Change>) {
        let answers = |peer: &Peer| peer.last_answered.is_some() && peer.silent_since.is_none();
        if !self.peers.iter().any(answers) {
            return;
        }
        for peer in &mut self.peers {
            let is_over = |since: Duration| now >= since + GRACE;
            if !peer.lost && peer.silent_since.is_some_and(is_over) && peer.answered_at.is_none_or(is_over) {
                peer.lost = true;
                changes.push(Change::Lost(peer.address));
            }
        }
    }

    /// When the newest of a peer's probes that was answered had been sent; `None` while it does not answer.
    pub(super) fn answered_at(&self, address: Ipv4Addr) -> Option<Duration> {
        let peer = &self.peers[self.index(address)?];
        peer.answered_at.filter(|_| peer.answers() == Some(true))
    }

    fn index(&self, address: Ipv4Addr) -> Option<usize> {
        self.peers
            .binary_search_by_key(&address, |peer| peer.address)
            .ok()
    }
}

impl Peer {
    fn new(address: Ipv4Addr) -> Self {
        Self {
            address,
            next_at: Duration::ZERO,
            number: 0,
            sent_at: Duration::ZERO,
            waiting: false,
            unanswered: 0,
            last_answered: None,
            answered_at: None,
            in_a_row: 0,
            round_trip: None,
            silent_since: None,
            lost: false,
            hold_down: HOLD_DOWN[0],
            back_at: None,
        }
    }

    /// `None` until it has answered once.
    pub(super) fn answers(&self) -> Option<bool> {
        self.last_answered.map(|_| self.silent_since.is_none())
    }

    /// Whether it is silent, and answers again: not steadily enough yet.
    pub(super) fn answers_again(&self) -> bool {
        self.silent_since
            .is_some_and(|since| self.answered_at.is_some_and(|answered| answered >= since))
    }

    fn wakes_at(&self) -> Duration {
        if self.waiting {
            self.next_at.min(self.sent_at + DEADLINE)
        } else {
            self.next_at
        }
    }

    fn count(&mut self, now: Duration, stalled: bool, changes: &mut Vec<Change>) {
        if !self.waiting || now < self.sent_at + DEADLINE {
            return;
        }
        self.waiting = false;
        if stalled {
            return;
        }
        self.unanswered = self.unanswered.saturating_add(1);
        if self.unanswered >= LIMIT && self.answers() == Some(true) {
            let soon = self.back_at.is_some_and(|back| now < back + STEADY);
            self.hold_down = if soon {
                (self.hold_down * 2).min(HOLD_DOWN[1])
            } else {
                HOLD_DOWN[0]
            };
            self.silent_since = Some(now);
            changes.push(Change::Silent(self.address));
        }
    }

    fn send(&mut self, now: Duration, send: &mut impl FnMut(Ipv4Addr, u32) -> Sent) {
        if now < self.next_at {
            return;
        }
        // Late ones are left out, so that a busy node does not send bursts; the peer keeps its share of
        // the interval.
        let step = if self.last_answered.is_none() && self.unanswered >= RARELY_AFTER {
            INTERVAL * RARELY
        } else {
            INTERVAL
        };
        let late = now - self.next_at;
        let intervals = late.as_nanos() / step.as_nanos() + 1;
        self.next_at += step * u32::try_from(intervals).unwrap_or(u32::MAX);
        let number = self.number.wrapping_add(1);
        if send(self.address, number) == Sent::Yes {
            self.number = number;
            self.sent_at = now;
            self.waiting = true;
        }
    }

    fn answered(&mut self, number: u32, now: Duration) -> Option<Change> {
        let age = self.number.wrapping_sub(number);
        let is_new = self
            .last_answered
            .is_none_or(|last| self.number.wrapping_sub(last) > age);
        if age >= WINDOW || !is_new || number == 0 {
            return None;
        }
        let follows = self
            .last_answered
            .is_some_and(|last| last.wrapping_add(1) == number);
        self.in_a_row = if follows { self.in_a_row + 1 } else { 1 };
        let first = self.last_answered.replace(number).is_none();
        self.unanswered = 0;
        if age == 0 {
            self.waiting = false;
        }
        self.answered_at = Some(self.sent_at.saturating_sub(INTERVAL * age));
        let round_trip = now.saturating_sub(self.sent_at) + INTERVAL * age;
        self.round_trip = Some(match self.round_trip {
            Some(smoothed) => (smoothed * 7 + round_trip) / 8,
            None => round_trip,
        });
        if first {
            return Some(Change::Found(self.address));
        }
        let since = self.silent_since?;
        if self.in_a_row < 2 || now < since + self.hold_down {
            return None;
        }
        self.silent_since = None;
        self.lost = false;
        self.back_at = Some(now);
        Some(Change::Back(self.address, now - since))
    }
}

#[cfg(test)]
mod tests;
