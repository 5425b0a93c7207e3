//! Client of the orchestrator's HTTP API through the agent's admin socket.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use mesh_orchestrator::api::types::{ErrorAnswer, VERSION};
use reqwest::{Method, StatusCode, Url, header};
use serde::{Serialize, de::DeserializeOwned};

use crate::admin::{ClientError, connect_failure};

/// Longer than the API's own limits, whose errors say more: reading a backup may take five minutes.
const TIMEOUT: Duration = Duration::from_secs(330);

/// Longest line of a stream, in bytes; the API's lines are shorter than this.
const MAX_LINE: usize = 4 << 20;

/// A failed request to the orchestrator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApiError {
    /// The agent does not answer.
    #[error(transparent)]
    Agent(#[from] ClientError),
    /// The agent has no orchestrator.
    #[error(
        "the mesh agent at {socket} runs without the orchestrator: start it with `mesh-agent run --orchestrator`; on \
         a node in a Swarm use docker's commands"
    )]
    NoOrchestrator {
        /// The agent's socket.
        socket: PathBuf,
    },
    /// The orchestrator refused.
    #[error("{message}")]
    Refused {
        /// The HTTP status.
        status: StatusCode,
        /// The orchestrator's message.
        message: String,
    },
    /// The connection failed.
    #[error("the request for {path} to the orchestrator failed: see the agent's log")]
    Broken {
        /// The requested path.
        path: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The answer does not match the API's types.
    #[error(
        "unexpected answer to {path} from the orchestrator: do meshctl and the agent have the same release?"
    )]
    Answer {
        /// The requested path.
        path: String,
        /// The parser's error.
        #[source]
        source: serde_json::Error,
    },
}

impl ApiError {
    /// Whether the orchestrator answered with this status.
    pub(crate) fn is(&self, wanted: StatusCode) -> bool {
        matches!(self, Self::Refused { status, .. } if *status == wanted)
    }
}

/// Query parameters.
pub(crate) type Query<'a> = &'a [(&'a str, &'a str)];

/// A client of the orchestrator of this node.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    socket: PathBuf,
    http: reqwest::Client,
}

impl Api {
    /// A client of the agent that listens on `socket`; connects at the first request.
    ///
    /// # Errors
    /// When the HTTP client cannot be built.
    pub(crate) fn new(socket: &Path) -> Result<Self, ApiError> {
        let http = reqwest::Client::builder()
            .unix_socket(socket)
            .no_proxy()
            .build()
            .map_err(|source| ApiError::Broken {
                path: "a client".to_owned(),
                source,
            })?;
        Ok(Self {
            socket: socket.to_owned(),
            http,
        })
    }

    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: Query<'_>,
    ) -> Result<T, ApiError> {
        self.ask(Method::GET, path, query, None, None::<&()>).await
    }

    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &impl Serialize,
    ) -> Result<T, ApiError> {
        self.post_with(path, &[], body).await
    }

    pub(crate) async fn post_with<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: Query<'_>,
        body: &impl Serialize,
    ) -> Result<T, ApiError> {
        self.ask(Method::POST, path, query, None, Some(body)).await
    }

    /// Replaces an object, if given only at that revision.
    pub(crate) async fn put<T: DeserializeOwned>(
        &self,
        path: &[&str],
        revision: Option<&str>,
        body: &impl Serialize,
    ) -> Result<T, ApiError> {
        self.put_with(path, &[], revision, body).await
    }

    pub(crate) async fn put_with<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: Query<'_>,
        revision: Option<&str>,
        body: &impl Serialize,
    ) -> Result<T, ApiError> {
        self.ask(Method::PUT, path, query, revision, Some(body)).await
    }

    pub(crate) async fn patch<T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &impl Serialize,
    ) -> Result<T, ApiError> {
        self.ask(Method::PATCH, path, &[], None, Some(body)).await
    }

    pub(crate) async fn delete(&self, path: &[&str]) -> Result<(), ApiError> {
        self.delete_with(path, &[]).await
    }

    pub(crate) async fn delete_with(&self, path: &[&str], query: Query<'_>) -> Result<(), ApiError> {
        self.send(Method::DELETE, path, query, None, None::<&()>, Some(TIMEOUT))
            .await
            .map(drop)
    }

    /// A stream of lines, possibly endless.
    pub(crate) async fn lines(&self, path: &[&str], query: Query<'_>) -> Result<Lines, ApiError> {
        let answer = self
            .send(Method::GET, path, query, None, None::<&()>, None)
            .await?;
        Ok(Lines {
            path: path.join("/"),
            answer,
            buffer: Vec::new(),
            scanned: 0,
        })
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &[&str],
        query: Query<'_>,
        revision: Option<&str>,
        body: Option<&impl Serialize>,
    ) -> Result<T, ApiError> {
        let answer = self
            .send(method, path, query, revision, body, Some(TIMEOUT))
            .await?;
        let path = path.join("/");
        let bytes = match answer.bytes().await {
            Ok(bytes) => bytes,
            Err(source) => return Err(ApiError::Broken { path, source }),
        };
        // An empty body counts as `null`.
        let bytes: &[u8] = if bytes.is_empty() { b"null" } else { &bytes };
        serde_json::from_slice(bytes).map_err(|source| ApiError::Answer { path, source })
    }

    async fn send(
        &self,
        method: Method,
        path: &[&str],
        query: Query<'_>,
        revision: Option<&str>,
        body: Option<&impl Serialize>,
        timeout: Option<Duration>,
    ) -> Result<reqwest::Response, ApiError> {
        let broken = |source| ApiError::Broken {
            path: path.join("/"),
            source,
        };
        let mut request = self.http.request(method, url(path, query));
        if let Some(timeout) = timeout {
            request = request.timeout(timeout);
        }
        if let Some(revision) = revision {
            request = request.header(header::IF_MATCH, format!("\"{revision}\""));
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) => {
                return Err(match connect_failure(&self.socket, &error) {
                    Some(failure) => ApiError::Agent(failure),
                    None => broken(error),
                });
            }
        };
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status();
        let bytes = answer.bytes().await.map_err(broken)?;
        Err(match serde_json::from_slice::<ErrorAnswer>(&bytes) {
            Ok(answer) => ApiError::Refused {
                status,
                message: answer.error.message,
            },
            // The agent's own errors have another shape.
            Err(_) if status == StatusCode::NOT_FOUND => ApiError::NoOrchestrator {
                socket: self.socket.clone(),
            },
            Err(_) => ApiError::Refused {
                status,
                message: format!("the orchestrator answered {status} to {}", path.join("/")),
            },
        })
    }
}

/// The host name is never resolved: requests go through the socket.
fn url(path: &[&str], query: Query<'_>) -> Url {
    let mut url = Url::parse("http://mesh-agent/").unwrap_or_else(|_| unreachable!("the URL is a constant"));
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.clear().push(&format!("v{VERSION}")).extend(path);
    }
    if !query.is_empty() {
        url.query_pairs_mut().extend_pairs(query);
    }
    url
}

/// An answer of JSON lines.
#[derive(Debug)]
pub(crate) struct Lines {
    path: String,
    answer: reqwest::Response,
    buffer: Vec<u8>,
    /// The number of bytes in the buffer already searched for a line end.
    scanned: usize,
}

impl Lines {
    /// The next line; `None` at the end.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ApiError> {
        loop {
            if let Some(end) = self.buffer[self.scanned..].iter().position(|byte| *byte == b'\n') {
                let rest = self.buffer.split_off(self.scanned + end + 1);
                let line = std::mem::replace(&mut self.buffer, rest);
                self.scanned = 0;
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return self.read(&line).map(Some);
            }
            self.scanned = self.buffer.len();
            if self.scanned > MAX_LINE {
                return Err(ApiError::Refused {
                    status: StatusCode::PAYLOAD_TOO_LARGE,
                    message: format!("a line of {} has more than {MAX_LINE} bytes", self.path),
                });
            }
            match self.answer.chunk().await {
                Ok(Some(chunk)) => self.buffer.extend_from_slice(&chunk),
                Ok(None) if self.buffer.is_empty() => return Ok(None),
                Ok(None) => {
                    self.scanned = 0;
                    let line = std::mem::take(&mut self.buffer);
                    return self.read(&line).map(Some);
                }
                Err(source) => {
                    return Err(ApiError::Broken {
                        path: self.path.clone(),
                        source,
                    });
                }
            }
        }
    }

    fn read<T: DeserializeOwned>(&self, line: &[u8]) -> Result<T, ApiError> {
        serde_json::from_slice(line).map_err(|source| ApiError::Answer {
            path: self.path.clone(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_queries_are_escaped() {
        let url = url(
            &["registries", "localhost:5000/x"],
            &[("since", "2026-01-01T00:00:00+02:00")],
        );
        assert_eq!(
            url.as_str(),
            "http://mesh-agent/v1/registries/localhost:5000%2Fx?since=2026-01-01T00%3A00%3A00%2B02%3A00"
        );
    }
}
