//! Asks other nodes' agents, over mutual TLS: for the logs of their tasks, to drain replicas, and for what
//! they show.

use std::{io, net::SocketAddr, time::Duration};

use async_trait::async_trait;
use futures_util::{StreamExt, stream::BoxStream};
use mesh_orchestrator::{
    api::{LogOptions, LogTarget, LogsError, Peers, types::LogLine},
    cluster::Cluster,
    objects::{Node, NodeId},
};
use mesh_support::error_chain;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde::de::DeserializeOwned;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::codec::{FramedRead, LinesCodec};

use super::certificates::Followed;
use crate::{
    model::{DrainReport, DrainRequest},
    source::relay::MAX_TEXT,
};

/// Timeout of each step: connecting, the handshake, and the head of the answer.
const LIMIT: Duration = Duration::from_secs(5);
/// The longest head of an answer.
const MAX_HEAD_BYTES: u64 = 16 << 10;
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
    pub(super) config: Followed<ClientConfig>,
}

/// Another agent did not answer.
#[derive(Debug, thiserror::Error)]
enum PeerError {
    #[error("its agent is not registered, or does not serve other agents")]
    NoAddress,
    #[error("cannot connect to {0}; is the feed port open between the nodes?")]
    Connect(SocketAddr, #[source] io::Error),
    #[error(
        "the TLS handshake with {0} failed; is its certificate from the same authority, and valid for servers?"
    )]
    Handshake(SocketAddr, #[source] io::Error),
    #[error("the connection to {0} failed")]
    Connection(SocketAddr, #[source] io::Error),
    #[error("{0} answered '{1}'; is its agent of an earlier release?")]
    Refused(SocketAddr, String),
    #[error("the answer of {0} cannot be understood")]
    Answer(SocketAddr, #[source] serde_json::Error),
}

/// Agents without certificates cannot request each other's logs.
#[derive(Debug)]
pub(super) struct NoPeers;

/// Another node's agent cannot be asked from here.
#[derive(Debug, thiserror::Error)]
#[error(
    "agents ask each other only with certificates (--etcd-ca, --etcd-certificate, --etcd-key): run the command on \
     that node"
)]
pub(super) struct NoCertificates;

#[async_trait]
impl Peers for NoPeers {
    async fn lines(
        &self,
        node: &Node,
        _: &LogTarget,
        _: &LogOptions,
    ) -> Result<BoxStream<'static, Result<LogLine, LogsError>>, LogsError> {
        Err(failed(node, NoCertificates))
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
        let asked = async {
            let address = self.address(&node.id)?;
            self.request(address, &target.local_path(options), None).await
        };
        let stream = asked.await.map_err(|error| failed(node, error))?;
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
            let address = self.address(node)?;
            let reader = self.request(address, path, body).await?;
            let mut answer = Vec::new();
            timeout(LIMIT, reader.take(longest).read_to_end(&mut answer))
                .await
                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
                .map_err(|error| PeerError::Connection(address, error))?;
            serde_json::from_slice(&answer).map_err(|error| PeerError::Answer(address, error))
        };
        asked.await.unwrap_or_else(|error| Err(error_chain(&error)))
    }

    /// Where a node's agent can be asked.
    fn address(&self, node: &NodeId) -> Result<SocketAddr, PeerError> {
        let registration = self.cluster.registration(node);
        let address = registration.and_then(|registration| registration.logs?.parse().ok());
        address.ok_or(PeerError::NoAddress)
    }

    /// Sends a request, with a JSON body if it changes something; returns a reader of the answer's body.
    async fn request(
        &self,
        address: SocketAddr,
        path: &str,
        body: Option<&[u8]>,
    ) -> Result<BufReader<TlsStream<TcpStream>>, PeerError> {
        let timed_out = || io::Error::from(io::ErrorKind::TimedOut);
        let stream = timeout(LIMIT, TcpStream::connect(address))
            .await
            .unwrap_or_else(|_| Err(timed_out()))
            .map_err(|error| PeerError::Connect(address, error))?;
        let name = ServerName::IpAddress(address.ip().into());
        let connector = TlsConnector::from(self.config.current());
        let mut stream = timeout(LIMIT, connector.connect(name, stream))
            .await
            .unwrap_or_else(|_| Err(timed_out()))
            .map_err(|error| PeerError::Handshake(address, error))?;
        let exchange = async {
            // With HTTP/1.0 the answer has no chunks and ends with the connection.
            let (method, content) = match body {
                None => ("GET", String::new()),
                Some(body) => (
                    "POST",
                    format!(
                        "content-type: application/json\r\ncontent-length: {}\r\n",
                        body.len()
                    ),
                ),
            };
            let head = format!("{method} {path} HTTP/1.0\r\nhost: {address}\r\n{content}\r\n");
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(body.unwrap_or_default()).await?;
            stream.flush().await?;
            let mut reader = BufReader::new(stream);
            let status = read_head(&mut reader).await?;
            Ok::<_, io::Error>((status, reader))
        };
        let (status, reader) = timeout(LIMIT, exchange)
            .await
            .unwrap_or_else(|_| Err(timed_out()))
            .map_err(|error| PeerError::Connection(address, error))?;
        if status.split(' ').nth(1) == Some("200") {
            Ok(reader)
        } else {
            Err(PeerError::Refused(address, status))
        }
    }
}

/// Reads up to the empty line; returns the status line.
async fn read_head<R>(reader: &mut BufReader<R>) -> io::Result<String>
where
    R: tokio::io::AsyncRead + Unpin,
{
    let mut head = reader.take(MAX_HEAD_BYTES);
    let mut status = String::new();
    head.read_line(&mut status).await?;
    loop {
        let mut line = String::new();
        if head.read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if line.trim_end().is_empty() {
            return Ok(status.trim_end().to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_head_is_read_to_its_end_and_no_further() {
        let text = b"HTTP/1.0 200 OK\r\ncontent-type: x\r\n\r\n{\"a\":1}\n";
        let mut reader = BufReader::new(&text[..]);
        assert_eq!(read_head(&mut reader).await.unwrap(), "HTTP/1.0 200 OK");
        let mut rest = String::new();
        reader.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "{\"a\":1}\n");
    }

    #[tokio::test]
    async fn a_head_without_an_end_is_an_error() {
        let text = vec![b'a'; 1 << 20];
        let mut reader = BufReader::new(&text[..]);
        assert!(read_head(&mut reader).await.is_err());
    }
}
