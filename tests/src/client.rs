//! The client: each request on a new connection, its outcome as one line of JSON. Depends on `pattern` and on
//! `server`'s answers.

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{Request, Response, Uri, body::Frame, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::{
    net::{TcpSocket, TcpStream, UdpSocket},
    time::timeout,
};

use crate::{
    pattern,
    server::{Hello, Received, hexadecimal},
};

/// The outcome of one request, one line of JSON.
#[derive(Debug, Default, Serialize)]
pub struct Reply {
    /// The task that answered; empty if none did.
    pub task: String,
    /// The client's address as the replica saw it.
    pub peer: String,
    /// The client's address as it knows it.
    pub local: String,
    /// How long it took, in milliseconds.
    pub millis: f64,
    /// `answered`, `refused`, `reset`, `timeout` or `error`.
    pub outcome: &'static str,
    /// The error, if there was one.
    pub error: String,
}

/// How requests are sent.
#[derive(Clone, Copy, Debug)]
pub struct RequestOptions {
    /// How long one may take in all.
    pub timeout: Duration,
    /// The first request's source port; each further one is one higher. 0: any port.
    pub source_port: u16,
    /// The pause between two requests.
    pub pause: Duration,
}

/// Sends `count` `GET` requests and prints one line for each.
///
/// # Errors
/// When a reply cannot be written.
pub async fn get(url: &Uri, count: u32, options: RequestOptions) -> Result<()> {
    for index in 0..count {
        let port = if options.source_port == 0 {
            0
        } else {
            options.source_port.wrapping_add(index as u16)
        };
        let begin = Instant::now();
        let mut reply = Reply::default();
        let outcome = timeout(options.timeout, hello(url, port, &mut reply)).await;
        finish(reply, begin, outcome)?;
        tokio::time::sleep(options.pause).await;
    }
    Ok(())
}

async fn hello(url: &Uri, source_port: u16, reply: &mut Reply) -> Result<()> {
    let stream = dial(target(url)?, source_port).await?;
    reply.local = stream
        .local_addr()
        .context("the socket has no address")?
        .to_string();
    let response = send(stream, request("GET", url, empty())?).await?;
    let hello: Hello =
        serde_json::from_slice(&body(response).await?).context("the answer is not the test server's")?;
    (reply.task, reply.peer) = (hello.task, hello.peer);
    Ok(())
}

/// Sends one `GET` request and returns the body as it is.
///
/// # Errors
/// When it fails.
pub async fn get_raw(url: &Uri, options: RequestOptions) -> Result<Bytes> {
    let fetch = async {
        let stream = dial(target(url)?, options.source_port).await?;
        let response = send(stream, request("GET", url, empty())?).await?;
        body(response).await
    };
    timeout(options.timeout, fetch).await.context("timed out")?
}

/// Connects once and prints one line.
///
/// # Errors
/// When the reply cannot be written.
pub async fn connect(address: SocketAddr, options: RequestOptions) -> Result<()> {
    let begin = Instant::now();
    let mut reply = Reply::default();
    let attempt = async {
        let stream = dial(address, options.source_port).await?;
        reply.local = stream
            .local_addr()
            .context("the socket has no address")?
            .to_string();
        Ok(())
    };
    let outcome = timeout(options.timeout, attempt).await;
    finish(reply, begin, outcome)
}

/// Sends `count` datagrams, each from a socket of its own, and prints one line for each.
///
/// # Errors
/// When a reply cannot be written.
pub async fn udp(address: SocketAddr, count: u32, size: usize, options: RequestOptions) -> Result<()> {
    // Kept open, so that the kernel gives no port twice: to the mesh, a port that comes again is the same
    // flow.
    let mut sockets = Vec::new();
    for _ in 0..count {
        let begin = Instant::now();
        let mut reply = Reply::default();
        let exchange = async {
            let socket = UdpSocket::bind((unspecified(address), options.source_port))
                .await
                .context("could not bind")?;
            socket.connect(address).await.context("could not connect")?;
            reply.local = socket
                .local_addr()
                .context("the socket has no address")?
                .to_string();
            socket.send(&vec![b'x'; size]).await.context("could not send")?;
            let mut buffer = vec![0; 65_536];
            let count = socket.recv(&mut buffer).await.context("could not receive")?;
            let hello: Hello =
                serde_json::from_slice(&buffer[..count]).context("not the test server's answer")?;
            (reply.task, reply.peer) = (hello.task, hello.peer);
            if options.source_port == 0 {
                sockets.push(socket);
            }
            Ok(())
        };
        let outcome = timeout(options.timeout, exchange).await;
        finish(reply, begin, outcome)?;
        tokio::time::sleep(options.pause).await;
    }
    Ok(())
}

pub(crate) fn unspecified(like: SocketAddr) -> &'static str {
    if like.is_ipv4() { "0.0.0.0" } else { "::" }
}

/// Uploads the pattern and compares its hash with that of what arrived.
///
/// # Errors
/// When it fails, or the hashes differ.
pub async fn upload(url: &Uri, bytes: u64, options: RequestOptions) -> Result<Received> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    let mut offset = 0;
    while offset < bytes {
        let count = (bytes - offset).min(buffer.len() as u64) as usize;
        pattern::fill(&mut buffer[..count], offset);
        hash.update(&buffer[..count]);
        offset += count as u64;
    }
    let pieces = stream::unfold(0, move |offset: u64| async move {
        let count = (bytes - offset).min(64 * 1024);
        if count == 0 {
            return None;
        }
        let mut piece = vec![0; count as usize];
        pattern::fill(&mut piece, offset);
        Some((
            Ok::<_, io::Error>(Frame::data(Bytes::from(piece))),
            offset + count,
        ))
    });
    let transfer = async {
        let stream = dial(target(url)?, options.source_port).await?;
        let response = send(
            stream,
            request("POST", url, BodyExt::boxed(StreamBody::new(pieces)))?,
        )
        .await?;
        serde_json::from_slice::<Received>(&body(response).await?)
            .context("the answer is not the test server's")
    };
    let received = timeout(options.timeout, transfer)
        .await
        .context("the upload timed out")??;
    let sent = hexadecimal(&hash.finalize());
    if received.bytes != bytes || received.sha256 != sent {
        bail!(
            "{bytes} bytes with hash {sent} were sent, and {} with hash {} arrived",
            received.bytes,
            received.sha256
        );
    }
    Ok(received)
}

/// Downloads the pattern and compares every byte.
///
/// # Errors
/// When it fails, or a byte is wrong or missing. Returns the task that answered.
pub async fn download(url: &Uri, bytes: u64, options: RequestOptions) -> Result<String> {
    let transfer = async {
        let stream = dial(target(url)?, options.source_port).await?;
        let response = send(stream, request("GET", url, empty())?).await?;
        let task = response
            .headers()
            .get("x-task")
            .and_then(|task| task.to_str().ok())
            .unwrap_or("?")
            .to_owned();
        let mut body = response.into_body();
        let mut offset = 0;
        while let Some(frame) = body.frame().await {
            let frame = frame.with_context(|| format!("the download ended after {offset} bytes"))?;
            if let Some(data) = frame.data_ref() {
                if let Some(wrong) = pattern::first_difference(data, offset) {
                    bail!("the byte at offset {wrong} is wrong");
                }
                offset += data.len() as u64;
            }
        }
        if offset != bytes {
            bail!("{offset} bytes arrived instead of {bytes}");
        }
        Ok(task)
    };
    timeout(options.timeout, transfer)
        .await
        .context("the download timed out")?
}

fn finish(
    mut reply: Reply,
    begin: Instant,
    outcome: Result<Result<()>, tokio::time::error::Elapsed>,
) -> Result<()> {
    reply.millis = begin.elapsed().as_secs_f64() * 1000.0;
    match outcome {
        Ok(Ok(())) => reply.outcome = "answered",
        Ok(Err(error)) => {
            reply.outcome = outcome_of(&error);
            reply.error = format!("{error:#}");
        }
        Err(_) => reply.outcome = "timeout",
    }
    println!(
        "{}",
        serde_json::to_string(&reply).context("the reply cannot be written as JSON")?
    );
    Ok(())
}

/// The kind of a failure: `refused`, `reset`, `timeout` or `error`.
pub(crate) fn outcome_of(error: &anyhow::Error) -> &'static str {
    let mut causes = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>());
    match causes.next().map(io::Error::kind) {
        Some(ErrorKind::ConnectionRefused) => "refused",
        Some(ErrorKind::ConnectionReset) => "reset",
        Some(ErrorKind::TimedOut) => "timeout",
        _ => "error",
    }
}

pub(crate) fn target(url: &Uri) -> Result<SocketAddr> {
    let host = url.host().context("the address names no host")?;
    let host = if host == "localhost" {
        "127.0.0.1"
    } else {
        host.trim_matches(['[', ']'])
    };
    let address = host
        .parse()
        .with_context(|| format!("`{host}` is no IP address"))?;
    Ok(SocketAddr::new(address, url.port_u16().unwrap_or(80)))
}

pub(crate) async fn dial(address: SocketAddr, source_port: u16) -> Result<TcpStream> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }
    .context("no socket")?;
    if source_port != 0 {
        socket
            .set_reuseaddr(true)
            .context("could not share the source port")?;
        let local = if address.is_ipv4() {
            [0, 0, 0, 0].into()
        } else {
            std::net::Ipv6Addr::UNSPECIFIED.into()
        };
        socket
            .bind(SocketAddr::new(local, source_port))
            .context("could not bind the source port")?;
    }
    socket
        .connect(address)
        .await
        .with_context(|| format!("could not connect to {address}"))
}

pub(crate) type RequestBody = BoxBody<Bytes, io::Error>;

pub(crate) fn empty() -> RequestBody {
    Full::new(Bytes::new()).map_err(|never| match never {}).boxed()
}

pub(crate) fn request(method: &str, url: &Uri, body: RequestBody) -> Result<Request<RequestBody>> {
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    Request::builder()
        .method(method)
        .uri(path)
        .header("host", url.authority().map_or("", |authority| authority.as_str()))
        .header("connection", "close")
        .body(body)
        .context("the request is malformed")
}

/// The whole body of an answer.
pub(crate) async fn body(response: Response<Incoming>) -> Result<Bytes> {
    let collected = response.into_body().collect().await;
    Ok(collected.context("the answer is incomplete")?.to_bytes())
}

pub(crate) async fn send(stream: TcpStream, request: Request<RequestBody>) -> Result<Response<Incoming>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.context("no HTTP")?;
    tokio::spawn(connection);
    let response = sender
        .send_request(request)
        .await
        .context("the request was not answered")?;
    if !response.status().is_success() {
        bail!("the server answered {}", response.status());
    }
    Ok(response)
}
