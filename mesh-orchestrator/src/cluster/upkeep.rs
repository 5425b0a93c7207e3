//! Keeps the mirror in step with the store, for ever and through its outages. Imports `mirror` and the
//! store's trait.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{
    Cluster, OpenError,
    mirror::{Mirror, News},
    stored::{self, Name},
};
use crate::store::{PAGE, Prefix, Store, StoreError, Watch, WatchBatch};

/// The pause before the store is asked again.
const RETRY: Duration = Duration::from_millis(500);

/// The work behind a [`Cluster`]: without it nothing that others change is seen, and no report is stored.
#[derive(Debug)]
#[must_use = "nothing is seen of the store's changes until it runs"]
pub struct Upkeep {
    cluster: Cluster,
    watch: Watch,
}

/// All objects as they are, and the watch that tells what becomes of them.
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
            // Compacted between the two.
            Err(StoreError::Compacted { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

impl Upkeep {
    pub(super) fn new(cluster: Cluster, watch: Watch) -> Self {
        Self { cluster, watch }
    }

    /// Works until it is told to stop.
    pub async fn run(self, shutdown: CancellationToken) {
        let Self { cluster, watch } = self;
        let work = async {
            tokio::join!(follow(&cluster, watch), cluster.store_reports());
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
                tracing::info!(error, "reads all of the store anew");
            }
            None => tracing::info!("the store's watch has ended; reads all of it anew"),
        }
        watch = again(cluster).await;
    }
}

async fn again(cluster: &Cluster) -> Watch {
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
                tracing::error!(error, "could not read the cluster's objects anew");
            }
        }
        sleep(RETRY).await;
    }
}

impl Cluster {
    /// Takes over what a transaction has changed; false if that cannot be.
    fn fold(&self, batch: &WatchBatch) -> bool {
        let now = self.clock().now();
        let news = {
            let mut mirror = self.mirror_mut();
            match mirror.fold(batch, now) {
                Ok(news) => {
                    let news = Arc::new(news);
                    // Under the lock: who copies the mirror and follows from there misses nothing.
                    let _ = self.inner.news.send(Arc::clone(&news));
                    news
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, "a change in the store does not fit what was there");
                    return false;
                }
            }
        };
        self.note(None);
        self.tell(&news);
        true
    }

    /// Puts a new mirror into the old one's place.
    fn replace(&self, mirror: Mirror) {
        let now = self.clock().now();
        let news = {
            let mut old = self.mirror_mut();
            let events = mirror.since(&old, now);
            let news = Arc::new(News {
                revision: mirror.revision(),
                anew: true,
                events,
                ..News::default()
            });
            *old = mirror;
            let _ = self.inner.news.send(Arc::clone(&news));
            news
        };
        self.tell(&news);
    }

    fn tell(&self, news: &News) {
        self.inner.revision.send_replace(news.revision);
        for event in &news.events {
            // Nobody may be listening.
            let _ = self.inner.events.send(event.clone());
        }
    }
}
