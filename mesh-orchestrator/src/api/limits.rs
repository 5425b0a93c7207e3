//! Rate limits: a token bucket for each key. Pure: the time is passed in.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Number of buckets from which on full ones are removed.
const MAX_BUCKETS: usize = 1024;

/// A bucket for each key: allows a burst of calls, then one call per interval.
#[derive(Debug)]
pub(super) struct RateLimit {
    burst: u32,
    interval: Duration,
    /// When each bucket is full again.
    full_at: Mutex<HashMap<String, Instant>>,
}

impl RateLimit {
    pub(super) fn new(burst: u32, interval: Duration) -> Self {
        Self {
            burst,
            interval,
            full_at: Mutex::new(HashMap::new()),
        }
    }

    /// Takes one call from a bucket.
    ///
    /// # Errors
    /// If it is empty: the time until the next call is allowed.
    pub(super) fn take(&self, key: &str, now: Instant) -> Result<(), Duration> {
        let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        if full_at.len() >= MAX_BUCKETS {
            full_at.retain(|_, at| *at > now);
        }
        let at = full_at.get(key).copied().map_or(now, |at| at.max(now));
        let next = at + self.interval;
        let most = now + self.interval * self.burst;
        if next > most {
            return Err(next - most);
        }
        full_at.insert(key.to_owned(), next);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_allowed_and_then_one_call_per_interval() {
        let limit = RateLimit::new(3, Duration::from_secs(10));
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        for _ in 0..3 {
            assert_eq!(limit.take("a", start), Ok(()));
        }
        assert_eq!(limit.take("a", start), Err(Duration::from_secs(10)));
        assert_eq!(limit.take("b", start), Ok(()), "another key has another bucket");
        assert_eq!(limit.take("a", after(4)), Err(Duration::from_secs(6)));
        assert_eq!(limit.take("a", after(10)), Ok(()));
        assert!(limit.take("a", after(10)).is_err());
        for _ in 0..3 {
            assert_eq!(limit.take("a", after(100)), Ok(()));
        }
        assert!(limit.take("a", after(100)).is_err());
    }

    #[test]
    fn full_buckets_are_removed() {
        let limit = RateLimit::new(1, Duration::from_secs(1));
        let start = Instant::now();
        for key in 0..MAX_BUCKETS {
            limit.take(&key.to_string(), start).unwrap();
        }
        limit.take("last", start + Duration::from_secs(2)).unwrap();
        assert_eq!(limit.full_at.lock().unwrap().len(), 1);
    }
}
