//! The orchestrator on the lab's nodes, and a minimal client of its API: one request, one connection.
//! Depends on `agent` and `wait`.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{Lab, agent::DEFAULT_ARGUMENTS, wait_until};

/// How long the agent may take to answer.
const LIMIT: Duration = Duration::from_secs(30);
/// How long a node may take to join.
const PATIENCE: Duration = Duration::from_secs(60);

impl Lab {
    /// Starts a node's agent as an orchestrator, and waits until the node is ready for tasks.
    ///
    /// # Errors
    /// When it does not start, or the node is not ready in time.
    pub fn start_orchestrator(&self, node: &str, more: &[&str]) -> Result<()> {
        let arguments = self.orchestrator_arguments(node, more)?;
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.start_agent(node, &arguments)?;
        wait_until(&format!("{node} to be ready"), PATIENCE, || {
            let nodes = self.api(node)?.get("/v1/nodes")?;
            let is_ready = |listed: &Value| listed["hostname"] == node && listed["status"] == "ready";
            match nodes.as_array().is_some_and(|nodes| nodes.iter().any(is_ready)) {
                true => Ok(()),
                false => bail!("{nodes}"),
            }
        })
    }

    /// The arguments that make a node's agent an orchestrator. Nodes are lost soon, unless `more` has another
    /// `--heartbeat`.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn orchestrator_arguments(&self, node: &str, more: &[&str]) -> Result<Vec<String>> {
        let state = self.orchestrator_folder(node);
        let state = state.to_str().context("the lab's path is not UTF-8")?;
        let address = self.address(node)?;
        let mut arguments = DEFAULT_ARGUMENTS.to_vec();
        arguments.extend(["--orchestrator", "--state-dir", state, "--node-address", &address]);
        arguments.extend(["--drain-time", "2s"]);
        if !more.contains(&"--heartbeat") {
            arguments.extend(["--heartbeat", "1s"]);
        }
        arguments.extend(more);
        Ok(arguments.into_iter().map(str::to_owned).collect())
    }

    /// Where a node's orchestrator keeps its state.
    #[must_use]
    pub fn orchestrator_folder(&self, node: &str) -> PathBuf {
        self.state().data.join(node).join("mesh")
    }

    /// A node's API.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn api(&self, node: &str) -> Result<Api> {
        let init = self.state().space(node)?.init.pid;
        Ok(Api {
            socket: format!("/proc/{init}/root/run/mesh/admin.sock").into(),
        })
    }
}

/// One node's API.
#[derive(Clone, Debug)]
pub struct Api {
    /// The agent's socket as this process sees it.
    pub socket: PathBuf,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP's number.
    pub status: u16,
    /// What came with it.
    pub body: String,
}

impl Answer {
    /// What was answered to a request that must have succeeded.
    ///
    /// # Errors
    /// When it was refused.
    pub fn accepted(&self) -> Result<Value> {
        ensure!((200..300).contains(&self.status), "{} {}", self.status, self.body);
        if self.body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&self.body).with_context(|| format!("no JSON: `{}`", self.body))
    }
}

impl Api {
    /// Sends a request and returns the answer, also where that is a refusal.
    ///
    /// # Errors
    /// When there is no answer in time.
    pub fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer> {
        let mut stream = UnixStream::connect(&self.socket)
            .with_context(|| format!("nothing listens at {}", self.socket.display()))?;
        stream.set_read_timeout(Some(LIMIT))?;
        let body = body.map(Value::to_string).unwrap_or_default();
        let length = body.len();
        // The older version of the protocol has no chunks.
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nhost: agent\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n\r\n{body}"
        )?;
        let mut text = Vec::new();
        stream
            .read_to_end(&mut text)
            .context("the agent did not answer")?;
        let text = String::from_utf8(text).context("the answer is no text")?;
        let (head, body) = text.split_once("\r\n\r\n").context("the answer has no head")?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok(Answer {
            status: status.with_context(|| format!("the answer begins with `{head}`"))?,
            body: body.to_owned(),
        })
    }

    /// Sends a request that must succeed, and returns what was answered.
    ///
    /// # Errors
    /// When it is refused.
    pub fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let answer = self.send(method, path, body)?;
        answer.accepted().with_context(|| format!("{method} {path}"))
    }

    /// Asks for something.
    ///
    /// # Errors
    /// When it is refused.
    pub fn get(&self, path: &str) -> Result<Value> {
        self.call("GET", path, None)
    }

    /// The tasks of a service that run and are meant to run.
    ///
    /// # Errors
    /// When the agent does not list them.
    pub fn running(&self, service: &str) -> Result<Vec<Value>> {
        let tasks = self.get(&format!("/v1/services/{service}/tasks"))?;
        let Value::Array(tasks) = tasks else {
            bail!("no list of tasks: {tasks}");
        };
        Ok(tasks
            .into_iter()
            .filter(|task| task["status"]["state"] == "running" && task["desired"] == "running")
            .collect())
    }
}
