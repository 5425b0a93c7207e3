//! Limits on what callers without a token can cause: a token bucket for each webhook, which holds for the
//! whole cluster because it is in the store, and a bound on how many of their secrets are looked up at a
//! time.

use std::time::Duration;

use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::error::ApiError;
use crate::objects::Timestamp;

/// How many secrets of callers are looked up in the store at a time.
const LOOK_UPS: usize = 16;

/// How many callers wait for that.
const WAITING: usize = 256;

/// A token bucket: allows a burst of calls, then one call per interval.
#[derive(Clone, Copy, Debug)]
pub(super) struct RateLimit {
    pub(super) burst: u32,
    pub(super) interval: Duration,
}

/// When a bucket is full again, as it is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Bucket {
    full_at: Timestamp,
}

impl RateLimit {
    /// Takes one call from a bucket.
    ///
    /// # Errors
    /// If it is empty: the time until the next call is allowed.
    pub(super) fn take(self, bucket: Bucket, now: Timestamp) -> Result<Bucket, Duration> {
        let most = now + self.interval * self.burst;
        // Another node's clock may be ahead.
        let full_at = bucket.full_at.clamp(now, most) + self.interval;
        match full_at > most {
            true => Err(full_at.since(most)),
            false => Ok(Bucket { full_at }),
        }
    }
}

/// The callers whose secrets are looked up, and those who wait for it.
#[derive(Debug)]
pub(super) struct LookUps {
    running: Semaphore,
    waiting: Semaphore,
}

impl Default for LookUps {
    fn default() -> Self {
        Self {
            running: Semaphore::new(LOOK_UPS),
            waiting: Semaphore::new(WAITING),
        }
    }
}

impl LookUps {
    /// A permit to look one secret up; waits for it.
    ///
    /// # Errors
    /// When too many wait already.
    pub(super) async fn permit(&self) -> Result<SemaphorePermit<'_>, ApiError> {
        let too_many = || {
            ApiError::new(
                StatusCode::TOO_MANY_REQUESTS,
                "too many callers present a token or a webhook's secret at the same time: try again in a second",
            )
            .retry_after(1)
        };
        let _waiting = self.waiting.try_acquire().map_err(|_| too_many())?;
        self.running.acquire().await.map_err(|_| too_many())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_allowed_and_then_one_call_per_interval() {
        let limit = RateLimit {
            burst: 3,
            interval: Duration::from_secs(10),
        };
        let start = Timestamp(10_000_000);
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut bucket = Bucket::default();
        let mut take = |now| limit.take(bucket, now).map(|left| bucket = left);
        for _ in 0..3 {
            assert_eq!(take(start), Ok(()));
        }
        assert_eq!(take(start), Err(Duration::from_secs(10)));
        assert_eq!(take(after(4)), Err(Duration::from_secs(6)));
        assert_eq!(take(after(10)), Ok(()));
        assert!(take(after(10)).is_err());
        for _ in 0..3 {
            assert_eq!(take(after(100)), Ok(()));
        }
        assert!(take(after(100)).is_err());
        // A node whose clock is an hour behind waits no longer than others.
        let behind = Timestamp(start.0 - 3_600_000);
        assert_eq!(take(behind), Err(Duration::from_secs(10)));
    }

    #[tokio::test]
    async fn look_ups_beyond_the_limits_are_refused() {
        let limit = LookUps::default();
        let mut running = Vec::new();
        for _ in 0..LOOK_UPS {
            running.push(limit.permit().await.unwrap());
        }
        let mut waiting: Vec<_> = (0..WAITING).map(|_| Box::pin(limit.permit())).collect();
        for one in &mut waiting {
            assert!(futures_util::poll!(one).is_pending());
        }
        let refused = limit.permit().await.unwrap_err();
        assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
        drop(running.pop());
        assert!(waiting.remove(0).await.is_ok());
    }
}
