//! What the stories run on: handles on one store, and what all of them need.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use mesh_orchestrator::{
    cluster::{Cluster, SystemClock},
    objects::State,
    spec::ServiceSpec,
    store::{Store, etcd::EtcdStore, redb::RedbStore},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{sync::OnceCell, task::JoinHandle};
use tokio_util::sync::{CancellationToken, DropGuard};

#[path = "../store/etcd/cluster.rs"]
#[expect(dead_code, reason = "the store's own stories need all of it")]
pub(crate) mod etcd;

/// How long anything may take that is waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A store that nobody else uses.
pub(crate) struct Lab {
    pub(crate) folder: TempDir,
    etcd: Option<(Arc<etcd::Cluster>, String)>,
    redb: OnceCell<Arc<RedbStore>>,
}

/// A handle on the cluster, kept up until it is dropped.
pub(crate) struct Handle {
    pub(crate) cluster: Cluster,
    _stop: DropGuard,
    _upkeep: JoinHandle<()>,
}

impl Lab {
    pub(crate) fn redb() -> Result<Self> {
        Ok(Self {
            folder: tempfile::tempdir()?,
            etcd: None,
            redb: OnceCell::new(),
        })
    }

    pub(crate) fn etcd(cluster: Arc<etcd::Cluster>) -> Result<Self> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let root = format!("/cluster-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        Ok(Self {
            folder: tempfile::tempdir()?,
            etcd: Some((cluster, root)),
            redb: OnceCell::new(),
        })
    }

    /// A connection of its own on etcd; the one that there can be on redb.
    pub(crate) async fn store(&self) -> Result<Arc<dyn Store>> {
        match &self.etcd {
            Some((cluster, root)) => Ok(Arc::new(EtcdStore::open(cluster.config(root)).await?)),
            None => {
                let path = self.folder.path().join("store.redb");
                let open = || async { Ok::<_, anyhow::Error>(Arc::new(RedbStore::open(path)?)) };
                Ok(self.redb.get_or_try_init(open).await?.clone())
            }
        }
    }

    /// Another handle, as another node would have it.
    pub(crate) async fn open(&self) -> Result<Handle> {
        open(self.store().await?).await
    }
}

pub(crate) async fn open(store: Arc<dyn Store>) -> Result<Handle> {
    let (cluster, upkeep) = Cluster::open(store, Arc::new(SystemClock)).await?;
    let stop = CancellationToken::new();
    Ok(Handle {
        cluster,
        _upkeep: tokio::spawn(upkeep.run(stop.clone())),
        _stop: stop.drop_guard(),
    })
}

impl Handle {
    /// Waits until something is true of the state.
    pub(crate) async fn until(&self, what: &str, is_so: impl Fn(&State) -> bool) -> Result<()> {
        let mut changes = self.cluster.changes();
        let wait = changes.wait_for(|_| self.cluster.read(&is_so));
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(changed) => changed.map(drop).context("the handle was closed"),
            Err(_) => anyhow::bail!("not within {PATIENCE:?}: {what}\n{}", self.describe()),
        }
    }

    pub(crate) fn describe(&self) -> String {
        self.cluster.read(|state| {
            let mut text = String::new();
            for node in state.nodes().values() {
                text += &format!("node {} {} {}\n", node.id, node.status, node.availability);
            }
            for service in state.services().values() {
                text += &format!("service {} version {}\n", service.spec.name, service.version);
            }
            for task in state.tasks().values() {
                text += &format!(
                    "task {} {} on {:?}: {} (desired {}): {}\n",
                    task.name(),
                    task.id,
                    task.node,
                    task.status.state,
                    task.desired,
                    task.status.message
                );
            }
            text
        })
    }
}

/// A runtime with a bound, so that a fault of ours does not hang the suite.
pub(crate) fn run<F: Future<Output = Result<()>>>(story: F) -> Result<()> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(async {
            tokio::time::timeout(PATIENCE * 6, story)
                .await
                .context("the story hangs")?
        })
}

/// A service of so many replicas.
pub(crate) fn service(name: &str, replicas: u32) -> Result<ServiceSpec> {
    spec(json!({
        "name": name,
        "task_template": {"container_spec": {"image": format!("{name}:1")}},
        "mode": {"replicated": {"replicas": replicas}},
    }))
}

pub(crate) fn spec(json: Value) -> Result<ServiceSpec> {
    Ok(ServiceSpec::from_json(&serde_json::to_vec(&json)?)?)
}
