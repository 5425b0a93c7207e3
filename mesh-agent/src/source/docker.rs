//! The local Docker Engine: one connection that negotiates its API version and makes itself anew when
//! the engine restarts. May depend on the model's plain types; knows nothing of the mesh.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwapOption;
use bollard::{
    models::{EventMessage, LocalNodeState},
    query_parameters::EventsOptionsBuilder,
};
use futures_util::{Stream, TryStreamExt};
use serde::{Deserialize, de::DeserializeOwned};

use crate::model::NodeId;

/// No answer of the engine may be larger than this; ten thousand tasks take about 30 MiB.
const MAX_BODY_BYTES: usize = 128 << 20;
/// How much of the engine's words an error repeats.
const MAX_MESSAGE_CHARS: usize = 512;
/// Events this old are read again when a stream begins, so that none is lost between two streams.
const EVENT_OVERLAP_SECONDS: u64 = 3;
/// How long the engine may take to answer one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// A year: the clock cannot count as far as `Duration` can.
const UNLIMITED: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The engine could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum DockerError {
    /// Nothing answers at the socket, or it speaks no API version in common with the agent.
    #[error(
        "cannot reach Docker at {}; is dockerd running, and may this process read and write its socket \
         (--docker-socket)?", socket.display()
    )]
    Connect {
        /// The engine's Unix socket.
        socket: PathBuf,
        /// What the client library said.
        source: bollard::errors::Error,
    },
    /// The engine refused a request, or the connection broke while it answered.
    #[error("Docker did not answer '{request}'; its own log (journalctl -u docker) says why if this lasts")]
    Request {
        /// What was asked.
        request: &'static str,
        /// What the client library said.
        source: bollard::errors::Error,
    },
    /// The engine refused a raw request, or the connection broke while it answered.
    #[error("Docker did not answer 'GET {path}'; its own log (journalctl -u docker) says why if this lasts")]
    Get {
        /// What was asked.
        path: &'static str,
        /// What the HTTP client said.
        source: reqwest::Error,
    },
    /// The engine answered with an error.
    #[error("Docker refused 'GET {path}' with status {status}: {message}")]
    Refused {
        /// What was asked.
        path: &'static str,
        /// The HTTP status.
        status: u16,
        /// The engine's own words, shortened.
        message: String,
    },
    /// The engine answered something else than the list that was asked for.
    #[error("Docker's answer to 'GET {path}' is not understood; a newer agent may be needed for this engine")]
    Decode {
        /// What was asked.
        path: &'static str,
        /// Where and what.
        source: serde_json::Error,
    },
    /// An answer was larger than the agent is willing to keep in memory.
    #[error("Docker's answer to 'GET {path}' is larger than {MAX_BODY_BYTES} bytes; refused")]
    TooLarge {
        /// What was asked.
        path: &'static str,
    },
}

/// What the engine says of itself and of its place in a Swarm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineInfo {
    /// This node's id; empty when it is in no Swarm.
    pub node: NodeId,
    /// Whether the node is an active member of a Swarm.
    pub active: bool,
    /// The state in the engine's words: `active`, `inactive`, `pending`, `error`, `locked`.
    pub state: String,
    /// Whether services and tasks can be listed here: the node is a manager, and there is a quorum.
    pub manager: bool,
    /// The node's own Swarm address (`--advertise-addr`).
    pub node_address: Option<Ipv4Addr>,
    /// Managers this node knows of. Their ports are Swarm's own; agents listen on the feed port.
    pub remote_managers: Vec<RemoteManager>,
    /// The cluster's id; managers only. Workers find it as the O of their certificate.
    pub cluster_id: Option<String>,
    /// Docker's data root, e.g. `/var/lib/docker`.
    pub root: PathBuf,
    /// The engine's version, e.g. `20.10.24`.
    pub version: String,
}

impl EngineInfo {
    /// Where Swarm keeps this node's certificate, key and root bundle.
    #[must_use]
    pub fn certificates(&self) -> PathBuf {
        self.root.join("swarm/certificates")
    }
}

/// A manager of the Swarm as `docker info` lists it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RemoteManager {
    /// Its node id.
    pub node: NodeId,
    /// Its address, without Swarm's port.
    pub address: Ipv4Addr,
}

/// A handle on the local engine; cheap to clone. Connects on first use, and again after a failure.
#[derive(Clone)]
pub struct Docker {
    socket: Arc<Path>,
    connection: Arc<ArcSwapOption<Connection>>,
}

/// One negotiated connection (both clients pool and redial by themselves).
pub(crate) struct Connection {
    pub(crate) bollard: bollard::Docker,
    http: reqwest::Client,
    version: String,
}

impl Docker {
    /// A handle on the engine at a Unix socket. Does no I/O.
    #[must_use]
    pub fn new(socket: impl AsRef<Path>) -> Self {
        Self {
            socket: Arc::from(socket.as_ref()),
            connection: Arc::default(),
        }
    }

    /// The engine's socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Forgets the negotiated version: the engine may have been upgraded while it was away.
    pub fn reset(&self) {
        self.connection.store(None);
    }

    /// The negotiated connection.
    ///
    /// # Errors
    /// When the engine does not answer at its socket.
    pub(crate) async fn connection(&self) -> Result<Arc<Connection>, DockerError> {
        if let Some(connection) = self.connection.load_full() {
            return Ok(connection);
        }
        let connect = |source| DockerError::Connect {
            socket: self.socket.to_path_buf(),
            source,
        };
        let path = self.socket.to_string_lossy();
        let bollard = bollard::Docker::connect_with_unix(
            &path,
            REQUEST_TIMEOUT.as_secs(),
            bollard::API_DEFAULT_VERSION,
        )
        .map_err(connect)?
        .negotiate_version()
        .await
        .map_err(connect)?;
        let version = bollard.client_version().to_string();
        let http = reqwest::Client::builder()
            .unix_socket(self.socket.as_ref())
            .timeout(REQUEST_TIMEOUT)
            .build()
            .map_err(|source| DockerError::Get { path: "/", source })?;
        let connection = Arc::new(Connection {
            bollard,
            http,
            version,
        });
        self.connection.store(Some(Arc::clone(&connection)));
        Ok(connection)
    }

    /// What `docker info` says.
    ///
    /// # Errors
    /// When the engine cannot be asked.
    pub async fn info(&self) -> Result<EngineInfo, DockerError> {
        let connection = self.connection().await?;
        let info = self.check(connection.bollard.info().await, "info")?;
        let swarm = info.swarm.unwrap_or_default();
        let state = swarm.local_node_state.unwrap_or(LocalNodeState::INACTIVE);
        let mut remote_managers: Vec<_> = swarm
            .remote_managers
            .unwrap_or_default()
            .into_iter()
            .filter_map(|peer| {
                Some(RemoteManager {
                    node: peer.node_id?,
                    address: host(&peer.addr?)?,
                })
            })
            .collect();
        remote_managers.sort();
        Ok(EngineInfo {
            node: swarm.node_id.unwrap_or_default(),
            active: state == LocalNodeState::ACTIVE,
            state: state.to_string(),
            manager: swarm.control_available.unwrap_or_default(),
            node_address: swarm.node_addr.as_deref().and_then(host),
            remote_managers,
            cluster_id: swarm.cluster.and_then(|cluster| cluster.id),
            root: info
                .docker_root_dir
                .map_or_else(|| PathBuf::from("/var/lib/docker"), PathBuf::from),
            version: info.server_version.unwrap_or_default(),
        })
    }

    /// Reads a list straight from the engine's API: for what the client library's types lack, and to
    /// parse no more than is needed.
    ///
    /// # Errors
    /// When the engine cannot be asked, refuses, or answers something else.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &'static str) -> Result<T, DockerError> {
        let connection = self.connection().await?;
        let url = connection.url(path);
        let result = read_bounded(&connection.http, &url, path).await;
        if result.is_err() {
            self.reset();
        }
        serde_json::from_slice(&result?).map_err(|source| DockerError::Decode { path, source })
    }

    /// The engine's events of the given types (`service`, `node`, `container`, …), from a few seconds
    /// ago on. The stream ends when the engine goes away, with an error or without.
    ///
    /// # Errors
    /// When the engine cannot be asked.
    pub(crate) async fn events(
        &self,
        types: &[&str],
    ) -> Result<impl Stream<Item = Result<EventMessage, DockerError>> + Send + Unpin + use<>, DockerError>
    {
        let connection = self.connection().await?;
        let filters = [(
            "type".to_owned(),
            types.iter().map(|&name| name.to_owned()).collect(),
        )]
        .into();
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |now| now.as_secs().saturating_sub(EVENT_OVERLAP_SECONDS));
        let options = EventsOptionsBuilder::new()
            .filters(&filters)
            .since(&since.to_string())
            .build();
        Ok(Box::pin(connection.bollard.events(Some(options)).map_err(
            |source| DockerError::Request {
                request: "events",
                source,
            },
        )))
    }

    /// Names the request in an error, and forgets the connection that failed.
    pub(crate) fn check<T>(
        &self,
        result: Result<T, bollard::errors::Error>,
        request: &'static str,
    ) -> Result<T, DockerError> {
        result.map_err(|source| {
            self.reset();
            DockerError::Request { request, source }
        })
    }
}

impl Connection {
    /// A request to the engine's API for what the client library cannot do. Its answer may take its time:
    /// whoever sends it sets a limit.
    pub(crate) fn post(&self, path: &str) -> reqwest::RequestBuilder {
        self.http.post(self.url(path)).timeout(UNLIMITED)
    }

    /// As [`Self::post`], to read something.
    pub(crate) fn get(&self, path: &str) -> reqwest::RequestBuilder {
        self.http.get(self.url(path)).timeout(UNLIMITED)
    }

    fn url(&self, path: &str) -> String {
        format!("http://localhost/v{}{path}", self.version)
    }
}

/// How the engine words a refusal.
#[derive(Deserialize)]
struct Refusal {
    message: String,
}

async fn read_bounded(http: &reqwest::Client, url: &str, path: &'static str) -> Result<Vec<u8>, DockerError> {
    let failed = |source| DockerError::Get { path, source };
    let mut response = http.get(url).send().await.map_err(failed)?;
    let status = response.status();
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        if body.len() + chunk.len() > MAX_BODY_BYTES {
            return Err(DockerError::TooLarge { path });
        }
        body.extend_from_slice(&chunk);
    }
    if !status.is_success() {
        let message = serde_json::from_slice::<Refusal>(&body).map_or_else(
            |_| String::from_utf8_lossy(&body).into_owned(),
            |refusal| refusal.message,
        );
        return Err(DockerError::Refused {
            path,
            status: status.as_u16(),
            message: message.trim().chars().take(MAX_MESSAGE_CHARS).collect(),
        });
    }
    Ok(body)
}

/// The IPv4 address in `address` or `address:port`.
pub(crate) fn host(text: &str) -> Option<Ipv4Addr> {
    let host = text.rsplit_once(':').map_or(text, |(host, _)| host);
    host.parse()
        .ok()
        .filter(|address: &Ipv4Addr| !address.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_is_read_with_and_without_port() {
        assert_eq!(host("10.1.0.1:2377"), Some(Ipv4Addr::new(10, 1, 0, 1)));
        assert_eq!(host("10.1.0.1"), Some(Ipv4Addr::new(10, 1, 0, 1)));
    }

    #[test]
    fn host_refuses_what_no_packet_can_be_sent_to() {
        for text in ["", "0.0.0.0", "0.0.0.0:2377", "[fd00::1]:2377", "manager:2377"] {
            assert_eq!(host(text), None, "{text}");
        }
    }

    #[tokio::test]
    async fn absent_engine_is_named_by_its_socket() {
        let error = Docker::new("/nonexistent/docker.sock").info().await.unwrap_err();
        assert!(matches!(error, DockerError::Connect { .. }));
        assert!(error.to_string().contains("/nonexistent/docker.sock"), "{error}");
    }
}
