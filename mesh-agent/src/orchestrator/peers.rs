//! Requests the logs of other nodes' tasks from their agents, over mutual TLS.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::{StreamExt, stream::BoxStream};
use mesh_orchestrator::{
    api::{LogOptions, LogTarget, LogsError, Peers, types::LogLine},
    cluster::Cluster,
    objects::Node,
};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::codec::{FramedRead, LinesCodec};

/// Timeout of each step: connecting, the handshake, and the head of the answer.
const LIMIT: Duration = Duration::from_secs(5);
/// The longest head of an answer.
const MAX_HEAD_BYTES: u64 = 16 << 10;
/// Agents cut lines of output at 64 KiB; escaped as JSON they may be six times as long.
const MAX_LINE_BYTES: usize = 512 << 10;

/// The other nodes' agents.
#[derive(Debug)]
pub(super) struct TlsPeers {
    pub(super) cluster: Cluster,
    pub(super) config: Arc<ClientConfig>,
}

/// Another agent did not answer.
#[derive(Debug, thiserror::Error)]
enum PeerError {
    #[error("its agent is not registered, or does not serve logs")]
    NoAddress,
    #[error("cannot connect to {0}; is the feed port open between the nodes?")]
    Connect(SocketAddr, #[source] io::Error),
    #[error(
        "the TLS handshake with {0} failed; is its certificate from the same authority, and valid for servers?"
    )]
    Handshake(SocketAddr, #[source] io::Error),
    #[error("the connection to {0} failed")]
    Connection(SocketAddr, #[source] io::Error),
    #[error("{0} answered '{1}'")]
    Refused(SocketAddr, String),
}

/// Agents without certificates cannot request each other's logs.
#[derive(Debug)]
pub(super) struct NoPeers;

/// Another node's logs are not available from here.
#[derive(Debug, thiserror::Error)]
#[error(
    "agents read each other's logs only with certificates (--etcd-ca, --etcd-certificate, --etcd-key): run the \
     command on that node"
)]
struct NoCertificates;

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
        let registration = self.cluster.registration(&node.id);
        let address = registration.and_then(|registration| registration.logs?.parse().ok());
        let Some(address) = address else {
            return Err(failed(node, PeerError::NoAddress));
        };
        let stream = self
            .request(address, &target.local_path(options))
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
    /// Sends a request; returns a reader of the answer's body.
    async fn request(
        &self,
        address: SocketAddr,
        path: &str,
    ) -> Result<BufReader<TlsStream<TcpStream>>, PeerError> {
        let timed_out = || io::Error::from(io::ErrorKind::TimedOut);
        let stream = timeout(LIMIT, TcpStream::connect(address))
            .await
            .unwrap_or_else(|_| Err(timed_out()))
            .map_err(|error| PeerError::Connect(address, error))?;
        let name = ServerName::IpAddress(address.ip().into());
        let connector = TlsConnector::from(Arc::clone(&self.config));
        let mut stream = timeout(LIMIT, connector.connect(name, stream))
            .await
            .unwrap_or_else(|_| Err(timed_out()))
            .map_err(|error| PeerError::Handshake(address, error))?;
        let exchange = async {
            // With HTTP/1.0 the answer has no chunks and ends with the connection.
            let request = format!("GET {path} HTTP/1.0\r\nhost: {address}\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
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
