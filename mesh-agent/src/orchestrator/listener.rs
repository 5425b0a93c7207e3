//! Accepts TLS connections for the orchestrator's API. Imports `certificates` and `tls`.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tracing::debug;

use super::{certificates::Followed, tls::TlsError};

/// How long a client's handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Concurrent handshakes; further clients wait.
const HANDSHAKES: usize = 64;
/// Pause after a failed accept, which usually means that file descriptors ran out.
const PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections and yields them after their handshake, so that a slow client delays no other.
#[derive(Debug)]
pub(super) struct TlsListener {
    address: SocketAddr,
    accepted: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
}

impl TlsListener {
    /// Opens the port. Call it inside a tokio runtime.
    pub(super) async fn bind(address: SocketAddr, config: Followed<ServerConfig>) -> Result<Self, TlsError> {
        let failed = |source| TlsError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (into, accepted) = mpsc::channel(HANDSHAKES);
        tokio::spawn(accept(listener, config, into));
        Ok(Self { address, accepted })
    }
}

async fn accept(
    listener: TcpListener,
    config: Followed<ServerConfig>,
    into: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>,
) {
    let room = Arc::new(Semaphore::new(HANDSHAKES));
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
        let (acceptor, into) = (TlsAcceptor::from(config.current()), into.clone());
        tokio::spawn(async move {
            match timeout(HANDSHAKE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => drop(into.send((stream, peer)).await),
                Ok(Err(error)) => debug!(%peer, %error, "a client's TLS handshake failed"),
                Err(_) => debug!(%peer, "a client's TLS handshake timed out"),
            }
            drop(permit);
        });
    }
}

impl axum::serve::Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
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
