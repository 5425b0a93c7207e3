//! The managers of a worker, over mutual TLS: one is asked as long as it answers, and then another one.
//! Imports `exchange` and `workers`' paths.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use mesh_orchestrator::store::{
    Revision, Source,
    remote::{
        Frames, Managers, NotAsked,
        wire::{Answer, Failure, Frame, Request},
    },
};
use mesh_support::error_chain;
use tokio::{io::AsyncReadExt, time::timeout};
use tokio_util::codec::{FramedRead, LinesCodec};
use tracing::info;

use super::{
    certificates::Followed,
    exchange::{Body, ExchangeError, exchange},
    tls::Client,
    workers::{ASK_PATH, OBJECTS_PATH},
};

/// Timeout of each step. The node must be registered with another manager before three heartbeats have
/// passed.
const LIMIT: Duration = Duration::from_secs(3);
/// How long a manager may show nothing: it says each second that it is alive.
const SILENCE: Duration = Duration::from_secs(4);
/// The longest answer: a config has a megabyte at most.
const MAX_ANSWER_BYTES: u64 = 8 << 20;
/// The longest part of the objects.
const MAX_LINE_BYTES: usize = 64 << 20;

/// The managers, and which of them is asked.
#[derive(Debug)]
pub(super) struct TlsManagers {
    addresses: Vec<String>,
    current: Arc<AtomicUsize>,
    client: Followed<Client>,
    attempts: Attempts,
}

/// Which managers did not serve this node when they were last tried, and why.
#[derive(Clone, Debug, Default)]
pub(super) struct Attempts(Arc<Mutex<BTreeMap<String, String>>>);

impl Attempts {
    fn failed(&self, manager: &str, why: &Source) {
        let why = error_chain(why.as_ref());
        // Most reasons name the manager themselves.
        let why = why
            .strip_prefix(&format!("{manager}: "))
            .unwrap_or(&why)
            .to_owned();
        self.lock().insert(manager.to_owned(), why);
    }

    fn served(&self, manager: &str) {
        self.lock().remove(manager);
    }

    /// One manager after the other; empty if all served it.
    pub(super) fn describe(&self) -> String {
        let lines: Vec<String> = self
            .lock()
            .iter()
            .map(|(manager, why)| format!("manager {manager}: {why}"))
            .collect();
        lines.join("; ")
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TlsManagers {
    /// Managers at `host:port`. Each worker begins with another one.
    pub(super) fn new(addresses: Vec<String>, client: Followed<Client>) -> Self {
        let first = fastrand::usize(..addresses.len().max(1));
        Self::beginning_with(first, addresses, client)
    }

    pub(super) fn beginning_with(first: usize, addresses: Vec<String>, client: Followed<Client>) -> Self {
        Self {
            addresses,
            current: Arc::new(AtomicUsize::new(first)),
            client,
            attempts: Attempts::default(),
        }
    }

    /// Which of them do not serve this node, and why.
    pub(super) fn attempts(&self) -> Attempts {
        self.attempts.clone()
    }

    /// Goes on to the next manager. A certificate of this node that is not valid now is the likeliest reason.
    fn left(&self, number: usize, address: &str, source: Source) -> Source {
        avoid(&self.current, number);
        let source = match self.client.current().not_valid(SystemTime::now()) {
            Some(reason) => format!("{reason}; {}", error_chain(source.as_ref())).into(),
            None => source,
        };
        self.attempts.failed(address, &source);
        source
    }

    fn current(&self) -> (usize, &str) {
        let number = self.current.load(Ordering::Relaxed);
        let address = self.addresses.get(number % self.addresses.len().max(1));
        (number, address.map_or("", String::as_str))
    }
}

/// Asks a manager, and reads its answer.
pub(super) async fn ask(client: &Client, address: &str, body: &[u8]) -> Result<Answer, ExchangeError> {
    let reader = exchange(client, address, None, ASK_PATH, Some(body), LIMIT).await?;
    let mut answer = Vec::new();
    let failed = |error| ExchangeError::Connection(address.to_owned(), error);
    timeout(LIMIT, reader.take(MAX_ANSWER_BYTES).read_to_end(&mut answer))
        .await
        .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
        .map_err(failed)?;
    serde_json::from_slice(&answer)
        .map_err(|error| failed(std::io::Error::new(std::io::ErrorKind::InvalidData, error)))
}

/// What a manager shows next.
async fn next_frame(lines: &mut FramedRead<Body, LinesCodec>, address: &str) -> Result<Frame, Source> {
    let line = match timeout(SILENCE, lines.next()).await {
        Ok(Some(line)) => line?,
        Ok(None) => return Err(format!("{address} ended the connection").into()),
        Err(_) => return Err(format!("{address} is silent").into()),
    };
    match serde_json::from_str(&line)? {
        Frame::Failed(text) => Err(format!("{address}: {text}").into()),
        frame => Ok(frame),
    }
}

/// Goes on to the next manager, unless that has happened already.
fn avoid(current: &AtomicUsize, number: usize) {
    let next = number.wrapping_add(1);
    // Another request may have been faster.
    let _ = current.compare_exchange(number, next, Ordering::Relaxed, Ordering::Relaxed);
}

#[async_trait]
impl Managers for TlsManagers {
    fn describe(&self) -> String {
        format!("the managers {}", self.addresses.join(", "))
    }

    async fn ask(&self, request: &Request) -> Result<Answer, NotAsked> {
        // Text and numbers only: this cannot fail.
        let body = serde_json::to_vec(request).unwrap_or_default();
        let mut last = NotAsked {
            source: "there is no manager to ask".into(),
            may_be_done: false,
        };
        for _ in 0..self.addresses.len() {
            let (number, address) = self.current();
            let source: Source = match ask(&self.client.current(), address, &body).await {
                Ok(Answer::Failed(Failure::Unavailable(text))) => format!("{address}: {text}").into(),
                Ok(answer) => {
                    match &answer {
                        Answer::Failed(Failure::Refused(text)) => {
                            self.attempts.failed(address, &text.as_str().into());
                        }
                        _ => self.attempts.served(address),
                    }
                    return Ok(answer);
                }
                Err(error) if error.is_sent() && !request.is_repeatable() => {
                    return Err(NotAsked {
                        source: self.left(number, address, error.into()),
                        may_be_done: true,
                    });
                }
                Err(error) => error.into(),
            };
            last.source = self.left(number, address, source);
        }
        Err(last)
    }

    async fn follow(&self, after: Option<Revision>) -> Result<Frames, Source> {
        let path = match after {
            Some(after) => format!("{OBJECTS_PATH}?after={after}"),
            None => OBJECTS_PATH.to_owned(),
        };
        let (number, address) = self.current();
        let (current, address) = (Arc::clone(&self.current), address.to_owned());
        let client = self.client.current();
        let reader = exchange(&client, &address, None, &path, None, LIMIT).await;
        let reader = reader.map_err(|error| self.left(number, &address, error.into()))?;
        let mut lines = FramedRead::new(reader, LinesCodec::new_with_max_length(MAX_LINE_BYTES));
        // A manager that refuses this node says so first.
        let first = next_frame(&mut lines, &address).await;
        let first = first.map_err(|error| self.left(number, &address, error))?;
        self.attempts.served(&address);
        info!(manager = address, "follows a manager");
        let attempts = self.attempts.clone();
        let rest = stream::unfold(Some(lines), move |lines| {
            let (current, address, attempts) = (Arc::clone(&current), address.clone(), attempts.clone());
            async move {
                let mut lines = lines?;
                let frame = next_frame(&mut lines, &address).await;
                if let Err(error) = &frame {
                    avoid(&current, number);
                    attempts.failed(&address, error);
                }
                let lines = frame.is_ok().then_some(lines);
                Some((frame, lines))
            }
        });
        Ok(stream::once(async { Ok(first) }).chain(rest).boxed())
    }
}
