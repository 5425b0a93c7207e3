//! Finds the largest packet that reaches each peer. Pure: results of padded probes and the time go in, sizes
//! come out.
//!
//! A router that does not carry a packet further may not report it, or what it reports may not arrive. So the
//! route's MTU is tried first, then common sizes, then a binary search. A size is too big once [`LIMIT`]
//! probes in a row are lost; one counts as lost only when a small probe that was sent later has been
//! answered. What was found is tried again every [`VERIFY`], and more every [`RAISE`]. Answers come back with
//! their padding, so what is found is the smaller of the two directions.

use std::{collections::BTreeMap, net::Ipv4Addr, time::Duration};

use super::Route;

/// IPv4 carries this much everywhere (RFC 791): it is not tried.
pub(super) const FLOOR: u16 = 576;
/// Tried before the binary search, if the route's MTU is too big.
const COMMON: [u16; 2] = [1500, 1280];
/// So many lost probes in a row make a size too big.
const LIMIT: u32 = 3;
/// How long to wait for an answer at least.
const DEADLINE: Duration = Duration::from_millis(50);
/// When to try again what could not be sent.
const AGAIN: Duration = Duration::from_millis(200);
/// A probe about which nothing was learned for so long is forgotten.
const FORGET: Duration = Duration::from_secs(2);
/// How often to try what was found: the path may carry less by now.
const VERIFY: Duration = Duration::from_secs(5);
/// How often to try what was too big: the path may carry more by now.
const RAISE: Duration = Duration::from_secs(120);
/// Probes to send at one time, so that many peers do not make a burst.
const BURST: usize = 16;

/// What became of a probe that was to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Sent,
    /// It failed for a reason that says nothing of its size.
    Failed,
    /// The interface does not carry it.
    TooBig,
}

/// A peer's path carries another size than before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) address: Ipv4Addr,
    pub(super) mtu: u16,
}

/// Every peer whose path is measured.
#[derive(Debug, Default)]
pub(super) struct PathMtus {
    peers: BTreeMap<Ipv4Addr, Peer>,
}

#[derive(Debug)]
struct Peer {
    route: Route,
    /// The largest size that was answered, or [`FLOOR`].
    fits: u16,
    /// The smallest size that was not.
    too_big: u16,
    losses: u32,
    waiting: Option<(u16, Duration)>,
    next_at: Duration,
    /// When to begin anew although the size is found; `None` while it is not.
    raise_at: Option<Duration>,
    found: Option<u16>,
}

impl PathMtus {
    /// Measures the paths to these peers from now on. One whose route is another is measured anew.
    pub(super) fn follow(&mut self, routes: &BTreeMap<Ipv4Addr, Route>) {
        self.peers.retain(|address, _| routes.contains_key(address));
        for (address, route) in routes {
            let peer = self.peers.entry(*address).or_insert_with(|| Peer::new(*route));
            if peer.route != *route {
                *peer = Peer {
                    // Until more is known.
                    found: peer.found.map(|found| found.min(route.mtu)),
                    ..Peer::new(*route)
                };
            }
        }
    }

    /// The largest packet that reaches a peer, bytes; `None` while it is not known.
    pub(super) fn found(&self, address: Ipv4Addr) -> Option<u16> {
        self.peers.get(&address)?.found
    }

    /// Takes the answer to a probe of a size.
    pub(super) fn answered(&mut self, address: Ipv4Addr, size: u16, now: Duration) -> Option<Found> {
        let peer = self.peers.get_mut(&address)?;
        // A late answer is as good while its size is being tried.
        if peer.next_size() != Some(size) {
            return None;
        }
        peer.fits = peer.fits.max(size);
        peer.learned(now).map(|mtu| Found { address, mtu })
    }

    /// Counts what is lost, and sends what is due. `answered` says when the newest of a peer's small probes
    /// that was answered had been sent; `None` while the peer does not answer.
    pub(super) fn step(
        &mut self,
        now: Duration,
        changes: &mut Vec<Found>,
        answered: impl Fn(Ipv4Addr) -> Option<Duration>,
        mut send: impl FnMut(Ipv4Addr, u16) -> Outcome,
    ) {
        let mut burst = 0;
        for (address, peer) in &mut self.peers {
            let Some(answered) = answered(*address) else {
                (peer.waiting, peer.losses) = (None, 0);
                continue;
            };
            let mut mtu = peer.count(now, answered);
            if burst < BURST
                && peer.waiting.is_none()
                && now >= peer.next_at
                && let Some(size) = peer.due_size(now)
            {
                burst += 1;
                match send(*address, size) {
                    Outcome::Sent => peer.waiting = Some((size, now)),
                    Outcome::Failed => peer.next_at = now + AGAIN,
                    Outcome::TooBig => mtu = peer.is_too_big(size, now).or(mtu),
                }
            }
            changes.extend(mtu.map(|mtu| Found {
                address: *address,
                mtu,
            }));
        }
    }
}

impl Peer {
    fn new(route: Route) -> Self {
        Self {
            route,
            fits: FLOOR.min(route.mtu),
            too_big: route.mtu.saturating_add(1),
            losses: 0,
            waiting: None,
            next_at: Duration::ZERO,
            raise_at: None,
            found: None,
        }
    }

    /// The size to try; `None` where [`FLOOR`] is all there is.
    fn next_size(&self) -> Option<u16> {
        if self.raise_at.is_some() {
            return Some(self.fits).filter(|size| *size > FLOOR);
        }
        let open = |size: &u16| *size > self.fits && *size < self.too_big;
        let common = COMMON.into_iter().filter(|size| *size < self.route.mtu);
        let first = [self.route.mtu].into_iter().chain(common).find(open);
        // Not upwards through the common ones: what is between them is searched.
        match first {
            Some(size) if self.fits < COMMON[1] || size == self.route.mtu => Some(size),
            _ => Some(self.fits + (self.too_big - self.fits) / 2).filter(open),
        }
    }

    fn due_size(&mut self, now: Duration) -> Option<u16> {
        if self.raise_at.is_some_and(|at| now >= at) {
            self.raise_at = None;
            self.too_big = self.route.mtu.saturating_add(1);
            self.losses = 0;
        }
        if self.raise_at.is_none() && self.next_size().is_none() {
            // Nothing is left to try, as on a path whose route carries no more than the floor.
            self.settle(now);
        }
        self.next_size()
    }

    /// Counts a probe as lost once that is certain.
    fn count(&mut self, now: Duration, answered: Duration) -> Option<u16> {
        let (size, at) = self.waiting?;
        if now < at + DEADLINE {
            return None;
        }
        if answered <= at {
            if now >= at + FORGET {
                self.waiting = None;
            }
            return None;
        }
        self.waiting = None;
        self.losses += 1;
        if self.losses < LIMIT {
            return None;
        }
        self.is_too_big(size, now)
    }

    fn is_too_big(&mut self, size: u16, now: Duration) -> Option<u16> {
        (self.losses, self.waiting) = (0, None);
        if size <= self.fits {
            // What was found is no longer right.
            self.fits = FLOOR;
            self.raise_at = None;
            self.too_big = size;
        }
        self.too_big = self.too_big.min(size);
        if self.next_size().is_none() {
            return self.learned(now);
        }
        None
    }

    /// Goes on after what was just learned. Returns the size to use, if it is another one.
    fn learned(&mut self, now: Duration) -> Option<u16> {
        (self.losses, self.waiting) = (0, None);
        if self.raise_at.is_some() || self.next_size().is_none() {
            self.settle(now);
        }
        let limit = self.found.unwrap_or(self.route.mtu);
        // Less at once, more only when all is known.
        let right = self.fits < limit && self.too_big <= limit || self.raise_at.is_some();
        if !right || self.found == Some(self.fits) {
            return None;
        }
        self.found = Some(self.fits);
        self.found
    }

    fn settle(&mut self, now: Duration) {
        self.next_at = now + VERIFY;
        if self.raise_at.is_none() {
            self.raise_at = Some(if self.fits < self.route.mtu {
                now + RAISE
            } else {
                // There is nothing above.
                Duration::MAX
            });
        }
    }
}

#[cfg(test)]
mod tests;
