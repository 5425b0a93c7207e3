//! An orchestrator of one node on a socket, and `meshctl` to ask it.

use std::{path::PathBuf, process::Stdio, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use futures_util::{StreamExt, stream, stream::BoxStream};
use mesh_orchestrator::{
    api::{
        Access, Api, ImageResolver, LogOptions, LogTarget, LoginError, Logs, LogsError, Parts, Peers,
        ResolveError, TaskLine,
        types::{LogLine, LogStream},
    },
    cluster::{Cluster, LeaderConfig, Member, Registration, SystemClock},
    objects::{Node, NodeId, State, Task, Timestamp},
    secrets::Vault,
    store::{Heartbeat, Store, redb::RedbStore},
};
use tempfile::TempDir;
use tokio::{io::AsyncWriteExt, net::UnixListener, process::Command, task::JoinSet, time::timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::agent::{description, work};

/// How long anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

const NODE: &str = "node1id";

/// An orchestrator of one node.
pub(crate) struct Server {
    pub(crate) cluster: Cluster,
    pub(crate) folder: TempDir,
    _member: Member,
    _stop: DropGuard,
    _work: JoinSet<()>,
}

/// How a run of `meshctl` ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Server {
    pub(crate) async fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        std::fs::create_dir(folder.path().join("backups"))?;
        let store: Arc<dyn Store> = Arc::new(RedbStore::open(folder.path().join("store.redb"))?);
        let (cluster, upkeep) = Cluster::open(Arc::clone(&store), Arc::new(SystemClock)).await?;
        let stop = CancellationToken::new();
        let heartbeat = Heartbeat {
            interval: Duration::from_millis(500),
            missed: 3,
        };
        let mut running = JoinSet::new();
        running.spawn(upkeep.run(stop.clone()));
        let registration = Registration {
            engine: true,
            datapath: "ebpf".to_owned(),
            release: "0.1.0".to_owned(),
            engine_version: "29.3.1".to_owned(),
            ..Registration::default()
        };
        let member = Member::start(&cluster, description(NODE), registration, heartbeat)?;
        running.spawn(work(cluster.clone(), NodeId::from(NODE)));
        let config = LeaderConfig {
            heartbeat,
            ..LeaderConfig::new(NodeId::from(NODE))
        };
        let (leading, until) = (cluster.clone(), stop.clone());
        running.spawn(async move { leading.run_candidate(config, until).await });
        let vault = Vault::open(store, &folder.path().join("keys.json"), Timestamp(1)).await?;
        let api = Api::new(Parts {
            cluster: cluster.clone(),
            vault: Arc::new(vault),
            node: NodeId::from(NODE),
            backups: folder.path().join("backups"),
            public_url: Some("https://mesh.example".to_owned()),
            logs: Arc::new(TwoLines),
            peers: Arc::new(NoPeers),
            images: Arc::new(Unpinned),
        });
        let listener = UnixListener::bind(folder.path().join("admin.sock"))?;
        let router = api.router(Access::Trusted);
        running.spawn(async move {
            // It ends with the test.
            let _ = axum::serve(listener, router).await;
        });
        let server = Self {
            cluster,
            folder,
            _member: member,
            _stop: stop.drop_guard(),
            _work: running,
        };
        server
            .until("the node is ready", |state| {
                state.nodes().values().any(Node::is_schedulable)
            })
            .await?;
        Ok(server)
    }

    /// Waits until the condition holds.
    pub(crate) async fn until(&self, what: &str, is_so: impl Fn(&State) -> bool) -> Result<()> {
        let mut changes = self.cluster.changes();
        let wait = async {
            loop {
                changes.mark_unchanged();
                if self.cluster.read(&is_so) {
                    return Ok(());
                }
                changes.changed().await.context("the cluster is gone")?;
            }
        };
        timeout(PATIENCE, wait)
            .await
            .with_context(|| format!("timed out: {what}"))?
    }

    /// A file in the server's folder.
    pub(crate) fn file(&self, name: &str, content: &str) -> Result<PathBuf> {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content)?;
        Ok(path)
    }

    /// The command, ready to be started.
    pub(crate) fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-agent"));
        command
            .arg0("meshctl")
            .args(shlex::split(line).expect("the test's line has closed quotes"))
            .env("MESH_ADMIN_SOCKET", self.folder.path().join("admin.sock"))
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Runs it to its end.
    pub(crate) async fn run(&self, line: &str) -> Result<Outcome> {
        self.run_with(line, "").await
    }

    /// The same, with something on standard input.
    pub(crate) async fn run_with(&self, line: &str, input: &str) -> Result<Outcome> {
        let mut child = self.command(line).stdin(Stdio::piped()).spawn()?;
        let mut stdin = child.stdin.take().context("it has a standard input")?;
        stdin.write_all(input.as_bytes()).await?;
        drop(stdin);
        let output = timeout(PATIENCE, child.wait_with_output())
            .await
            .with_context(|| format!("{line}: timed out"))??;
        Ok(Outcome {
            code: output.status.code(),
            out: String::from_utf8(output.stdout)?,
            err: String::from_utf8(output.stderr)?,
        })
    }

    /// Runs a line that must succeed; returns its standard output.
    pub(crate) async fn ok(&self, line: &str) -> Result<String> {
        let outcome = self.run(line).await?;
        ensure!(outcome.code == Some(0), "{line}: {outcome:?}");
        Ok(outcome.out)
    }

    /// Runs a line that must end with this code; returns its standard error.
    pub(crate) async fn fails(&self, line: &str, code: i32) -> Result<String> {
        let outcome = self.run(line).await?;
        ensure!(outcome.code == Some(code), "{line}: {outcome:?}");
        Ok(outcome.err)
    }
}

/// Two lines of each task.
#[derive(Debug)]
struct TwoLines;

#[async_trait]
impl Logs for TwoLines {
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

/// A cluster without other nodes.
#[derive(Debug)]
struct NoPeers;

#[async_trait]
impl Peers for NoPeers {
    async fn lines(
        &self,
        _: &Node,
        _: &LogTarget,
        _: &LogOptions,
    ) -> Result<BoxStream<'static, Result<LogLine, LogsError>>, LogsError> {
        Ok(stream::empty().boxed())
    }
}

/// Resolves every tag to the same digest.
#[derive(Debug)]
struct Unpinned;

#[async_trait]
impl ImageResolver for Unpinned {
    async fn digest(&self, _: &str) -> Result<String, ResolveError> {
        Ok(format!("sha256:{}", "ab".repeat(32)))
    }

    async fn log_in(&self, registry: &str, _: &str, password: &str) -> Result<(), LoginError> {
        if password != "wrong" {
            return Ok(());
        }
        Err(LoginError {
            registry: registry.to_owned(),
            source: "unauthorized: incorrect username or password".into(),
        })
    }
}
