//! A cluster that serves the API: on one socket for the administrator, on another for holders of tokens.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, bail};
use mesh_orchestrator::{
    api::{Access, Api, ImageResolver, Parts, types::ServiceView},
    objects::{NodeRole, State, Timestamp},
    secrets::Vault,
};
use mesh_orchestrator_testing::{PATIENCE, agent::Machine, lab::Lab};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{net::UnixListener, task::JoinHandle};

use crate::{
    client::{Answer, Request},
    providers::{Registry, Sockets, TwoLines},
};

/// A cluster of one or two nodes with an API on each.
pub(crate) struct Server {
    pub(crate) machine: Machine,
    pub(crate) other: Option<Machine>,
    pub(crate) images: Arc<Registry>,
    pub(crate) folder: TempDir,
    serving: Vec<JoinHandle<()>>,
    // Dropped after the machines, which use its store.
    _lab: Lab,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.serving.iter().for_each(JoinHandle::abort);
    }
}

impl Server {
    pub(crate) async fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        Self::start_on(Lab::redb_in(folder.path()), folder, false).await
    }

    /// With a second node, which has its own API.
    pub(crate) async fn start_two() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        Self::start_on(Lab::redb_in(folder.path()), folder, true).await
    }

    /// On the given store, with all files in a directory.
    pub(crate) async fn start_on(lab: Lab, folder: TempDir, two: bool) -> Result<Self> {
        std::fs::create_dir(folder.path().join("backups"))?;
        let images = Arc::new(Registry::default());
        let machine = Machine::start(&lab, "one", NodeRole::Manager).await?;
        let vault = open_vault(&lab, folder.path()).await?;
        let other = match two {
            true => Some(Machine::start(&lab, "two", NodeRole::Worker).await?),
            false => None,
        };
        machine
            .handle
            .until("the nodes are ready", |state| {
                let ready = state.nodes().values().filter(|node| node.is_schedulable());
                ready.count() == 1 + usize::from(two)
            })
            .await?;
        let mut server = Self {
            machine,
            other,
            images,
            folder,
            serving: Vec::new(),
            _lab: lab,
        };
        let others = server
            .other
            .iter()
            .map(|other| (other.handle.cluster.clone(), "two"));
        let clusters = std::iter::once((server.machine.handle.cluster.clone(), "one")).chain(others);
        for (cluster, node) in clusters.collect::<Vec<_>>() {
            server.serve(&cluster, node, &vault)?;
        }
        Ok(server)
    }

    fn serve(
        &mut self,
        cluster: &mesh_orchestrator::cluster::Cluster,
        node: &str,
        vault: &Arc<Vault>,
    ) -> Result<()> {
        let api = Api::new(Parts {
            cluster: cluster.clone(),
            vault: Arc::clone(vault),
            node: node.into(),
            backups: self.folder.path().join("backups"),
            // The second node serves no API that others can call.
            public_url: (node == "one").then(|| "https://mesh.example".to_owned()),
            logs: Arc::new(TwoLines::default()),
            peers: Arc::new(Sockets(self.folder.path().to_owned())),
            images: Arc::clone(&self.images) as Arc<dyn ImageResolver>,
        });
        for (access, kind) in [(Access::Trusted, "admin"), (Access::Tokens, "tokens")] {
            let listener = UnixListener::bind(self.folder.path().join(format!("{node}.{kind}")))?;
            let router = api.router(access);
            self.serving.push(tokio::spawn(async move {
                // It ends when the task is aborted.
                let _ = axum::serve(listener, router).await;
            }));
        }
        Ok(())
    }

    /// The store's file.
    pub(crate) fn store_path(&self) -> PathBuf {
        self.folder.path().join("store.redb")
    }

    /// A request by the administrator.
    pub(crate) fn request(&self, method: Method, path: &str) -> Result<Request> {
        Request::new(&self.folder.path().join("one.admin"), method, path)
    }

    /// Waits until the second node has a service, too.
    pub(crate) async fn until_other_has(&self, name: &str) -> Result<()> {
        let other = self.other.as_ref().context("there is no second node")?;
        let has = |state: &State| state.service_named(name).is_some();
        other.handle.until("the second node has the service", has).await
    }

    /// A request by the administrator of the second node.
    pub(crate) fn request_at_other(&self, method: Method, path: &str) -> Result<Request> {
        Request::new(&self.folder.path().join("two.admin"), method, path)
    }

    /// A request with a token, or without one.
    pub(crate) fn request_as(&self, token: Option<&str>, method: Method, path: &str) -> Result<Request> {
        let mut request = Request::new(&self.folder.path().join("one.tokens"), method, path)?;
        if let Some(token) = token {
            request = request.header("authorization", &format!("Bearer {token}"));
        }
        Ok(request)
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Answer> {
        self.request(Method::GET, path)?.send().await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Result<Answer> {
        self.request(Method::POST, path)?.json(&body).send().await
    }

    /// Creates a service.
    pub(crate) async fn create(&self, spec: Value) -> Result<Answer> {
        let answer = self.post("/v1/services", spec).await?;
        answer.expect(StatusCode::CREATED)
    }

    pub(crate) async fn service(&self, name: &str) -> Result<ServiceView> {
        let answer = self.get(&format!("/v1/services/{name}")).await?;
        Ok(serde_json::from_value(answer.expect(StatusCode::OK)?.json)?)
    }

    /// Waits until the API shows a service for which a condition holds.
    pub(crate) async fn until(
        &self,
        name: &str,
        is_so: impl Fn(&ServiceView) -> bool,
    ) -> Result<ServiceView> {
        let mut changes = self.machine.handle.cluster.changes();
        let wait = async {
            loop {
                changes.mark_unchanged();
                let view = self.service(name).await?;
                if is_so(&view) {
                    return Ok(view);
                }
                changes.changed().await.context("the cluster is gone")?;
            }
        };
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(view) => view,
            Err(_) => bail!("not in time: {}", self.machine.handle.describe()),
        }
    }
}

async fn open_vault(lab: &Lab, folder: &Path) -> Result<Arc<Vault>> {
    let store = lab.store().await?;
    let vault = Vault::open(store, &folder.join("keys.json"), Timestamp(1)).await?;
    Ok(Arc::new(vault))
}

/// A minimal specification.
pub(crate) fn spec(name: &str, replicas: u32) -> Value {
    json!({
        "name": name,
        "mode": {"replicated": {"replicas": replicas}},
        "task_template": {
            "container_spec": {"image": format!("{name}:1")},
            "restart_policy": {"delay": "100ms"},
        },
        "update_config": {"monitor": "50ms", "parallelism": 0},
        "rollback_config": {"monitor": "50ms", "parallelism": 0},
    })
}
