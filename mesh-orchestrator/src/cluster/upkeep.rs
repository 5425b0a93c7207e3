//! Keeps the mirror up to date with the store, across outages. Imports `mirror` and the
//! store's trait.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{
    Cluster, OpenError,
    mirror::{Mirror, Update},
    stored::{self, Name},
};
use crate::store::{PAGE, Prefix, Store, StoreError, Watch, WatchBatch};

/// The pause before the store is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// How often to check whether the store is available.
const PROBE: Duration = Duration::from_secs(5);

/// The background work of a [`Cluster`]: it follows the store's changes and stores reports.
#[derive(Debug)]
#[must_use = "the store's changes are not followed until it runs"]
pub struct Upkeep {
    cluster: Cluster,
    watch: Watch,
}

/// All objects, and a watch of their changes from then on.
pub(super) async fn begin(store: &dyn Store, clock: &dyn super::Clock) -> Result<(Mirror, Watch), OpenError> {
    loop {
        let mut listing = store.list(&Prefix::everything(), PAGE).await?;
        let revision = listing.revision;
        let mut entries = Vec::new();
        while let Some(page) = listing.next_page().await? {
            entries.extend(
                page.into_iter()
                    .filter(|entry| stored::name(&entry.key) != Name::Other),
            );
        }
        let mirror = Mirror::new(revision, &entries, clock.now())?;
        match store.watch(&Prefix::everything(), revision).await {
            Ok(watch) => return Ok((mirror, watch)),
            // Compacted in between.
            Err(StoreError::Compacted { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

impl Upkeep {
    pub(super) fn new(cluster: Cluster, watch: Watch) -> Self {
        Self { cluster, watch }
    }

    /// Works until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let Self { cluster, watch } = self;
        let work = async {
            tokio::join!(follow(&cluster, watch), cluster.store_reports(), cluster.probe());
        };
        shutdown.run_until_cancelled(work).await;
    }
}

async fn follow(cluster: &Cluster, mut watch: Watch) {
    loop {
        match watch.next().await {
            Some(Ok(batch)) => {
                if cluster.fold(&batch) {
                    continue;
                }
            }
            Some(Err(error)) => {
                let error = &error as &dyn std::error::Error;
                tracing::info!(error, "reading the whole store again");
            }
            None => tracing::info!("the store's watch ended; reading the whole store again"),
        }
        // A node that follows managers would go on following one, beside the list that it reads.
        drop(watch);
        watch = read_again(cluster).await;
    }
}

async fn read_again(cluster: &Cluster) -> Watch {
    loop {
        match begin(cluster.store().as_ref(), cluster.clock()).await {
            Ok((mirror, watch)) => {
                cluster.note(None);
                cluster.replace(mirror);
                return watch;
            }
            Err(OpenError::Store(error)) => cluster.note(Some(&error)),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "could not read the cluster's objects again");
            }
        }
        sleep(RETRY).await;
    }
}

impl Cluster {
    /// Reads a small key regularly: a watch does not report that the store is unavailable.
    async fn probe(&self) {
        let Ok(key) = stored::restore() else {
            return;
        };
        loop {
            sleep(PROBE).await;
            let answer = self.store().get(&key).await;
            self.note(answer.as_ref().err());
        }
    }

    /// Applies a transaction to the mirror; false if it does not fit.
    fn fold(&self, batch: &WatchBatch) -> bool {
        let now = self.clock().now();
        {
            let mut mirror = self.mirror_mut();
            match mirror.fold(batch, now) {
                Ok(update) => self.publish(update),
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, "a change in the store does not fit the mirror");
                    return false;
                }
            }
        }
        self.note(None);
        self.inner.revision.send_replace(batch.revision);
        true
    }

    /// Replaces the mirror.
    fn replace(&self, mirror: Mirror) {
        let now = self.clock().now();
        let revision = mirror.revision();
        {
            let mut old = self.mirror_mut();
            let events = mirror.since(&old, now);
            *old = mirror;
            self.publish(Update {
                revision,
                is_complete: true,
                events,
                ..Update::default()
            });
        }
        self.inner.revision.send_replace(revision);
    }

    /// Publishes an update, under the mirror's lock: a reader that subscribes under the lock misses nothing
    /// and sees nothing twice.
    fn publish(&self, update: Update) {
        for event in &update.events {
            // There may be no listener.
            let _ = self.inner.events.send(event.clone());
        }
        let _ = self.inner.updates.send(Arc::new(update));
    }
}
