//! How many connections a port takes, in total and of one address.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// The limits of a port.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Open connections.
    pub connections: usize,
    /// Open connections of one source address.
    pub per_address: usize,
    /// How long a handshake may take.
    pub handshake: Duration,
    /// How long the head of a request may take, counted from when the connection waits for it: one without
    /// requests is closed after this time, too.
    pub head: Duration,
}

/// The open connections of a port.
#[derive(Clone, Debug)]
pub struct Open {
    total: usize,
    per_address: usize,
    counts: Arc<Mutex<Counts>>,
}

#[derive(Debug, Default)]
struct Counts {
    total: usize,
    of: BTreeMap<IpAddr, usize>,
}

/// One open connection, counted until it is dropped.
#[derive(Debug)]
pub struct Counted {
    address: IpAddr,
    counts: Arc<Mutex<Counts>>,
}

/// A connection would be one too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooMany {
    /// On this port.
    #[error("the port has {0} open connections, the most that it takes")]
    InTotal(usize),
    /// Of this address.
    #[error("this address has {0} open connections, the most that it may have")]
    OfAddress(usize),
}

fn lock(counts: &Mutex<Counts>) -> MutexGuard<'_, Counts> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Open {
    /// None yet.
    #[must_use]
    pub fn new(total: usize, per_address: usize) -> Self {
        Self {
            total,
            per_address,
            counts: Arc::default(),
        }
    }

    /// Counts one more connection of an address.
    ///
    /// # Errors
    /// When it would be one too many.
    pub fn admit(&self, address: IpAddr) -> Result<Counted, TooMany> {
        let address = address.to_canonical();
        let mut counts = lock(&self.counts);
        if counts.total >= self.total {
            return Err(TooMany::InTotal(self.total));
        }
        let of = counts.of.entry(address).or_default();
        if *of >= self.per_address {
            return Err(TooMany::OfAddress(self.per_address));
        }
        *of += 1;
        counts.total += 1;
        Ok(Counted {
            address,
            counts: Arc::clone(&self.counts),
        })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = lock(&self.counts);
        counts.total -= 1;
        if let Some(of) = counts.of.get_mut(&self.address) {
            *of -= 1;
            if *of == 0 {
                counts.of.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_limited_in_total_and_of_each_address_until_they_end() {
        let open = Open::new(3, 2);
        let admit = |address: &str| open.admit(address.parse().unwrap());
        let mut held = vec![admit("192.0.2.1").unwrap(), admit("::ffff:192.0.2.1").unwrap()];
        assert_eq!(admit("192.0.2.1").unwrap_err(), TooMany::OfAddress(2));
        held.push(admit("192.0.2.2").unwrap());
        assert_eq!(admit("192.0.2.3").unwrap_err(), TooMany::InTotal(3));
        held.remove(0);
        held.push(admit("192.0.2.1").unwrap());
        drop(held);
        let counts = lock(&open.counts);
        assert!(counts.total == 0 && counts.of.is_empty());
    }
}
