//! Connecting a node's agent to a manager's: TCP, TLS, greeting, and why a connection ended. Used by the
//! client and the announcer.

use std::{io, net::SocketAddr, time::Duration};

use rustls_pki_types::ServerName;
use tokio::{
    io::{ReadHalf, WriteHalf},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    tls::{self, TlsError},
    wire::{self, FromManager, FromNode, OLDEST, Purpose, Reader, VERSION, WireError, Writer},
};
use crate::source::{NodeIdentity, Subject, SubjectError};

/// For connecting, for TLS, and for sending one message, each.
pub(super) const LIMIT: Duration = Duration::from_secs(3);
/// A manager that misses three heartbeats is abandoned.
pub(super) const SILENCE: Duration = Duration::from_millis(3 * wire::HEARTBEAT.as_millis() as u64 + 500);
/// A manager whose own snapshot is older is abandoned for another one; it may have lost its quorum.
pub(super) const STALE: Duration = Duration::from_secs(10);
/// A name in every manager's certificate.
const MANAGER: &str = "swarm-manager";

/// The reading half of a connection to a manager.
pub(super) type ManagerReader = Reader<ReadHalf<TlsStream<TcpStream>>>;
/// Its writing half.
pub(super) type ManagerWriter = Writer<WriteHalf<TlsStream<TcpStream>>>;

/// A connection on which the manager has greeted.
pub(super) struct Connection {
    pub(super) reader: ManagerReader,
    pub(super) writer: ManagerWriter,
    /// The version that the manager chose.
    pub(super) version: u32,
    /// The manager's clock at the greeting, in milliseconds since 1970; `None` from older agents.
    pub(super) clock: Option<u64>,
}

/// Why a connection to a manager ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Interruption {
    #[error("cannot connect; is the agent running there, and is the feed port open between the nodes?")]
    Connect(#[source] io::Error),
    #[error("the TLS handshake failed; is it a manager of this cluster?")]
    Handshake(#[source] io::Error),
    #[error("this node's credentials cannot be used")]
    Credentials(#[from] TlsError),
    #[error("its certificate is not a Swarm node's")]
    Subject(#[from] SubjectError),
    #[error("it is a manager of another cluster, '{0}'")]
    OtherCluster(String),
    #[error("it refuses this node: {0}")]
    Refused(String),
    #[error(
        "it speaks version {0} of the feed, this agent {OLDEST} to {VERSION}; run the same release on every \
         node, or the one before"
    )]
    Version(u32),
    #[error("it violates the feed's protocol: {0}")]
    Misbehaved(&'static str),
    #[error("its snapshot of the cluster is more than {STALE:?} old")]
    Stale,
    #[error("its snapshot of the cluster is older than the one in use")]
    Older,
    #[error("this node's certificate was renewed; connecting again with it")]
    Renewed,
    #[error("the feed ended")]
    Wire(#[from] WireError),
}

impl Interruption {
    /// Whether nothing accepts connections there: no agent runs, or nothing leads to it.
    pub(super) fn is_unreachable(&self) -> bool {
        let Self::Connect(error) = self else {
            return false;
        };
        matches!(
            error.kind(),
            io::ErrorKind::ConnectionRefused
                | io::ErrorKind::HostUnreachable
                | io::ErrorKind::NetworkUnreachable
                | io::ErrorKind::TimedOut
        )
    }
}

/// Connects to a manager and exchanges greetings.
pub(super) async fn dial(
    manager: SocketAddr,
    identity: &NodeIdentity,
    purpose: Purpose,
) -> Result<Connection, Interruption> {
    let (reader, writer) = tokio::io::split(connect(manager, identity).await?);
    let mut reader = Reader::new(reader, wire::MAX_FROM_MANAGER);
    let mut writer = Writer::new(writer, wire::MAX_FROM_NODE);
    let hello = FromNode::Hello {
        version: OLDEST,
        newest: VERSION,
        purpose,
        takes_requests: purpose == Purpose::Announce,
        takes_reads: purpose == Purpose::Announce,
    };
    writer.send(&hello, LIMIT).await?;
    match reader.next_within(SILENCE).await? {
        FromManager::Hello {
            version: version @ OLDEST..=VERSION,
            clock,
        } => Ok(Connection {
            reader,
            writer,
            version,
            clock,
        }),
        FromManager::Hello { version, .. } => Err(Interruption::Version(version)),
        FromManager::Refused { reason } => Err(Interruption::Refused(reason)),
        FromManager::Full { .. }
        | FromManager::Delta { .. }
        | FromManager::Heartbeat { .. }
        | FromManager::Acknowledged { .. }
        | FromManager::Drain { .. }
        | FromManager::Read { .. } => Err(Interruption::Misbehaved("no greeting")),
    }
}

async fn connect(manager: SocketAddr, identity: &NodeIdentity) -> Result<TlsStream<TcpStream>, Interruption> {
    let config = tls::client(identity)?;
    let stream = timeout(LIMIT, TcpStream::connect(manager))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(Interruption::Connect)?;
    // Hints are small and urgent; without this they are merely slower.
    let _ = stream.set_nodelay(true);
    let name = ServerName::try_from(MANAGER).map_err(|_| Interruption::Misbehaved("its name"))?;
    let stream = timeout(LIMIT, TlsConnector::from(config).connect(name, stream))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(Interruption::Handshake)?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let subject = Subject::of(certificate.ok_or(SubjectError::Malformed)?)?;
    if subject.cluster_id != identity.subject.cluster_id {
        return Err(Interruption::OtherCluster(subject.cluster_id));
    }
    Ok(stream)
}
