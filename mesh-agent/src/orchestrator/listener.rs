//! Accepts TLS connections for the orchestrator's API. Imports `certificates` and `tls`.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::{extract::connect_info::Connected, serve::IncomingStream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tracing::debug;

use super::{
    certificates::Followed,
    tls::{Peer, Server, TlsError},
};

/// How long a client's handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Concurrent handshakes; further clients wait.
const HANDSHAKES: usize = 64;
/// Pause after a failed accept, which usually means that file descriptors ran out.
const PAUSE: Duration = Duration::from_millis(100);
/// Open connections of one worker; further ones are closed.
const OF_A_WORKER: usize = 16;

/// Accepts connections and yields them after their handshake, so that a slow client delays no other.
#[derive(Debug)]
pub(super) struct TlsListener {
    address: SocketAddr,
    accepted: mpsc::Receiver<(Connection, SocketAddr)>,
}

impl TlsListener {
    /// Opens the port. Call it inside a tokio runtime.
    pub(super) async fn bind(address: SocketAddr, server: Followed<Server>) -> Result<Self, TlsError> {
        let failed = |source| TlsError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (into, accepted) = mpsc::channel(HANDSHAKES);
        tokio::spawn(accept(listener, server, into));
        Ok(Self { address, accepted })
    }
}

async fn accept(
    listener: TcpListener,
    server: Followed<Server>,
    into: mpsc::Sender<(Connection, SocketAddr)>,
) {
    let room = Arc::new(Semaphore::new(HANDSHAKES));
    let open = Arc::new(Mutex::new(BTreeMap::new()));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = into.closed() => return,
        };
        let Ok((stream, peer)) = accepted else {
            sleep(PAUSE).await;
            continue;
        };
        let (server, into, open) = (server.current(), into.clone(), Arc::clone(&open));
        tokio::spawn(async move {
            let acceptor = TlsAcceptor::from(Arc::clone(&server.config));
            match timeout(HANDSHAKE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => match Connection::new(stream, &server, &open) {
                    Some(connection) => drop(into.send((connection, peer)).await),
                    None => {
                        debug!(%peer, "a client's certificate names no node, or it has too many connections");
                    }
                },
                Ok(Err(error)) => debug!(%peer, %error, "a client's TLS handshake failed"),
                Err(_) => debug!(%peer, "a client's TLS handshake timed out"),
            }
            drop(permit);
        });
    }
}

impl axum::serve::Listener for TlsListener {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.accepted.recv().await {
            Some(accepted) => accepted,
            // The accepting task ends only with the runtime.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Ok(self.address)
    }
}

/// How many connections each worker has open.
type Open = Arc<Mutex<BTreeMap<String, usize>>>;

/// A connection after its handshake.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    _counted: Option<Counted>,
}

impl Connection {
    fn new(stream: TlsStream<TcpStream>, server: &Server, open: &Open) -> Option<Self> {
        let peer = server.peer(stream.get_ref().1.peer_certificates())?;
        let counted = match &peer {
            Peer::Worker(name) => Some(Counted::new(open, name)?),
            Peer::Anyone | Peer::Agent => None,
        };
        Some(Self {
            stream,
            peer,
            _counted: counted,
        })
    }
}

/// One of a worker's connections, as long as it is open.
#[derive(Debug)]
struct Counted {
    open: Open,
    name: String,
}

impl Counted {
    fn new(open: &Open, name: &str) -> Option<Self> {
        let mut all = open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = all.entry(name.to_owned()).or_default();
        if *count >= OF_A_WORKER {
            return None;
        }
        *count += 1;
        Some(Self {
            open: Arc::clone(open),
            name: name.to_owned(),
        })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut all = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.name);
            }
        }
    }
}

impl Connected<IncomingStream<'_, TlsListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, TlsListener>) -> Self {
        stream.io().peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_has_a_limited_number_of_connections() {
        let open = Open::default();
        let mut held: Vec<_> = (0..OF_A_WORKER)
            .map(|_| Counted::new(&open, "a").unwrap())
            .collect();
        assert!(Counted::new(&open, "a").is_none());
        assert!(Counted::new(&open, "b").is_some());
        held.pop();
        assert!(Counted::new(&open, "a").is_some());
        drop(held);
        assert!(open.lock().unwrap().is_empty());
    }
}
