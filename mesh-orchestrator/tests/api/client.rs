//! Requests over a Unix socket, and checks of their answers.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use futures_util::{
    StreamExt,
    stream::{self, BoxStream},
};
use reqwest::{Method, StatusCode, header::HeaderMap};
use serde_json::Value;

/// A request to be sent.
pub(crate) struct Request {
    builder: reqwest::RequestBuilder,
    what: String,
}

/// The answer to a request.
#[derive(Debug)]
pub(crate) struct Answer {
    what: String,
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// `null` if there was no body.
    pub(crate) json: Value,
    pub(crate) text: String,
}

impl Request {
    pub(crate) fn new(socket: &Path, method: Method, path: &str) -> Result<Self> {
        let client = reqwest::Client::builder()
            .unix_socket(socket)
            .no_proxy()
            .build()?;
        Ok(Self {
            what: format!("{method} {path}"),
            builder: client.request(method, format!("http://mesh{path}")),
        })
    }

    pub(crate) fn json(mut self, body: &Value) -> Self {
        self.builder = self.builder.json(body);
        self
    }

    pub(crate) fn body(mut self, body: Vec<u8>) -> Self {
        self.builder = self.builder.body(body);
        self
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.builder = self.builder.header(name, value);
        self
    }

    pub(crate) async fn send(self) -> Result<Answer> {
        let response = self.builder.send().await?;
        let (status, headers) = (response.status(), response.headers().clone());
        let text = response.text().await?;
        let json = if text.is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&text).with_context(|| format!("{}: not JSON: {text}", self.what))?
        };
        Ok(Answer {
            what: self.what,
            status,
            headers,
            json,
            text,
        })
    }

    /// The body line by line, as it arrives.
    pub(crate) async fn lines(self) -> Result<BoxStream<'static, Result<String>>> {
        let response = self.builder.send().await?;
        ensure!(
            response.status().is_success(),
            "{}: {}: {}",
            self.what,
            response.status(),
            response.text().await?
        );
        let mut pending = Vec::new();
        let lines = response.bytes_stream().flat_map(move |chunk| {
            let mut lines = Vec::new();
            match chunk {
                Ok(chunk) => {
                    pending.extend_from_slice(&chunk);
                    while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                        let line: Vec<u8> = pending.drain(..=end).collect();
                        lines.push(Ok(String::from_utf8_lossy(&line).trim_end().to_owned()));
                    }
                }
                Err(error) => lines.push(Err(error.into())),
            }
            stream::iter(lines)
        });
        Ok(lines.boxed())
    }
}

impl Answer {
    pub(crate) fn expect(self, status: StatusCode) -> Result<Self> {
        ensure!(
            self.status == status,
            "{}: {} where {status} was expected: {}",
            self.what,
            self.status,
            self.text
        );
        Ok(self)
    }

    /// The error of an answer that must have this status and contain this message.
    pub(crate) fn error(self, status: StatusCode, message: &str) -> Result<Value> {
        let answer = self.expect(status)?;
        let error = &answer.json["error"];
        let found = error["message"].as_str().unwrap_or_default();
        ensure!(
            found.contains(message),
            "{}: {message:?} is not in {found:?}",
            answer.what
        );
        Ok(error.clone())
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}
