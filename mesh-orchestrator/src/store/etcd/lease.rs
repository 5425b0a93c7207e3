//! Leases in an etcd cluster: granted, renewed through any member, and reported as lost before they end.
//! Depends on `connection`.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout};

use super::{Call, Inner};
use crate::store::{Heartbeat, Lease, StoreError, lease::Keeper};

/// The pause before another member is tried.
const RETRY: Duration = Duration::from_millis(50);

/// Why heartbeats stopped.
enum Stop {
    /// The member failed; try another one.
    Broken,
    /// The lease has ended.
    Ended,
}

pub(super) async fn grant(inner: &Arc<Inner>, heartbeat: Heartbeat) -> Result<Lease, StoreError> {
    let time_to_live = heartbeat.time_to_live();
    let seconds = i64::try_from(time_to_live.as_secs()).unwrap_or(i64::MAX);
    let requested = Instant::now();
    // If it is granted twice because an answer was lost, the unused one ends by itself.
    let granted = inner
        .connection
        .call("grant a lease", Call::Read, |client| async move {
            client.lease_client().grant(seconds, None).await
        })
        .await?;
    let holding = Holding {
        inner: Arc::clone(inner),
        id: granted.id(),
        interval: heartbeat.interval,
        time_to_live,
        // Counted from before the request, so that it ends here before it ends in the cluster.
        valid_until: requested + time_to_live,
    };
    Ok(Lease::start(granted.id(), move |keeper| holding.keep(keeper)))
}

struct Holding {
    inner: Arc<Inner>,
    id: i64,
    interval: Duration,
    time_to_live: Duration,
    valid_until: Instant,
}

impl Holding {
    async fn keep(mut self, keeper: Keeper) {
        let (inner, id) = (Arc::clone(&self.inner), self.id);
        let revoke = async move {
            let (_, client) = inner.connection.member();
            let _ = client.lease_client().revoke(id).await;
        };
        keeper.keep(self.beat_until_lost(), revoke).await;
    }

    async fn beat_until_lost(&mut self) {
        loop {
            let left = self.valid_until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::warn!(
                    store = self.inner.connection.name(),
                    lease = self.id,
                    "lost a lease"
                );
                return;
            }
            let (number, client) = self.inner.connection.member();
            match self.beat(client).await {
                Stop::Ended => return,
                Stop::Broken => self.inner.connection.avoid(number),
            }
            sleep(RETRY).await;
        }
    }

    /// Sends heartbeats through one member until it fails.
    async fn beat(&mut self, client: etcd_client::Client) -> Stop {
        let mut requested = Instant::now();
        let mut leases = client.lease_client();
        let begun = timeout(self.patience(), leases.keep_alive(self.id)).await;
        let (mut beats, mut answers) = match begun {
            Ok(Ok(both)) => both,
            // The cluster knows no such lease.
            Ok(Err(etcd_client::Error::LeaseKeepAliveError(_))) => return Stop::Ended,
            Ok(Err(_)) | Err(_) => return Stop::Broken,
        };
        loop {
            // The first heartbeat was part of the call, and has been answered.
            self.valid_until = requested + self.time_to_live;
            sleep(self.interval.min(self.time_to_live / 3)).await;
            requested = Instant::now();
            let answer = timeout(self.patience(), async {
                beats.keep_alive().await?;
                answers.message().await
            });
            match answer.await {
                Ok(Ok(Some(answer))) if answer.ttl() <= 0 => return Stop::Ended,
                Ok(Ok(Some(_))) => {}
                Ok(Ok(None) | Err(_)) | Err(_) => return Stop::Broken,
            }
        }
    }

    /// How long a member may take to answer, so that there is time for another one.
    fn patience(&self) -> Duration {
        let left = self.valid_until.saturating_duration_since(Instant::now());
        left.min(self.time_to_live / 3)
    }
}
