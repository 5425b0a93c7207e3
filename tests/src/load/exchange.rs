//! One request of the load: by HTTP, or as a datagram where the address begins with `udp:`. Depends on
//! `client`.

use std::{
    future::poll_fn,
    io::ErrorKind,
    net::SocketAddr,
    ops::Range,
    os::fd::AsFd,
    pin::pin,
    sync::{
        LazyLock, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    task::Poll,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use hyper::{Uri, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

use crate::{
    client::{RequestBody, body, empty, request, send, target, unspecified},
    server::Hello,
};

/// The largest datagram of the test server's answers.
const LARGEST: usize = 2048;

/// The ports that sockets get, one after the other; and how many a load may use up in a second, so that the
/// next load begins behind them.
const PORTS: Range<u16> = 32_768..60_999;
const MOST_A_SECOND: u64 = 200;

/// What stays open between requests.
pub(super) enum Connection {
    Http(http1::SendRequest<RequestBody>),
    /// A socket whose port stays the same: to the mesh, that is a flow.
    Datagrams(UdpSocket),
}

impl Connection {
    /// `own` receives its own address, also where no one answers.
    pub(super) async fn open(url: &Uri, own: &OnceLock<SocketAddr>) -> Result<Self> {
        if is_udp(url) {
            return Ok(Self::Datagrams(socket(url, own).await?));
        }
        let stream = dial_noting(target(url)?, own).await?;
        let (opened, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self::Http(opened))
    }

    /// Asks once; returns the task that answered.
    pub(super) async fn ask(&mut self, url: &Uri) -> Result<String> {
        match self {
            Self::Datagrams(socket) => datagram(socket).await,
            Self::Http(sender) => {
                let mut request = request("GET", url, empty())?;
                request.headers_mut().remove("connection");
                sender.ready().await.context("the connection was closed")?;
                let response = sender.send_request(request).await;
                task(&body(response.context("the request was not answered")?).await?)
            }
        }
    }
}

/// Asks on a connection of its own; returns the task that answered. `own` as in [`Connection::open`].
pub(super) async fn ask_once(url: &Uri, own: &OnceLock<SocketAddr>) -> Result<String> {
    if is_udp(url) {
        return datagram(&socket(url, own).await?).await;
    }
    let stream = dial_noting(target(url)?, own).await?;
    let response = send(stream, request("GET", url, empty())?).await?;
    task(&body(response).await?)
}

/// Connects, and notes the connection's own address before it is known whether it succeeds.
async fn dial_noting(address: SocketAddr, own: &OnceLock<SocketAddr>) -> Result<TcpStream> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }
    .context("no socket")?;
    let twin = socket.as_fd().try_clone_to_owned().context("no socket")?;
    let mut connecting = pin!(socket.connect(address));
    // Polled once, it has sent the SYN, and the socket has its address.
    let first = poll_fn(|context| Poll::Ready(connecting.as_mut().poll(context))).await;
    note(own, std::net::TcpStream::from(twin).local_addr());
    let connected = match first {
        Poll::Ready(connected) => connected,
        Poll::Pending => connecting.await,
    };
    connected.with_context(|| format!("could not connect to {address}"))
}

fn note(own: &OnceLock<SocketAddr>, address: std::io::Result<SocketAddr>) {
    if let Ok(address) = address {
        own.get_or_init(|| address);
    }
}

fn is_udp(url: &Uri) -> bool {
    url.scheme_str() == Some("udp")
}

/// A socket with a port that no load has had for minutes: to the mesh, a port that comes again is the same
/// flow, which stays with its replica.
async fn socket(url: &Uri, own: &OnceLock<SocketAddr>) -> Result<UdpSocket> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    static BEGIN: LazyLock<u64> = LazyLock::new(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        now.as_secs() * MOST_A_SECOND
    });
    let address = target(url)?;
    let socket = loop {
        let turn = *BEGIN + COUNT.fetch_add(1, Ordering::Relaxed);
        let range = u64::from(PORTS.end - PORTS.start);
        let port = PORTS.start + u16::try_from(turn % range).unwrap_or_default();
        match UdpSocket::bind((unspecified(address), port)).await {
            Ok(socket) => break socket,
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(error) => return Err(error).context("could not bind"),
        }
    };
    socket.connect(address).await.context("could not connect")?;
    note(own, socket.local_addr());
    Ok(socket)
}

async fn datagram(socket: &UdpSocket) -> Result<String> {
    socket.send(b"who is there?").await.context("could not send")?;
    let mut buffer = [0; LARGEST];
    let length = socket.recv(&mut buffer).await.context("could not receive")?;
    task(buffer.get(..length).unwrap_or_default())
}

fn task(body: &[u8]) -> Result<String> {
    let hello: Hello = serde_json::from_slice(body).context("the answer is not the test server's")?;
    if hello.task.is_empty() {
        bail!("the task that answered has no name");
    }
    Ok(hello.task)
}
