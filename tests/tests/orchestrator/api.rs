//! A client of the orchestrator's API, as small as can be: one request, one connection.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// How long the agent may take to answer.
const LIMIT: Duration = Duration::from_secs(30);

/// One node's API.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    pub(crate) socket: PathBuf,
}

/// An answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

impl Api {
    /// Sends a request; every answer is one, refusals too.
    pub(crate) fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer> {
        let mut stream = UnixStream::connect(&self.socket)
            .with_context(|| format!("nobody listens at {}", self.socket.display()))?;
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
    pub(crate) fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let answer = self.send(method, path, body)?;
        ensure!(
            (200..300).contains(&answer.status),
            "{method} {path}: {} {}",
            answer.status,
            answer.body
        );
        if answer.body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&answer.body).with_context(|| format!("no JSON: `{}`", answer.body))
    }

    pub(crate) fn get(&self, path: &str) -> Result<Value> {
        self.call("GET", path, None)
    }

    /// The tasks of a service that run and shall run.
    pub(crate) fn running(&self, service: &str) -> Result<Vec<Value>> {
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
