//! An API to ask: its router on sockets, once for the administrator and once for bearers of tokens.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result, bail, ensure};
use async_trait::async_trait;
use futures_util::{
    StreamExt,
    stream::{self, BoxStream},
};
use mesh_orchestrator::{
    api::{
        Access, Api, ImageResolver, LogOptions, LogTarget, Logs, LogsError, Parts, Peers, ResolveError,
        TaskLine,
        types::{LogLine, LogStream, ServiceView},
    },
    objects::{Node, NodeRole, Task, Timestamp},
    secrets::Vault,
};
use mesh_orchestrator_testing::{PATIENCE, agent::Machine, lab::Lab};
use reqwest::{Method, StatusCode, header::HeaderMap};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{net::UnixListener, task::JoinHandle};

/// A cluster of one or two nodes with an API on each.
pub(crate) struct Server {
    pub(crate) machine: Machine,
    pub(crate) other: Option<Machine>,
    pub(crate) images: Arc<Registry>,
    pub(crate) folder: TempDir,
    serving: Vec<JoinHandle<()>>,
    // After the machines: they use its store.
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

    /// With a second node that has an API of its own.
    pub(crate) async fn start_two() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        Self::start_on(Lab::redb_in(folder.path()), folder, true).await
    }

    /// On a store of the caller's, with all files in a folder.
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
            public_url: Some("https://mesh.example".to_owned()),
            logs: Arc::new(Written),
            peers: Arc::new(Sockets(self.folder.path().to_owned())),
            images: Arc::clone(&self.images) as Arc<dyn ImageResolver>,
        });
        for (access, kind) in [(Access::Trusted, "admin"), (Access::Tokens, "tokens")] {
            let listener = UnixListener::bind(self.folder.path().join(format!("{node}.{kind}")))?;
            let router = api.router(access);
            self.serving.push(tokio::spawn(async move {
                // It ends with the task.
                let _ = axum::serve(listener, router).await;
            }));
        }
        Ok(())
    }

    /// The store's file.
    pub(crate) fn store_path(&self) -> PathBuf {
        self.folder.path().join("store.redb")
    }

    /// Asks as the administrator.
    pub(crate) fn ask(&self, method: Method, path: &str) -> Result<Question> {
        Question::new(&self.folder.path().join("one.admin"), method, path)
    }

    /// Asks as somebody who has a token, or has none.
    pub(crate) fn ask_as(&self, token: Option<&str>, method: Method, path: &str) -> Result<Question> {
        let mut question = Question::new(&self.folder.path().join("one.tokens"), method, path)?;
        if let Some(token) = token {
            question = question.header("authorization", &format!("Bearer {token}"));
        }
        Ok(question)
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Answer> {
        self.ask(Method::GET, path)?.send().await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Result<Answer> {
        self.ask(Method::POST, path)?.json(&body).send().await
    }

    /// Creates a service; answers with what the API does.
    pub(crate) async fn create(&self, spec: Value) -> Result<Answer> {
        let answer = self.post("/v1/services", spec).await?;
        answer.expect(StatusCode::CREATED)
    }

    pub(crate) async fn service(&self, name: &str) -> Result<ServiceView> {
        let answer = self.get(&format!("/v1/services/{name}")).await?;
        Ok(serde_json::from_value(answer.expect(StatusCode::OK)?.json)?)
    }

    /// Waits until the API shows a service as somebody wants it.
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

/// The least that a service needs.
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

/// A request on its way.
pub(crate) struct Question {
    request: reqwest::RequestBuilder,
    what: String,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    what: String,
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// `null` if there was no body.
    pub(crate) json: Value,
    pub(crate) text: String,
}

impl Question {
    pub(crate) fn new(socket: &Path, method: Method, path: &str) -> Result<Self> {
        let client = reqwest::Client::builder()
            .unix_socket(socket)
            .no_proxy()
            .build()?;
        Ok(Self {
            what: format!("{method} {path}"),
            request: client.request(method, format!("http://mesh{path}")),
        })
    }

    pub(crate) fn json(mut self, body: &Value) -> Self {
        self.request = self.request.json(body);
        self
    }

    pub(crate) fn body(mut self, body: Vec<u8>) -> Self {
        self.request = self.request.body(body);
        self
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.request = self.request.header(name, value);
        self
    }

    pub(crate) async fn send(self) -> Result<Answer> {
        let response = self.request.send().await?;
        let (status, headers) = (response.status(), response.headers().clone());
        let text = response.text().await?;
        let json = if text.is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&text).with_context(|| format!("{}: no JSON: {text}", self.what))?
        };
        Ok(Answer {
            what: self.what,
            status,
            headers,
            json,
            text,
        })
    }

    /// The body line by line, as it comes.
    pub(crate) async fn lines(self) -> Result<BoxStream<'static, Result<String>>> {
        let response = self.request.send().await?;
        ensure!(
            response.status().is_success(),
            "{}: {}: {}",
            self.what,
            response.status(),
            response.text().await?
        );
        let mut pending = Vec::new();
        let lines = response.bytes_stream().flat_map(move |chunk| {
            let mut lines = Vec::new();
            match chunk {
                Ok(chunk) => {
                    pending.extend_from_slice(&chunk);
                    while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                        let line: Vec<u8> = pending.drain(..=end).collect();
                        lines.push(Ok(String::from_utf8_lossy(&line).trim_end().to_owned()));
                    }
                }
                Err(error) => lines.push(Err(error.into())),
            }
            stream::iter(lines)
        });
        Ok(lines.boxed())
    }
}

impl Answer {
    pub(crate) fn expect(self, status: StatusCode) -> Result<Self> {
        ensure!(
            self.status == status,
            "{}: {} where {status} was expected: {}",
            self.what,
            self.status,
            self.text
        );
        Ok(self)
    }

    /// The error, if it is one of a status that says all that it has to.
    pub(crate) fn error(self, status: StatusCode, message: &str) -> Result<Value> {
        let answer = self.expect(status)?;
        let error = &answer.json["error"];
        let found = error["message"].as_str().unwrap_or_default();
        ensure!(
            found.contains(message),
            "{}: {message:?} is not in {found:?}",
            answer.what
        );
        Ok(error.clone())
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// What tags mean, for tests to change.
#[derive(Debug, Default)]
pub(crate) struct Registry(Mutex<BTreeMap<String, String>>);

impl Registry {
    pub(crate) fn push(&self, image: &str, digest: &str) {
        let mut images = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        images.insert(image.to_owned(), digest.to_owned());
    }
}

#[async_trait]
impl ImageResolver for Registry {
    async fn digest(&self, image: &str) -> Result<String, ResolveError> {
        let images = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        images.get(image).cloned().ok_or_else(|| ResolveError {
            image: image.to_owned(),
            source: "manifest unknown".into(),
        })
    }
}

/// Two lines of each task, the second a second after the first, and different for each slot.
#[derive(Debug)]
struct Written;

#[async_trait]
impl Logs for Written {
    async fn lines(
        &self,
        task: &Task,
        options: &LogOptions,
    ) -> Result<BoxStream<'static, Result<TaskLine, LogsError>>, LogsError> {
        let slot = task.slot.to_string();
        let line = |second: u32, stream, text: &str| {
            Ok(TaskLine {
                time: format!("2026-11-21T19:00:0{second}.00000000{slot}Z"),
                stream,
                line: text.to_owned(),
            })
        };
        let mut lines = vec![
            line(1, LogStream::Stdout, "begins"),
            line(2, LogStream::Stderr, "goes on"),
        ];
        if let Some(tail) = options.tail {
            lines.drain(
                ..lines
                    .len()
                    .saturating_sub(usize::try_from(tail).unwrap_or(usize::MAX)),
            );
        }
        let lines = stream::iter(lines);
        Ok(if options.follow {
            lines.chain(stream::pending()).boxed()
        } else {
            lines.boxed()
        })
    }
}

/// Other nodes' APIs, by their sockets in a folder.
#[derive(Debug)]
struct Sockets(PathBuf);

#[async_trait]
impl Peers for Sockets {
    async fn lines(
        &self,
        node: &Node,
        target: &LogTarget,
        options: &LogOptions,
    ) -> Result<BoxStream<'static, Result<LogLine, LogsError>>, LogsError> {
        let subject = node.hostname.clone();
        let failed = move |source: anyhow::Error| LogsError {
            subject: subject.clone(),
            source: source.into(),
        };
        let socket = self.0.join(format!("{}.admin", node.id));
        let lines = async {
            Question::new(&socket, Method::GET, &target.local_path(options))?
                .lines()
                .await
        };
        let lines = lines.await.map_err(&failed)?;
        Ok(lines
            .map(move |line| {
                line.and_then(|line| Ok(serde_json::from_str(&line)?))
                    .map_err(&failed)
            })
            .boxed())
    }
}
