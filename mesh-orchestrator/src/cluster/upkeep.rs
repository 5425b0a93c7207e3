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

/// How often it is looked whether the store is there.
const PROBE: Duration = Duration::from_secs(5);

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
    /// Asks the store for something small now and then: a watch says nothing of a store that is away.
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

    /// Takes over what a transaction has changed; false if that cannot be.
    fn fold(&self, batch: &WatchBatch) -> bool {
        let now = self.clock().now();
        {
            let mut mirror = self.mirror_mut();
            match mirror.fold(batch, now) {
                Ok(news) => self.tell(news),
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, "a change in the store does not fit what was there");
                    return false;
                }
            }
        }
        self.note(None);
        self.inner.revision.send_replace(batch.revision);
        true
    }

    /// Puts a new mirror into the old one's place.
    fn replace(&self, mirror: Mirror) {
        let now = self.clock().now();
        let revision = mirror.revision();
        {
            let mut old = self.mirror_mut();
            let events = mirror.since(&old, now);
            *old = mirror;
            self.tell(News {
                revision,
                anew: true,
                events,
                ..News::default()
            });
        }
        self.inner.revision.send_replace(revision);
    }

    /// Under the mirror's lock: who looks at it and listens from there on misses nothing, and is told
    /// nothing that it has seen.
    fn tell(&self, news: News) {
        for event in &news.events {
            // Nobody may be listening.
            let _ = self.inner.events.send(event.clone());
        }
        let _ = self.inner.news.send(Arc::new(news));
    }
}
