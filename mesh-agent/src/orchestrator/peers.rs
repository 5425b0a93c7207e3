//! Asks other nodes' agents, over mutual TLS: for the logs of their tasks, to drain replicas, and for what
//! they show.

use std::{io, time::Duration};

use async_trait::async_trait;
use futures_util::{StreamExt, stream::BoxStream};
use mesh_orchestrator::{
    api::{LogOptions, LogTarget, LogsError, Peers, types::LogLine},
    cluster::Cluster,
    commands::is_worker,
    objects::{Node, NodeId},
};
use mesh_support::error_chain;
use serde::de::DeserializeOwned;
use tokio::{io::AsyncReadExt, time::timeout};
use tokio_util::codec::{FramedRead, LinesCodec};

use super::{
    certificates::Followed,
    exchange::{Body, ExchangeError, exchange},
    tls::Client,
};
use crate::{
    model::{DrainReport, DrainRequest},
    source::relay::MAX_TEXT,
};

/// Timeout of each step: connecting, the handshake, and the head of the answer.
const LIMIT: Duration = Duration::from_secs(5);
/// Agents cut lines of output at 64 KiB; escaped as JSON they may be six times as long.
const MAX_LINE_BYTES: usize = 512 << 10;
/// The longest list of drained replicas: of more than a node runs.
const MAX_DRAIN_BYTES: u64 = 1 << 20;

/// Where agents take other agents' requests to drain. Not part of the API: users ask their own node's agent.
pub(super) const DRAIN_PATH: &str = "/v1/relayed/drain";

/// Where they take what other agents read, followed by what that is.
pub(super) const READ_PATH: &str = "/v1/relayed/read";
/// The longest answer to that: as JSON in JSON, a text may take twice its length.
const MAX_READ_BYTES: u64 = 2 * MAX_TEXT as u64 + 1024;

/// What another node's agent shows, or why it does not.
pub(super) type ReadAnswer = Result<String, String>;

/// What a node drains then, or why nothing has changed.
pub(super) type DrainAnswer = Result<DrainReport, String>;

/// The other nodes' agents.
#[derive(Debug)]
pub(super) struct TlsPeers {
    pub(super) cluster: Cluster,
    pub(super) config: Followed<Client>,
}

/// Another agent did not answer.
#[derive(Debug, thiserror::Error)]
enum PeerError {
    #[error("its agent is not registered, or does not serve other agents")]
    NoAddress,
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    #[error("its answer was not complete")]
    Incomplete(#[source] io::Error),
    #[error("its answer cannot be understood")]
    Answer(#[source] serde_json::Error),
}

/// Agents without certificates cannot request each other's logs.
#[derive(Debug)]
pub(super) struct NoPeers(pub(super) NotFromHere);

/// Another node's agent cannot be asked from here.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub(super) enum NotFromHere {
    /// There are no certificates.
    #[error(
        "agents ask each other only with certificates (--etcd-ca, --etcd-certificate, --etcd-key): run the command on \
         that node"
    )]
    NoCertificates,
    /// Workers ask no other nodes.
    #[error("this node is a worker: run the command on that node, or on a manager")]
    Worker,
}

#[async_trait]
impl Peers for NoPeers {
    async fn lines(
        &self,
        node: &Node,
        _: &LogTarget,
        _: &LogOptions,
    ) -> Result<BoxStream<'static, Result<LogLine, LogsError>>, LogsError> {
        Err(failed(node, self.0))
    }
}

#[async_trait]
impl Peers for TlsPeers {
    async fn lines(
        &self,
        node: &Node,
        target: &LogTarget,
        options: &LogOptions,
    ) -> Result<BoxStream<'static, Result<LogLine, LogsError>>, LogsError> {
        let path = target.local_path(options);
        let stream = self
            .request(&node.id, &path, None)
            .await
            .map_err(|error| failed(node, error))?;
        let node = node.clone();
        let lines = FramedRead::new(stream, LinesCodec::new_with_max_length(MAX_LINE_BYTES));
        Ok(lines
            .map(move |line| {
                let line = line.map_err(|error| failed(&node, error))?;
                serde_json::from_str(&line).map_err(|error| failed(&node, error))
            })
            .boxed())
    }
}

fn failed(node: &Node, error: impl std::error::Error + Send + Sync + 'static) -> LogsError {
    LogsError {
        subject: format!("node {}", node.hostname),
        source: Box::new(error),
    }
}

impl TlsPeers {
    /// Has a request carried out on a node; without one, asks what is drained there.
    pub(super) async fn drain(&self, node: &NodeId, request: Option<DrainRequest>) -> DrainAnswer {
        let body = request.map(|request| serde_json::to_vec(&request).unwrap_or_default());
        self.relay(node, DRAIN_PATH, body.as_deref(), MAX_DRAIN_BYTES)
            .await
    }

    /// Reads what a node's agent shows at a path of its admin API.
    pub(super) async fn read(&self, node: &NodeId, path: &str) -> ReadAnswer {
        self.relay(node, &format!("{READ_PATH}/{path}"), None, MAX_READ_BYTES)
            .await
    }

    /// Has another node's agent carry out a request, and reads its answer of limited length.
    async fn relay<T: DeserializeOwned>(
        &self,
        node: &NodeId,
        path: &str,
        body: Option<&[u8]>,
        longest: u64,
    ) -> Result<T, String> {
        let asked = async {
            let reader = self.request(node, path, body).await?;
            let mut answer = Vec::new();
            timeout(LIMIT, reader.take(longest).read_to_end(&mut answer))
                .await
                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
                .map_err(PeerError::Incomplete)?;
            serde_json::from_slice(&answer).map_err(PeerError::Answer)
        };
        asked.await.unwrap_or_else(|error| Err(error_chain(&error)))
    }

    /// Sends a request, with a JSON body if it changes something; returns a reader of the answer's body.
    async fn request(&self, node: &NodeId, path: &str, body: Option<&[u8]>) -> Result<Body, PeerError> {
        let registration = self.cluster.registration(node);
        let address = registration.and_then(|registration| registration.logs);
        let address = address.ok_or(PeerError::NoAddress)?;
        let worker = self.cluster.read(|state| {
            let node = state.nodes().get(node).filter(|node| is_worker(node));
            node.map(|node| node.hostname.clone())
        });
        let client = self.config.current();
        Ok(exchange(&client, &address, worker.as_deref(), path, body, LIMIT).await?)
    }
}
