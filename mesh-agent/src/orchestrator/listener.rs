//! Accepts TLS connections for the orchestrator's API and other agents. Imports `certificates` and `tls`.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::Router;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{
    certificates::Followed,
    tls::{Peer, Server, TlsError},
};
use crate::serve::{Handshake, Limits, serve};

/// The limits of the API's port: many programs may be behind one address.
pub(super) const API: Limits = Limits {
    connections: 1_024,
    per_address: 128,
    handshake: Duration::from_secs(5),
    head: Duration::from_secs(30),
};
/// The limits of the port for agents: each node has a handful of connections, also while all connect anew.
pub(super) const AGENTS: Limits = Limits {
    connections: 8_192,
    per_address: 256,
    ..API
};
/// Open connections of one worker; further ones are closed.
const OF_A_WORKER: usize = 16;

/// An open port, which [`TlsListener::serve`] serves.
#[derive(Debug)]
pub(super) struct TlsListener {
    listener: TcpListener,
    tls: Tls,
}

/// The handshake, after which the client is known.
#[derive(Clone, Debug)]
struct Tls {
    server: Followed<Server>,
    open: Open,
}

impl TlsListener {
    /// Opens the port. Call it inside a tokio runtime.
    pub(super) async fn bind(address: SocketAddr, server: Followed<Server>) -> Result<Self, TlsError> {
        let failed = |source| TlsError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let open = Open::default();
        Ok(Self {
            listener,
            tls: Tls { server, open },
        })
    }

    /// Where it listens.
    #[cfg(test)]
    pub(super) fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    /// Serves the port, for ever.
    pub(super) async fn serve(self, limits: Limits, router: Router) {
        serve(self.listener, limits, self.tls, router).await;
    }
}

impl Handshake for Tls {
    type Io = TlsStream<TcpStream>;
    type Client = Peer;
    type Guard = Option<Counted>;

    async fn shake(&self, stream: TcpStream) -> io::Result<(Self::Io, Peer, Option<Counted>)> {
        let server = self.server.current();
        let acceptor = TlsAcceptor::from(Arc::clone(&server.config));
        let stream = acceptor.accept(stream).await?;
        let peer = server.peer(stream.get_ref().1.peer_certificates());
        let peer = peer.ok_or_else(|| io::Error::other("the client's certificate names no node"))?;
        let counted = match &peer {
            Peer::Worker(name) => {
                let counted = Counted::new(&self.open, name);
                Some(counted.ok_or_else(|| io::Error::other("the worker has too many connections"))?)
            }
            Peer::Anyone | Peer::Agent => None,
        };
        Ok((stream, peer, counted))
    }
}

/// How many connections each worker has open.
type Open = Arc<Mutex<BTreeMap<String, usize>>>;

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
