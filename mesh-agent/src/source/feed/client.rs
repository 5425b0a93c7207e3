//! The worker's end of the feed: follows one manager, and another one when that falls silent or no
//! longer knows better itself. When all are away the last picture stays in force.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls_pki_types::ServerName;
use tokio::{
    net::TcpStream,
    sync::watch,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    tls::{self, TlsError},
    wire::{self, FromManager, FromWorker, Reader, VERSION, WireError, Writer},
};
use crate::source::{Backoff, HintHandle, NodeIdentity, SourceState, Subject, SubjectError, describe};

/// For connecting, for TLS, and for sending one message, each.
const LIMIT: Duration = Duration::from_secs(3);
/// A manager that misses three heartbeats is left.
const SILENCE: Duration = Duration::from_millis(3 * wire::HEARTBEAT.as_millis() as u64 + 500);
/// A manager whose own picture is older is left for another one (it may have lost its quorum).
const STALE: Duration = Duration::from_secs(10);
/// The least time between two hints.
const HINT_GAP: Duration = Duration::from_millis(60);
/// One of the names in every manager's certificate.
const MANAGER: &str = "swarm-manager";

/// What a feed client needs.
#[derive(Clone, Debug)]
pub struct FeedClientOptions {
    /// The managers' feed addresses (`docker info`'s RemoteManagers with the feed port), as they change.
    pub managers: watch::Receiver<Vec<SocketAddr>>,
    /// This node's credentials, as they are renewed.
    pub identity: watch::Receiver<Arc<NodeIdentity>>,
}

/// Follows a manager's feed, and another one when that falls silent.
#[derive(Debug)]
pub struct FeedClient {
    options: FeedClientOptions,
    state: watch::Sender<SourceState>,
    hint: HintHandle,
}

/// Why a manager is no longer followed.
#[derive(Debug, thiserror::Error)]
enum Interruption {
    #[error("cannot connect; is the agent running there, and is the feed port open between the nodes?")]
    Connect(#[source] io::Error),
    #[error("the TLS handshake failed; is it a manager of this cluster?")]
    Handshake(#[source] io::Error),
    #[error("this node's credentials cannot be used")]
    Credentials(#[from] TlsError),
    #[error("its certificate is not of a Swarm node")]
    Subject(#[from] SubjectError),
    #[error("it is a manager of another cluster, '{0}'")]
    OtherCluster(String),
    #[error("it refuses this node: {0}")]
    Refused(String),
    #[error("it speaks version {0} of the feed, this agent {VERSION}; run the same release on every node")]
    Version(u32),
    #[error("it does not keep to the feed's rules: {0}")]
    Misbehaved(&'static str),
    #[error("its picture of the cluster is more than {STALE:?} old")]
    Stale,
    #[error("this node's certificate was renewed; connecting again with it")]
    Renewed,
    #[error("the feed ended")]
    Wire(#[from] WireError),
}

impl FeedClient {
    /// A client; nothing happens before [`FeedClient::run`]. Hints given to the handle are sent to the
    /// manager.
    #[must_use]
    pub fn new(options: FeedClientOptions) -> (Self, watch::Receiver<SourceState>, HintHandle) {
        let (state, receiver) = watch::channel(SourceState::default());
        let hint = HintHandle::new();
        let client = Self {
            options,
            state,
            hint: hint.clone(),
        };
        (client, receiver, hint)
    }

    /// Follows the managers until cancelled; survives every failure, the last picture stays in force.
    pub async fn run(mut self, shutdown: CancellationToken) {
        shutdown.run_until_cancelled(self.follow_managers()).await;
    }

    async fn follow_managers(&mut self) {
        let mut backoff = Backoff::default();
        // Workers spread over the managers.
        let mut turn = fastrand::usize(..1 << 16);
        loop {
            let managers = self.options.managers.borrow_and_update().clone();
            let wait = if managers.is_empty() {
                self.set_trouble("no manager is known; is this node in a Swarm (docker info)?".to_owned());
                LIMIT
            } else {
                let manager = managers[turn % managers.len()];
                turn = turn.wrapping_add(1);
                let interruption = match self.follow(manager, managers.len() > 1, &mut backoff).await {
                    Ok(never) => match never {},
                    Err(interruption) => interruption,
                };
                if matches!(interruption, Interruption::Renewed) {
                    // Nothing is wrong with this manager.
                    turn = turn.wrapping_sub(1);
                    info!(%manager, "connecting again with the renewed node certificate");
                } else {
                    let trouble = describe(&interruption);
                    warn!(%manager, trouble, "manager left; the last picture stays in force");
                    self.set_trouble(format!("manager {manager}: {trouble}"));
                }
                backoff.next()
            };
            tokio::select! {
                () = sleep(wait) => {}
                Ok(()) = self.options.managers.changed() => {}
            }
        }
    }

    fn set_trouble(&self, trouble: String) {
        self.state.send_if_modified(|state| {
            let news = state.trouble.as_ref() != Some(&trouble);
            state.trouble = Some(trouble);
            news
        });
    }

    async fn follow(
        &mut self,
        manager: SocketAddr,
        others: bool,
        backoff: &mut Backoff,
    ) -> Result<std::convert::Infallible, Interruption> {
        let identity = Arc::clone(&self.options.identity.borrow_and_update());
        let stream = connect(manager, &identity).await?;
        let (reader, writer) = tokio::io::split(stream);
        let mut reader = Reader::new(reader, wire::MAX_FROM_MANAGER);
        let mut writer = Writer::new(writer, wire::MAX_FROM_WORKER);
        writer
            .send(&FromWorker::Hello { version: VERSION }, LIMIT)
            .await?;
        match reader.next_within(SILENCE).await? {
            FromManager::Hello { version: VERSION } => {}
            FromManager::Hello { version } => return Err(Interruption::Version(version)),
            FromManager::Refused { reason } => return Err(Interruption::Refused(reason)),
            FromManager::Full { .. } | FromManager::Delta { .. } | FromManager::Heartbeat { .. } => {
                return Err(Interruption::Misbehaved("no greeting"));
            }
        }
        info!(%manager, "following a manager");
        // Until the whole picture has come, deltas have nothing to be applied to.
        let mut revision = None;
        let mut asked = true;
        let mut silence = std::pin::pin!(sleep(SILENCE));
        let mut hint_after = tokio::time::Instant::now();
        let hint = self.hint.clone();
        loop {
            let hinted = async {
                tokio::time::sleep_until(hint_after).await;
                hint.hinted().await;
            };
            let message = tokio::select! {
                message = reader.next() => message?,
                () = hinted => {
                    hint_after = tokio::time::Instant::now() + HINT_GAP;
                    writer.send(&FromWorker::Hint, LIMIT).await?;
                    continue;
                }
                () = &mut silence => return Err(WireError::Silent(SILENCE).into()),
                Ok(()) = self.options.identity.changed() => return Err(Interruption::Renewed),
            };
            silence.as_mut().reset(tokio::time::Instant::now() + SILENCE);
            let next = self.receive(message, manager, revision, others)?;
            if next.is_some() {
                backoff.reset();
            }
            // A gap is asked about once; the answer closes it.
            if next.is_none() && !asked {
                writer.send(&FromWorker::NeedFull, LIMIT).await?;
            }
            asked = next.is_none();
            revision = next;
        }
    }

    /// Takes one message in; the revision that holds afterwards, or `None` when the whole picture is
    /// needed.
    fn receive(
        &self,
        message: FromManager,
        manager: SocketAddr,
        revision: Option<u64>,
        others: bool,
    ) -> Result<Option<u64>, Interruption> {
        match message {
            FromManager::Full {
                revision,
                changed_age,
                cluster,
            } => {
                self.state.send_replace(SourceState {
                    cluster,
                    revision,
                    confirmed: Some(SystemTime::now()),
                    changed: wire::time(changed_age),
                    origin: format!("manager {manager}"),
                    trouble: None,
                });
                Ok(Some(revision))
            }
            FromManager::Delta {
                from,
                to,
                changed_age,
                delta,
            } => {
                if revision != Some(from) {
                    return Ok(None);
                }
                self.state.send_modify(|state| {
                    delta.apply(Arc::make_mut(&mut state.cluster));
                    state.revision = to;
                    state.confirmed = Some(SystemTime::now());
                    state.changed = wire::time(changed_age);
                });
                Ok(Some(to))
            }
            FromManager::Heartbeat {
                revision: current,
                confirmed_age,
                trouble,
            } => {
                let stale = confirmed_age.is_none_or(|age| Duration::from_millis(age) > STALE);
                if stale && others {
                    return Err(Interruption::Stale);
                }
                let trouble = trouble.map(|trouble| format!("manager {manager}: {trouble}"));
                self.state.send_if_modified(|state| {
                    state.confirmed = wire::time(confirmed_age).or(state.confirmed);
                    let news = state.trouble != trouble;
                    state.trouble = trouble;
                    news
                });
                Ok(revision.filter(|&revision| revision == current))
            }
            FromManager::Refused { reason } => Err(Interruption::Refused(reason)),
            FromManager::Hello { .. } => Err(Interruption::Misbehaved("a second greeting")),
        }
    }
}

async fn connect(manager: SocketAddr, identity: &NodeIdentity) -> Result<TlsStream<TcpStream>, Interruption> {
    let config = tls::client(identity)?;
    let stream = timeout(LIMIT, TcpStream::connect(manager))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(Interruption::Connect)?;
    // Hints are small and urgent. Where it cannot be set, they are merely slower.
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
