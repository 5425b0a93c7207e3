//! One request to another agent over mutual TLS, and a reader of its answer. Imports `tls`.

use std::{io, sync::Arc, time::Duration};

use rustls::AlertDescription;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::tls::{Client, Peer};

/// The longest head of an answer.
const MAX_HEAD_BYTES: u64 = 16 << 10;

/// Reads an answer's body.
pub(super) type Body = BufReader<TlsStream<TcpStream>>;

/// Another agent did not answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExchangeError {
    #[error("cannot connect to {0}; is the feed port open between the nodes?")]
    Connect(String, #[source] io::Error),
    #[error(
        "the TLS handshake with {0} failed; is its certificate from the same authority, and valid for servers?"
    )]
    Handshake(String, #[source] io::Error),
    #[error("the agent at {0} has the certificate of another node than {1}")]
    Name(String, String),
    #[error(
        "{0} does not take this node's certificate: is it valid now, also for clients, and of an authority that the \
         agent there knows (--agents-ca, or --workers-ca for workers)?"
    )]
    Certificate(String, #[source] io::Error),
    #[error("the connection to {0} failed")]
    Connection(String, #[source] io::Error),
    #[error("{0} answered '{1}'; is its agent of an earlier release?")]
    Refused(String, String),
}

impl ExchangeError {
    /// Whether the other agent may have got the request.
    pub(super) fn is_sent(&self) -> bool {
        matches!(self, Self::Connection(..) | Self::Refused(..))
    }

    /// A failure after the handshake: with TLS 1.3 the other side looks at this node's certificate only then.
    fn after_handshake(address: &str, error: io::Error) -> Self {
        match is_certificate_refused(&error) {
            true => Self::Certificate(address.to_owned(), error),
            false => Self::Connection(address.to_owned(), error),
        }
    }
}

/// Whether the other side ended the connection because of this side's certificate, and so read nothing.
fn is_certificate_refused(error: &io::Error) -> bool {
    let source = error.get_ref().and_then(|source| source.downcast_ref());
    matches!(
        source,
        Some(rustls::Error::AlertReceived(
            AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateUnknown
                | AlertDescription::CertificateRequired
                | AlertDescription::UnknownCA
        ))
    )
}

/// Sends a request to `host:port`, with a JSON body if it changes something. `limit` is the time of each
/// step: connecting, the handshake, and the head of the answer. A worker must have the name `worker`; without
/// one, it must be an agent with access to the store.
pub(super) async fn exchange(
    client: &Client,
    address: &str,
    worker: Option<&str>,
    path: &str,
    body: Option<&[u8]>,
    limit: Duration,
) -> Result<Body, ExchangeError> {
    let timed_out = || io::Error::from(io::ErrorKind::TimedOut);
    let connect_failed = |error| ExchangeError::Connect(address.to_owned(), error);
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
        .map_err(|error| connect_failed(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
    let stream = timeout(limit, TcpStream::connect(address))
        .await
        .unwrap_or_else(|_| Err(timed_out()))
        .map_err(connect_failed)?;
    let connector = TlsConnector::from(Arc::clone(&client.config));
    let mut stream = timeout(limit, connector.connect(name.clone(), stream))
        .await
        .unwrap_or_else(|_| Err(timed_out()))
        .map_err(|error| ExchangeError::Handshake(address.to_owned(), error))?;
    let wanted = worker.map_or(Peer::Agent, |worker| Peer::Worker(worker.to_owned()));
    if client.peer(&name, stream.get_ref().1.peer_certificates()) != Some(wanted) {
        let wanted = worker.unwrap_or("a manager").to_owned();
        return Err(ExchangeError::Name(address.to_owned(), wanted));
    }
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
        let sent = async {
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(body.unwrap_or_default()).await?;
            stream.flush().await
        }
        .await;
        let mut reader = BufReader::new(stream);
        let answered = read_head(&mut reader).await;
        match (sent, answered) {
            // A side that ends the connection before it has read everything says first why.
            (_, Ok(status)) => Ok((status, reader)),
            (Err(error), Err(answered)) if !is_certificate_refused(&answered) => Err(error),
            (_, Err(error)) => Err(error),
        }
    };
    let (status, reader) = timeout(limit, exchange)
        .await
        .unwrap_or_else(|_| Err(timed_out()))
        .map_err(|error| ExchangeError::after_handshake(address, error))?;
    if status.split(' ').nth(1) == Some("200") {
        Ok(reader)
    } else {
        Err(ExchangeError::Refused(address.to_owned(), status))
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
