//! One connection to the engine that negotiates its API version, and reconnects when the engine restarts.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwapOption;
use bollard::{models::EventMessage, query_parameters::EventsOptionsBuilder};
use futures_util::{Stream, TryStreamExt};
use serde::de::DeserializeOwned;

use super::{
    DockerError, EngineInfo,
    error::{MAX_BODY_BYTES, refusal_message, shortened},
};

/// Streams of events start this far in the past, so that none is lost between two streams.
const EVENT_OVERLAP_SECONDS: u64 = 3;
/// How long the engine may take to answer one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// A handle on the local engine; cheap to clone. Connects on first use, and again after a failure.
#[derive(Clone)]
pub struct Docker {
    socket: Arc<Path>,
    timeout: Duration,
    connection: Arc<ArcSwapOption<Connection>>,
}

/// One negotiated connection; both clients pool and reconnect by themselves.
pub(crate) struct Connection {
    pub(crate) bollard: bollard::Docker,
    pub(super) http: reqwest::Client,
    version: String,
}

impl Docker {
    /// A handle on the engine at a Unix socket. Does no I/O.
    #[must_use]
    pub fn new(socket: impl AsRef<Path>) -> Self {
        Self {
            socket: Arc::from(socket.as_ref()),
            timeout: REQUEST_TIMEOUT,
            connection: Arc::default(),
        }
    }

    /// Limits the time for one request, which is 15 s otherwise.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
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
        let bollard =
            bollard::Docker::connect_with_unix(&path, self.timeout.as_secs(), bollard::API_DEFAULT_VERSION)
                .map_err(connect)?
                .negotiate_version()
                .await
                .map_err(connect)?;
        let version = bollard.client_version().to_string();
        let http = reqwest::Client::builder()
            .unix_socket(self.socket.as_ref())
            .no_proxy()
            .timeout(self.timeout)
            .build()
            .map_err(|source| DockerError::Get {
                path: "/".to_owned(),
                source,
            })?;
        let connection = Arc::new(Connection {
            bollard,
            http,
            version,
        });
        self.connection.store(Some(Arc::clone(&connection)));
        Ok(connection)
    }

    /// The engine's description of itself, as in `docker info`.
    ///
    /// # Errors
    /// When the engine does not answer.
    pub async fn info(&self) -> Result<EngineInfo, DockerError> {
        let connection = self.connection().await?;
        let info = self.check(connection.bollard.info().await, "info")?;
        Ok(info.into())
    }

    /// Reads JSON directly from the engine's API: for what the client library's types lack, and to parse no
    /// more than is needed.
    ///
    /// # Errors
    /// When the engine does not answer, refuses, or answers something else.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, DockerError> {
        let connection = self.connection().await?;
        let url = connection.url(path);
        let result = read_bounded(&connection.http, &url, path).await;
        if result.is_err() {
            self.reset();
        }
        serde_json::from_slice(&result?).map_err(|source| DockerError::Decode {
            path: path.to_owned(),
            source,
        })
    }

    /// The engine's events of the given types (`service`, `node`, `container`, …), starting a few seconds in
    /// the past. The stream ends when the engine goes away, with or without an error.
    ///
    /// # Errors
    /// When the engine does not answer.
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
    pub(super) fn url(&self, path: &str) -> String {
        format!("http://localhost/v{}{path}", self.version)
    }
}

async fn read_bounded(http: &reqwest::Client, url: &str, path: &str) -> Result<Vec<u8>, DockerError> {
    let failed = |source| DockerError::Get {
        path: path.to_owned(),
        source,
    };
    let mut response = http.get(url).send().await.map_err(failed)?;
    let status = response.status();
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        if body.len() + chunk.len() > MAX_BODY_BYTES {
            return Err(DockerError::TooLarge {
                path: path.to_owned(),
            });
        }
        body.extend_from_slice(&chunk);
    }
    if !status.is_success() {
        let message = refusal_message(&body).unwrap_or_else(|| String::from_utf8_lossy(&body).into_owned());
        return Err(DockerError::Refused {
            path: path.to_owned(),
            status: status.as_u16(),
            message: shortened(&message),
        });
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_absent_engine_is_named_by_its_socket() {
        let error = Docker::new("/nonexistent/docker.sock").info().await.unwrap_err();
        assert!(matches!(error, DockerError::Connect { .. }));
        assert!(error.to_string().contains("/nonexistent/docker.sock"), "{error}");
    }
}
