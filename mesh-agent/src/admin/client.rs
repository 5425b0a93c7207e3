//! Client of this machine's agent through its admin socket, for `meshctl` and tests.

use std::{
    fmt::Write as _,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use reqwest::Method;
use serde::{Serialize, de::DeserializeOwned};

use super::{
    api::{
        self, DatapathAnswer, DoctorAnswer, DrainAnswer, DumpAnswer, Events, ExplainQuery, Explained,
        Failure, FlowQuery, Flows, MonitorQuery, Routes, Status, UseDatapath,
    },
    clients::{Clients, ClientsQuery},
};
use crate::{datapath::DatapathChoice, model::DrainRequest};

/// The agent answers from memory; only the doctor waits for other systems, for less than this.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A failed request to the agent.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No process listens on the socket.
    #[error(
        "the mesh agent is not running (nothing answers on {socket}): start it with \
         `systemctl start mesh-agent`, `docker stack deploy -c deploy/stack.yml mesh` or \
         `mesh-agent run`; if it was started, its log says what it waits for; if it runs with another \
         --admin-socket, pass that as --socket"
    )]
    NotRunning {
        /// The socket.
        socket: PathBuf,
        /// The operating system's error.
        #[source]
        source: io::Error,
    },
    /// The socket belongs to another user.
    #[error("permission denied on {socket}: only its owner may use the admin socket, try again as root")]
    Forbidden {
        /// The socket.
        socket: PathBuf,
        /// The operating system's error.
        #[source]
        source: io::Error,
    },
    /// The connection failed, or the answer was malformed.
    #[error("the request for {path} to the agent on {socket} failed: see the agent's log")]
    Request {
        /// The socket.
        socket: PathBuf,
        /// The requested path.
        path: String,
        /// Why it failed.
        #[source]
        source: reqwest::Error,
    },
    /// The agent refused the request.
    #[error("the agent refused {path}: {message}")]
    Agent {
        /// The requested path.
        path: String,
        /// The agent's message.
        message: String,
    },
}

/// A client of one agent.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    http: reqwest::Client,
    /// What precedes each path, if another node's agent is meant.
    prefix: String,
}

impl Client {
    /// A client for the agent that listens on `socket`; connects at the first request.
    ///
    /// # Errors
    /// When the HTTP client cannot be built.
    pub fn new(socket: &Path) -> Result<Self, ClientError> {
        let http = reqwest::Client::builder()
            .unix_socket(socket)
            .no_proxy()
            .timeout(TIMEOUT)
            .build()
            .map_err(|source| ClientError::Request {
                socket: socket.to_owned(),
                path: "a client".to_owned(),
                source,
            })?;
        Ok(Self {
            socket: socket.to_owned(),
            http,
            prefix: String::new(),
        })
    }

    /// A client for the agent of another node, by host name or id. This machine's agent asks it, and must
    /// be a manager's.
    #[must_use]
    pub fn on(&self, node: &str) -> Self {
        let encoded: String = node.bytes().fold(String::new(), |mut encoded, byte| {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => {
                    encoded.push(char::from(byte));
                }
                // Writing to a string does not fail.
                _ => drop(write!(encoded, "%{byte:02X}")),
            }
            encoded
        });
        Self {
            prefix: format!("on/{encoded}/"),
            ..self.clone()
        }
    }

    /// The routes of every published port.
    ///
    /// # Errors
    /// When the agent is not running, or cannot read its counters.
    pub async fn routes(&self) -> Result<Routes, ClientError> {
        self.get("routes").await
    }

    /// The flows that a query is about.
    ///
    /// # Errors
    /// When the agent is not running, does not know what the query names, or cannot read a table.
    pub async fn flows(&self, query: &FlowQuery) -> Result<Flows, ClientError> {
        self.ask(Method::GET, "flows", query, None::<&()>).await
    }

    /// What the data path would do with a packet, and why.
    ///
    /// # Errors
    /// When the agent is not running, its data path is not eBPF, or a table cannot be read.
    pub async fn explain(&self, query: &ExplainQuery) -> Result<Explained, ClientError> {
        self.ask(Method::GET, "explain", query, None::<&()>).await
    }

    /// What became of packets since the last question.
    ///
    /// # Errors
    /// When the agent is not running, its data path is not eBPF, or a table cannot be read.
    pub async fn monitor(&self, query: &MonitorQuery) -> Result<Events, ClientError> {
        self.ask(Method::GET, "monitor", query, None::<&()>).await
    }

    /// The IPv6 clients that a query is about.
    ///
    /// # Errors
    /// When the agent is not running, or cannot read a table.
    pub async fn clients(&self, query: &ClientsQuery) -> Result<Clients, ClientError> {
        self.ask(Method::GET, "clients", query, None::<&()>).await
    }

    /// The agent's status.
    ///
    /// # Errors
    /// When the agent is not running.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.get("status").await
    }

    /// The agent's check of its machine, with its own permissions.
    ///
    /// # Errors
    /// When the agent is not running.
    pub async fn doctor(&self) -> Result<DoctorAnswer, ClientError> {
        self.get("doctor").await
    }

    /// The data path's status.
    ///
    /// # Errors
    /// When the agent is not running.
    pub async fn datapath(&self) -> Result<DatapathAnswer, ClientError> {
        self.get("datapath").await
    }

    /// The tables of the data path, with at most `flows` entries of the flow table.
    ///
    /// # Errors
    /// When the agent is not running, or cannot read a table.
    pub async fn dump(&self, flows: usize) -> Result<DumpAnswer, ClientError> {
        self.get(&format!("datapath/dump?flows={flows}")).await
    }

    /// Makes the agent try the better rungs again.
    ///
    /// # Errors
    /// When the agent is not running, or not ready for it.
    pub async fn retry_datapath(&self) -> Result<DatapathAnswer, ClientError> {
        self.ask(Method::POST, "datapath/retry", &(), None::<&()>).await
    }

    /// Switches the agent to another data path.
    ///
    /// # Errors
    /// When the agent is not running, or the data path does not work; then nothing changes.
    pub async fn use_datapath(&self, choice: DatapathChoice) -> Result<DatapathAnswer, ClientError> {
        self.ask(Method::POST, "datapath/use", &(), Some(&UseDatapath { choice }))
            .await
    }

    /// Drains replicas of the agent's node (of any node, if it is a manager's), or ends that.
    ///
    /// # Errors
    /// When the agent is not running, or refuses; then nothing changes.
    pub async fn drain(&self, request: &DrainRequest) -> Result<DrainAnswer, ClientError> {
        self.ask(Method::POST, "drain", &(), Some(request)).await
    }

    /// The drained replicas of the agent's node, or of the node with this id.
    ///
    /// # Errors
    /// When the agent is not running, cannot read its counters, or cannot ask the other node's agent.
    pub async fn drained(&self, node: Option<&str>) -> Result<DrainAnswer, ClientError> {
        match node {
            Some(node) => self.get(&format!("drain?node={node}")).await,
            None => self.get("drain").await,
        }
    }

    async fn get<T: DeserializeOwned>(&self, what: &str) -> Result<T, ClientError> {
        self.ask(Method::GET, what, &(), None::<&()>).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        what: &str,
        query: &impl Serialize,
        body: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        let path = format!("/v{}/{}{what}", api::VERSION, self.prefix);
        let fail = |source| ClientError::Request {
            socket: self.socket.clone(),
            path: path.clone(),
            source,
        };
        // The host name is never resolved: requests go through the socket.
        let request = self.http.request(method, format!("http://mesh-agent{path}"));
        let mut request = request.query(query);
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await;
        let answer = answer.map_err(|error| match connect_failure(&self.socket, &error) {
            Some(failure) => failure,
            None => fail(error),
        })?;
        if answer.status().is_success() {
            return answer.json().await.map_err(fail);
        }
        let status = answer.status();
        let message = match answer.json::<Failure>().await {
            Ok(failure) => failure.error,
            Err(_) => status.to_string(),
        };
        Err(ClientError::Agent { path, message })
    }
}

/// The error of a failed connection to a socket; `None` for errors after connecting.
pub(crate) fn connect_failure(socket: &Path, error: &reqwest::Error) -> Option<ClientError> {
    let source = connect_error(error)?;
    let socket = socket.to_owned();
    Some(if source.kind() == io::ErrorKind::PermissionDenied {
        ClientError::Forbidden { socket, source }
    } else {
        ClientError::NotRunning { socket, source }
    })
}

/// The operating system's error of a failed connection.
fn connect_error(error: &reqwest::Error) -> Option<io::Error> {
    if !error.is_connect() {
        return None;
    }
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(cause) = cause.downcast_ref::<io::Error>() {
            return Some(match cause.raw_os_error() {
                Some(code) => io::Error::from_raw_os_error(code),
                None => io::Error::new(cause.kind(), cause.to_string()),
            });
        }
        source = cause.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn without_an_agent_the_error_names_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let client = Client::new(&folder.path().join("admin.sock")).unwrap();
        let error = client.status().await.unwrap_err();
        assert!(matches!(error, ClientError::NotRunning { .. }), "{error:?}");
        assert!(error.to_string().contains("systemctl start mesh-agent"));
    }
}
