//! What the agent provides to the API, as the tests need it: a registry, logs, and other nodes.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use futures_util::{
    StreamExt,
    stream::{self, BoxStream},
};
use mesh_orchestrator::{
    api::{
        ImageResolver, LogOptions, LogTarget, LoginError, Logs, LogsError, Peers, ResolveError, TaskLine,
        types::{LogLine, LogStream},
    },
    objects::{Node, Task},
};
use reqwest::Method;

use crate::client::Request;

/// The password that no registry accepts.
pub(crate) const WRONG: &str = "wrong";

/// A registry whose tags tests can change.
#[derive(Debug, Default)]
pub(crate) struct Registry(Mutex<BTreeMap<String, String>>);

impl Registry {
    pub(crate) fn push(&self, image: &str, digest: &str) {
        let mut images = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        images.insert(image.to_owned(), digest.to_owned());
    }
}

#[async_trait]
impl ImageResolver for Registry {
    async fn digest(&self, image: &str) -> Result<String, ResolveError> {
        let images = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        images.get(image).cloned().ok_or_else(|| ResolveError {
            image: image.to_owned(),
            source: "manifest unknown".into(),
        })
    }

    async fn log_in(&self, registry: &str, _: &str, password: &str) -> Result<(), LoginError> {
        if password != WRONG {
            return Ok(());
        }
        Err(LoginError {
            registry: registry.to_owned(),
            source: "unauthorized: incorrect username or password".into(),
        })
    }
}

/// The service whose output is interrupted when it is followed.
pub(crate) const INTERRUPTED: &str = "interrupted";

/// Logs with two lines for each task, one second apart, with different times for each slot.
#[derive(Debug, Default)]
pub(crate) struct TwoLines {
    /// How often the output of [`INTERRUPTED`] was followed: it ends after the first line, then the engine
    /// does not answer, and then it has the second line.
    followed: AtomicUsize,
}

#[async_trait]
impl Logs for TwoLines {
    async fn lines(
        &self,
        task: &Task,
        options: &LogOptions,
    ) -> Result<BoxStream<'static, Result<TaskLine, LogsError>>, LogsError> {
        let slot = task.slot.to_string();
        let line = |second: u32, stream, text: &str| {
            Ok(TaskLine {
                time: format!("2026-11-21T19:00:0{second}.00000000{slot}Z"),
                stream,
                line: text.to_owned(),
            })
        };
        let mut lines = vec![
            line(1, LogStream::Stdout, "first line"),
            line(2, LogStream::Stderr, "second line"),
        ];
        if &*task.service_name == INTERRUPTED {
            let times = match options.follow {
                true => self.followed.fetch_add(1, Ordering::Relaxed),
                false => 0,
            };
            match times {
                0 => {
                    lines.pop();
                    return Ok(stream::iter(lines).boxed());
                }
                1 | 2 => {
                    return Err(LogsError {
                        subject: task.name(),
                        source: "the engine restarts".into(),
                    });
                }
                _ => {}
            }
        }
        if let Some(tail) = options.tail {
            lines.drain(
                ..lines
                    .len()
                    .saturating_sub(usize::try_from(tail).unwrap_or(usize::MAX)),
            );
        }
        let lines = stream::iter(lines);
        Ok(if options.follow {
            lines.chain(stream::pending()).boxed()
        } else {
            lines.boxed()
        })
    }
}

/// Reaches the APIs of other nodes at their sockets in a directory.
#[derive(Debug)]
pub(crate) struct Sockets(pub(crate) PathBuf);

#[async_trait]
impl Peers for Sockets {
    async fn lines(
        &self,
        node: &Node,
        target: &LogTarget,
        options: &LogOptions,
    ) -> Result<BoxStream<'static, Result<LogLine, LogsError>>, LogsError> {
        let subject = node.hostname.clone();
        let failed = move |source: anyhow::Error| LogsError {
            subject: subject.clone(),
            source: source.into(),
        };
        let socket = self.0.join(format!("{}.admin", node.id));
        let lines = async {
            Request::new(&socket, Method::GET, &target.local_path(options))?
                .lines()
                .await
        };
        let lines = lines.await.map_err(&failed)?;
        Ok(lines
            .map(move |line| {
                line.and_then(|line| Ok(serde_json::from_str(&line)?))
                    .map_err(&failed)
            })
            .boxed())
    }
}
