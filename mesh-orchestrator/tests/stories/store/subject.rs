//! What the stories run on: a fresh store of either kind, and helpers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail};
use mesh_orchestrator::store::{
    Entry, Key, Revision, Store, Transaction, Watch, WatchBatch,
    etcd::EtcdStore,
    redb::{History, RedbStore},
};
use mesh_orchestrator_testing::{PATIENCE, etcd::Cluster};
use tempfile::TempDir;

/// Which store a story is about.
#[derive(Clone)]
pub(super) enum Subject {
    Redb,
    Etcd(Arc<Cluster>),
}

/// A store of a story's own, and what must live as long.
pub(super) struct Fresh {
    pub(super) store: Arc<dyn Store>,
    etcd: Option<Arc<EtcdStore>>,
    _folder: Option<TempDir>,
}

impl Subject {
    /// A subject that no other story uses: compaction affects a whole etcd cluster.
    pub(super) fn alone(&self) -> Result<Self> {
        Ok(match self {
            Self::Redb => Self::Redb,
            Self::Etcd(_) => Self::Etcd(Arc::new(Cluster::start()?)),
        })
    }

    pub(super) async fn fresh(&self) -> Result<Fresh> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        match self {
            Self::Redb => {
                let folder = tempfile::tempdir()?;
                let history = History {
                    revisions: 1000,
                    bytes: 64 << 20,
                };
                let store = RedbStore::open_with(folder.path().join("store.redb"), history)?;
                Ok(Fresh {
                    store: Arc::new(store),
                    etcd: None,
                    _folder: Some(folder),
                })
            }
            Self::Etcd(cluster) => {
                let root = format!("/test-{}", COUNT.fetch_add(1, Ordering::Relaxed));
                let store = Arc::new(EtcdStore::open(cluster.config(&root)).await?);
                Ok(Fresh {
                    store: store.clone(),
                    etcd: Some(store),
                    _folder: None,
                })
            }
        }
    }
}

impl Fresh {
    /// Compacts everything that was committed before.
    pub(super) async fn forget(&self) -> Result<()> {
        match &self.etcd {
            Some(store) => {
                // The history starts with this one.
                let kept = store
                    .commit(Transaction::new().put(key("filler", 0), "x"))
                    .await?;
                store.compact(kept).await?;
            }
            None => {
                for _ in 0..1100 {
                    self.store
                        .commit(Transaction::new().put(key("filler", 0), "x"))
                        .await?;
                }
            }
        }
        Ok(())
    }
}

/// The next transaction that a watch delivers.
pub(super) async fn next(watch: &mut Watch) -> Result<WatchBatch> {
    Ok(tokio::time::timeout(PATIENCE, watch.next())
        .await
        .context("the watch delivered nothing in time")?
        .context("the watch has ended")??)
}

/// All entries, and the revision they are of.
pub(super) async fn all(store: &dyn Store) -> Result<(Revision, Vec<Entry>)> {
    let listing = store.snapshot().await?;
    Ok((listing.revision, listing.entries().await?))
}

pub(super) fn key(kind: &str, name: usize) -> Key {
    // Padded, so that they are ordered as their numbers are.
    Key::new([kind, &format!("{name:05}")]).expect("letters and digits")
}

/// Waits until a condition holds.
pub(super) async fn wait_until<F: Future<Output = Result<bool>>>(
    what: &str,
    mut is_so: impl FnMut() -> F,
) -> Result<()> {
    let end = tokio::time::Instant::now() + PATIENCE;
    while !is_so().await? {
        if tokio::time::Instant::now() > end {
            bail!("{what}: not within {PATIENCE:?}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
