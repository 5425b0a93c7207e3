//! What the suite runs on: a fresh store of either kind, and what all stories need.

use std::{
    path::Path,
    process::{Command, ExitCode},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail};
use mesh_orchestrator::store::{
    Key, Store, Transaction,
    etcd::EtcdStore,
    redb::{History, RedbStore},
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::etcd::cluster::Cluster;

/// How long anything may take that is waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Which store a story is about.
#[derive(Clone)]
pub(crate) enum Subject {
    Redb,
    Etcd(Arc<Cluster>),
}

/// A store that nobody else uses, and what must live as long.
pub(crate) struct Fresh {
    pub(crate) store: Arc<dyn Store>,
    etcd: Option<Arc<EtcdStore>>,
    _folder: Option<TempDir>,
}

impl Subject {
    /// One that no other story uses, for what would touch all of an etcd: it forgets for everybody.
    pub(crate) fn alone(&self) -> Result<Self> {
        Ok(match self {
            Self::Redb => Self::Redb,
            Self::Etcd(_) => Self::Etcd(Arc::new(Cluster::start()?)),
        })
    }

    pub(crate) async fn fresh(&self) -> Result<Fresh> {
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
    /// Lets the store forget all that was committed before.
    pub(crate) async fn forget(&self) -> Result<()> {
        match &self.etcd {
            Some(store) => {
                // What is kept begins with this one.
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

/// Runs a story's asynchronous part.
pub(crate) fn run<T>(story: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = Runtime::new()?;
    runtime.block_on(async {
        tokio::time::timeout(PATIENCE * 6, story)
            .await
            .context("the story never ended")?
    })
}

pub(crate) fn key(kind: &str, name: usize) -> Key {
    // Padded, so that they are ordered as their numbers are.
    Key::new([kind, &format!("{name:05}")]).expect("letters and digits")
}

/// Waits until something is so.
pub(crate) async fn wait_until<F: Future<Output = Result<bool>>>(
    what: &str,
    mut is_so: impl FnMut() -> F,
) -> Result<()> {
    let end = tokio::time::Instant::now() + PATIENCE;
    while !is_so().await? {
        if tokio::time::Instant::now() > end {
            bail!("{what}: still not so after {PATIENCE:?}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Names the work that a child of a trial shall do.
const CHILD: &str = "MESH_STORE_TEST_CHILD";
const CHILD_ARGUMENT: &str = "MESH_STORE_TEST_ARGUMENT";

/// This very program, to do one piece of work in a process of its own.
pub(crate) fn child_command(work: &str, argument: &Path) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.env(CHILD, work).env(CHILD_ARGUMENT, argument);
    Ok(command)
}

/// Does a child's work, if this is one.
pub(crate) fn child() -> Option<ExitCode> {
    let work = std::env::var(CHILD).ok()?;
    let argument = std::env::var_os(CHILD_ARGUMENT).unwrap_or_default();
    let result = match work.as_str() {
        "write-until-killed" => crate::redb::write_until_killed(Path::new(&argument)),
        "write-to-a-full-disk" => crate::redb::write_to_a_full_disk(Path::new(&argument)),
        "lead-until-killed" => crate::etcd::lead_until_killed(Path::new(&argument)),
        other => Err(anyhow::anyhow!("no such work: {other}")),
    };
    Some(match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:?}");
            ExitCode::FAILURE
        }
    })
}
