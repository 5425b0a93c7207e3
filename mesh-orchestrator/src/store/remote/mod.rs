//! The store of a node that has no access to one: it asks managers, which show it what concerns it and take
//! what it reports. Depends on the store's trait and plain data. How managers are reached is the agent's.
//!
//! A list is what the worker may read; watches go on from a list that was just made. When a manager is lost,
//! the watch goes on with another one, from the revision that it has come to. Where that is no longer
//! possible it ends, and the list is read.

pub mod wire;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use futures_util::{StreamExt, stream, stream::BoxStream};
use tokio::time::{Instant, sleep, timeout};

use self::wire::{Answer, Failure, Frame, Request};
use super::{
    Entry, Event, Expected, Heartbeat, Key, Lease, Listing, Prefix, Revision, Source, Store, StoreError,
    Transaction, Watch, WatchBatch, lease::Keeper, watch::WatchSender,
};

/// The pause before a heartbeat is tried again.
const RETRY: Duration = Duration::from_millis(200);

/// How long a watch looks for a manager to go on with, before all objects are read again.
const RESUME: Duration = Duration::from_secs(10);

/// The objects that a manager shows, without an end.
pub type Frames = BoxStream<'static, Result<Frame, Source>>;

/// No manager did what was asked for.
#[derive(Debug, thiserror::Error)]
#[error("no manager answered")]
pub struct NotAsked {
    /// Why the last one did not.
    pub source: Source,
    /// Whether one may have done it all the same.
    pub may_be_done: bool,
}

/// The managers, as the agent reaches them. It goes on to another one when one fails.
#[async_trait]
pub trait Managers: std::fmt::Debug + Send + Sync + 'static {
    /// Their addresses, for messages.
    fn describe(&self) -> String;

    /// Asks one of them.
    ///
    /// # Errors
    /// When none answers.
    async fn ask(&self, request: &Request) -> Result<Answer, NotAsked>;

    /// Follows what one of them shows; `after` a revision up to which everything is known, if it can, and
    /// otherwise from all objects on. The stream fails when the manager is silent or its store does not
    /// answer; another one is followed then.
    ///
    /// # Errors
    /// When none answers.
    async fn follow(&self, after: Option<Revision>) -> Result<Frames, Source>;
}

/// A store behind managers.
#[derive(Debug)]
pub struct RemoteStore {
    managers: Arc<dyn Managers>,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    /// A list that a manager has begun in place of the changes that it was asked for.
    begun: Option<Frames>,
    /// The changes after the last list.
    rest: Option<(Revision, Frames)>,
    /// The newest revision of what was shown.
    newest: Revision,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Shared")
            .field("newest", &self.newest)
            .finish_non_exhaustive()
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RemoteStore {
    /// A store behind these managers. Asks nothing yet.
    #[must_use]
    pub fn new(managers: Arc<dyn Managers>) -> Self {
        Self {
            managers,
            shared: Arc::default(),
        }
    }

    /// A value in clear text, if there is one.
    pub(crate) async fn value(&self, kind: &str, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let request = Request::Reveal {
            kind: kind.to_owned(),
            name: name.to_owned(),
        };
        match self.ask("read a secret", &request).await? {
            Answer::Value(Some(text)) => BASE64
                .decode(text)
                .map(Some)
                .map_err(|error| self.unavailable("read a secret", error.into())),
            Answer::Value(None) => Ok(None),
            _ => Err(self.puzzled("read a secret")),
        }
    }

    /// The number of the node's block of addresses.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn block(&self) -> Result<u32, StoreError> {
        match self.ask("claim a block of addresses", &Request::Block).await? {
            Answer::Block(number) => Ok(number),
            _ => Err(self.puzzled("claim a block of addresses")),
        }
    }

    async fn ask(&self, operation: &'static str, request: &Request) -> Result<Answer, StoreError> {
        let answer = match self.managers.ask(request).await {
            Ok(answer) => answer,
            Err(NotAsked {
                source,
                may_be_done: true,
            }) => {
                return Err(StoreError::OutcomeUnknown {
                    store: self.managers.describe(),
                    source,
                });
            }
            Err(NotAsked { source, .. }) => return Err(self.unavailable(operation, source)),
        };
        match answer {
            Answer::Failed(Failure::Conflict { key, expected, found }) => Err(StoreError::Conflict {
                key,
                expected: expected.map_or(Expected::Absent, Expected::At),
                found,
            }),
            Answer::Failed(Failure::TooLarge { found, limit }) => Err(StoreError::TooLarge {
                what: "bytes or operations",
                found,
                limit,
            }),
            Answer::Failed(Failure::OutcomeUnknown(text)) => Err(StoreError::OutcomeUnknown {
                store: self.managers.describe(),
                source: text.into(),
            }),
            // A refusal is no error that ends anything: an operator may admit the node again.
            Answer::Failed(Failure::Unavailable(text) | Failure::Refused(text)) => {
                Err(self.unavailable(operation, text.into()))
            }
            Answer::Failed(Failure::NoLease) => {
                Err(self.unavailable(operation, "the manager does not have the lease".into()))
            }
            answer => Ok(answer),
        }
    }

    fn unavailable(&self, operation: &'static str, source: Source) -> StoreError {
        StoreError::Unavailable {
            operation,
            store: self.managers.describe(),
            advice: "do the managers' agents run, and is this node admitted there?",
            source,
        }
    }

    fn puzzled(&self, operation: &'static str) -> StoreError {
        self.unavailable(
            operation,
            "the manager gave another answer than was asked for".into(),
        )
    }

    async fn committed(&self, request: &Request) -> Result<Revision, StoreError> {
        match self.ask("commit", request).await? {
            Answer::Revision(revision) => Ok(revision),
            _ => Err(self.puzzled("commit")),
        }
    }
}

#[async_trait]
impl Store for RemoteStore {
    fn describe(&self) -> String {
        self.managers.describe()
    }

    async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        match self.ask("read", &Request::Get { key: key.clone() }).await? {
            Answer::Entry(entry) => Ok(entry.map(Entry::from)),
            _ => Err(self.puzzled("read")),
        }
    }

    async fn list(&self, prefix: &Prefix, page: usize) -> Result<Listing, StoreError> {
        let failed = |source| self.unavailable("list", source);
        let begun = lock(&self.shared).begun.take();
        let mut frames = match begun {
            Some(frames) => frames,
            None => self.managers.follow(None).await.map_err(failed)?,
        };
        let mut entries: Vec<Entry> = Vec::new();
        let revision = loop {
            match frames.next().await {
                Some(Ok(Frame::Part(part))) => entries.extend(part.into_iter().map(Entry::from)),
                Some(Ok(Frame::Whole(revision))) => break revision,
                Some(Ok(Frame::Alive | Frame::Resumed | Frame::Change { .. })) => {}
                Some(Ok(Frame::Failed(text))) => return Err(failed(text.into())),
                Some(Err(error)) => return Err(failed(error)),
                None => return Err(failed("the manager ended the list".into())),
            }
        };
        entries.retain(|entry| prefix.contains(&entry.key));
        entries.sort_by(|one, other| one.key.cmp(&other.key));
        *lock(&self.shared) = Shared {
            begun: None,
            rest: Some((revision, frames)),
            newest: revision,
        };
        let pages: Vec<_> = entries
            .chunks(page.max(1))
            .map(|page| Ok(page.to_vec()))
            .collect();
        Ok(Listing {
            revision,
            pages: stream::iter(pages).boxed(),
        })
    }

    async fn commit(&self, transaction: Transaction) -> Result<Revision, StoreError> {
        transaction.check()?;
        self.committed(&Request::commit(&transaction, None)).await
    }

    async fn lease(&self, heartbeat: Heartbeat) -> Result<Lease, StoreError> {
        let request = Request::Lease {
            interval: u64::try_from(heartbeat.interval.as_millis()).unwrap_or(u64::MAX),
            missed: heartbeat.missed,
        };
        let requested = Instant::now();
        let Answer::Lease(id) = self.ask("grant a lease", &request).await? else {
            return Err(self.puzzled("grant a lease"));
        };
        let holding = Holding {
            managers: Arc::clone(&self.managers),
            id,
            interval: heartbeat.interval,
            time_to_live: heartbeat.time_to_live(),
            valid_until: requested + heartbeat.time_to_live(),
        };
        Ok(Lease::start(id, move |keeper| holding.keep(keeper)))
    }

    async fn commit_under(&self, lease: &Lease, transaction: Transaction) -> Result<Revision, StoreError> {
        transaction.check()?;
        self.committed(&Request::commit(&transaction, Some(lease.id())))
            .await
    }

    async fn watch(&self, prefix: &Prefix, after: Revision) -> Result<Watch, StoreError> {
        let rest = lock(&self.shared).rest.take();
        match rest {
            Some((revision, frames)) if revision == after => {
                let passed = Passed {
                    managers: Arc::clone(&self.managers),
                    shared: Arc::clone(&self.shared),
                    prefix: prefix.clone(),
                };
                Ok(Watch::start(|sender| passed.on(frames, sender)))
            }
            _ => Err(StoreError::Compacted {
                requested: after,
                oldest: Revision(after.0 + 1),
            }),
        }
    }

    /// As far as it was shown: of the rest, the worker knows nothing.
    async fn newest(&self) -> Result<Revision, StoreError> {
        Ok(lock(&self.shared).newest)
    }
}

/// What a watch passes on.
struct Passed {
    managers: Arc<dyn Managers>,
    shared: Arc<Mutex<Shared>>,
    prefix: Prefix,
}

impl Passed {
    /// Passes changes on until no manager shows them any more.
    async fn on(self, mut frames: Frames, sender: WatchSender) {
        loop {
            let Err(source) = self.all(&mut frames, &sender).await else {
                // The reader is gone.
                return;
            };
            match self.resume().await {
                Some(resumed) => frames = resumed,
                None => {
                    let lost = StoreError::Unavailable {
                        operation: "watch",
                        store: self.managers.describe(),
                        advice: "do the managers' agents run, and is this node admitted there?",
                        source,
                    };
                    // The reader may be gone.
                    let _ = sender.send(Err(lost)).await;
                    return;
                }
            }
        }
    }

    /// Passes changes on as long as there is a reader, or until the manager is lost.
    async fn all(&self, frames: &mut Frames, sender: &WatchSender) -> Result<(), Source> {
        loop {
            match frames.next().await {
                Some(Ok(Frame::Change {
                    revision,
                    put,
                    delete,
                })) => {
                    let mut events: Vec<Event> = delete.into_iter().map(Event::Delete).collect();
                    events.extend(put.into_iter().map(|sent| Event::Put(sent.into())));
                    events.retain(|event| self.prefix.contains(event.key()));
                    if !events.is_empty() && sender.send(Ok(WatchBatch { revision, events })).await.is_err() {
                        return Ok(());
                    }
                    lock(&self.shared).newest = revision;
                }
                Some(Ok(Frame::Alive)) => {}
                Some(Ok(Frame::Failed(text))) => return Err(text.into()),
                Some(Ok(Frame::Part(_) | Frame::Whole(_) | Frame::Resumed)) => {
                    return Err("the manager began again".into());
                }
                Some(Err(error)) => return Err(error),
                None => return Err("the manager ended the connection".into()),
            }
        }
    }

    /// What any manager shows after what was shown last, if one does soon.
    async fn resume(&self) -> Option<Frames> {
        let until = Instant::now() + RESUME;
        loop {
            let after = lock(&self.shared).newest;
            if let Ok(mut frames) = self.managers.follow(Some(after)).await {
                loop {
                    match frames.next().await {
                        Some(Ok(Frame::Alive)) => {}
                        Some(Ok(Frame::Resumed)) => return Some(frames),
                        Some(Ok(first @ (Frame::Part(_) | Frame::Whole(_)))) => {
                            let list = stream::once(async { Ok(first) }).chain(frames);
                            lock(&self.shared).begun = Some(list.boxed());
                            return None;
                        }
                        Some(Ok(Frame::Change { .. } | Frame::Failed(_)) | Err(_)) | None => break,
                    }
                }
            }
            if Instant::now() >= until {
                return None;
            }
            sleep(RETRY).await;
        }
    }
}

/// A lease that a manager holds for this node.
struct Holding {
    managers: Arc<dyn Managers>,
    id: i64,
    interval: Duration,
    time_to_live: Duration,
    valid_until: Instant,
}

impl Holding {
    async fn keep(mut self, keeper: Keeper) {
        let (managers, id) = (Arc::clone(&self.managers), self.id);
        let revoke = async move {
            let _ = managers.ask(&Request::Revoke { lease: id }).await;
        };
        keeper.keep(self.beat_until_lost(), revoke).await;
    }

    async fn beat_until_lost(&mut self) {
        let mut pause = self.interval.min(self.time_to_live / 3);
        loop {
            sleep(pause).await;
            let requested = Instant::now();
            if requested >= self.valid_until {
                tracing::warn!(store = self.managers.describe(), "lost a lease");
                return;
            }
            let request = Request::Renew { lease: self.id };
            let left = self.valid_until - requested;
            pause = match timeout(left, self.managers.ask(&request)).await {
                Ok(Ok(Answer::Done)) => {
                    self.valid_until = requested + self.time_to_live;
                    self.interval.min(self.time_to_live / 3)
                }
                // Another manager is asked now: it grants another lease, and the node registers anew before
                // the first one ends.
                Ok(Ok(Answer::Failed(Failure::NoLease))) => return,
                _ => RETRY,
            };
        }
    }
}
