//! What a manager's agent serves workers: nodes without access to the store. Who asks is known from the
//! certificate; what that node may read and write is decided in the library (`cluster/workers`). Imports
//! `identity` and `tls`.
//!
//! Everything that a worker sends is bounded: its connections (in `listener`), its requests at a time and
//! each second, their size and time, its leases, and its streams.

#[cfg(test)]
mod crowd;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    body::{Body, Bytes, to_bytes},
    extract::{ConnectInfo, Query, Request as HttpRequest, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use futures_util::stream;
use mesh_orchestrator::{
    cluster::{Cluster, WorkerError},
    objects::NodeId,
    secrets::{Kind, Vault, VaultError},
    store::{
        Entry, Event, Heartbeat, Lease, MAX_TRANSACTION_BYTES, Revision, WatchBatch,
        remote::wire::{Answer, Failure, Frame, Request, Sent, transaction},
    },
};
use mesh_support::{error_chain, watched::Watched as _};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    time::{Instant, MissedTickBehavior, interval_at, sleep, timeout},
};
use tower::ServiceExt as _;
use tracing::{debug, info};

use super::{
    identity,
    options::{MAX_HEARTBEAT, MIN_HEARTBEAT, MISSED_HEARTBEATS},
    runtime::ImageReference,
    tls::Peer,
    worker::AddressBlock,
};

/// Where workers ask.
pub(super) const ASK_PATH: &str = "/v1/worker/ask";
/// Where they follow what they may read.
pub(super) const OBJECTS_PATH: &str = "/v1/worker/objects";

/// A worker's requests at a time.
const TOGETHER: usize = 4;
/// A worker's requests each second, on average, and how many at once after a pause.
const EACH_SECOND: f64 = 20.0;
const BURST: f64 = 200.0;
/// A request counts once more for each of this many bytes.
const UNIT_BYTES: f64 = 65_536.0;
/// How many requests it counts for to be shown all objects.
const LIST_COST: f64 = 20.0;
/// The longest request: as JSON in JSON, a transaction may take twice its length.
const MAX_REQUEST_BYTES: usize = 2 * MAX_TRANSACTION_BYTES + (64 << 10);
/// How long a request may take, its body included.
const PATIENCE: Duration = Duration::from_secs(10);
/// A worker's leases: one, and those of its agents before that have not ended yet.
const LEASES: usize = 8;
/// How long a worker's block of addresses is remembered.
const KEEP_BLOCK: Duration = Duration::from_secs(60);
/// How many workers get all their objects at a time.
const LISTS: usize = 2;
/// How many bytes of objects go into one line, about.
const PART_BYTES: usize = 256 << 10;
/// Lines that a worker may be behind.
const AHEAD: usize = 16;
/// How long a worker may not read.
const STALLED: Duration = Duration::from_secs(10);
/// How often a worker is shown that the manager is alive.
const ALIVE: Duration = Duration::from_secs(1);
/// How often leases are looked at.
const CHECK: Duration = Duration::from_secs(1);

/// The workers of this manager.
#[derive(Clone, Debug)]
pub(super) struct Workers {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    cluster: Cluster,
    vault: Arc<Vault>,
    sessions: Mutex<BTreeMap<NodeId, Arc<Session>>>,
    lists: Arc<Semaphore>,
}

/// One worker.
#[derive(Debug)]
struct Session {
    turns: Semaphore,
    bucket: Mutex<(f64, Instant)>,
    leases: Mutex<Vec<Held>>,
    block: tokio::sync::Mutex<Option<(AddressBlock, Instant)>>,
    /// The number of its newest stream.
    stream: watch::Sender<u64>,
}

/// A lease that this manager renews as long as the worker's heartbeats arrive.
#[derive(Debug)]
struct Held {
    lease: Arc<Lease>,
    until: Instant,
    time_to_live: Duration,
}

impl Default for Session {
    fn default() -> Self {
        Self {
            turns: Semaphore::new(TOGETHER),
            bucket: Mutex::new((BURST, Instant::now())),
            leases: Mutex::default(),
            block: tokio::sync::Mutex::default(),
            stream: watch::Sender::new(0),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Session {
    /// Whether one more request is allowed now, which counts for `cost`.
    fn take(&self, now: Instant, cost: f64) -> bool {
        let mut bucket = lock(&self.bucket);
        let (left, at) = *bucket;
        let left = (left + now.saturating_duration_since(at).as_secs_f64() * EACH_SECOND).min(BURST);
        let is_allowed = left >= cost;
        *bucket = (if is_allowed { left - cost } else { left }, now);
        is_allowed
    }

    /// Counts a request's length, which is known only then: those that follow wait for it.
    fn charge(&self, bytes: usize) {
        // At most a few megabytes.
        let bytes = f64::from(u32::try_from(bytes).unwrap_or(u32::MAX));
        lock(&self.bucket).0 -= bytes / UNIT_BYTES;
    }

    fn lease(&self, id: i64) -> Option<Arc<Lease>> {
        let leases = lock(&self.leases);
        let held = leases
            .iter()
            .find(|held| held.lease.id() == id && !held.lease.is_lost());
        held.map(|held| Arc::clone(&held.lease))
    }
}

impl Workers {
    pub(super) fn new(cluster: &Cluster, vault: &Arc<Vault>) -> Self {
        Self {
            inner: Arc::new(Inner {
                cluster: cluster.clone(),
                vault: Arc::clone(vault),
                sessions: Mutex::default(),
                lists: Arc::new(Semaphore::new(LISTS)),
            }),
        }
    }

    /// Ends what workers no longer renew, for ever. Of a removed worker, everything ends at once.
    pub(super) async fn keep(&self) {
        loop {
            sleep(CHECK).await;
            self.end_old(Instant::now());
        }
    }

    fn end_old(&self, now: Instant) {
        let is_admitted = |id: &NodeId| {
            let cluster = &self.inner.cluster;
            cluster.read(|state| state.nodes().contains_key(id))
        };
        lock(&self.inner.sessions).retain(|id, session| {
            let is_admitted = is_admitted(id);
            lock(&session.leases).retain(|held| is_admitted && held.until > now && !held.lease.is_lost());
            is_admitted
        });
    }

    fn session(&self, worker: &NodeId) -> Arc<Session> {
        let mut sessions = lock(&self.inner.sessions);
        Arc::clone(sessions.entry(worker.clone()).or_default())
    }

    async fn answer(&self, name: &str, request: HttpRequest) -> Answer {
        let worker = match self.inner.cluster.worker(name) {
            Ok(worker) => worker,
            Err(error) => return failed(error),
        };
        let session = self.session(&worker);
        let Ok(_turn) = session.turns.try_acquire() else {
            return busy();
        };
        if !session.take(Instant::now(), 1.0) {
            return busy();
        }
        let answered = async {
            let body = to_bytes(request.into_body(), MAX_REQUEST_BYTES).await;
            let Ok(body) = body else {
                return refused("the request is too large or incomplete");
            };
            session.charge(body.len());
            match serde_json::from_slice(&body) {
                Ok(request) => self.carry_out(&worker, &session, request).await,
                Err(error) => refused(&format!("the request cannot be understood: {error}")),
            }
        };
        match timeout(PATIENCE, answered).await {
            Ok(answer) => answer,
            Err(_) => Answer::Failed(Failure::OutcomeUnknown("the manager took too long".to_owned())),
        }
    }

    async fn carry_out(&self, worker: &NodeId, session: &Session, request: Request) -> Answer {
        let cluster = &self.inner.cluster;
        let answer = match request {
            Request::Get { key } => cluster
                .worker_get(worker, &key)
                .await
                .map(|entry| Answer::Entry(entry.map(Sent::from))),
            Request::Commit {
                expected,
                writes,
                lease,
            } => {
                self.commit(worker, session, transaction(expected, writes), lease)
                    .await
            }
            Request::Lease { interval, missed } => self.grant(session, interval, missed).await,
            Request::Renew { lease } => Ok(renew(session, lease)),
            Request::Revoke { lease } => {
                lock(&session.leases).retain(|held| held.lease.id() != lease);
                Ok(Answer::Done)
            }
            Request::Reveal { kind, name } => Ok(self.reveal(worker, &kind, &name).await),
            Request::Block => self
                .block(worker, session)
                .await
                .map(|block| Answer::Block(block.number())),
        };
        answer.unwrap_or_else(|error| {
            debug!(%worker, error = error_chain(&error), "a worker's request was not carried out");
            failed(error)
        })
    }

    async fn commit(
        &self,
        worker: &NodeId,
        session: &Session,
        transaction: mesh_orchestrator::store::Transaction,
        lease: Option<i64>,
    ) -> Result<Answer, WorkerError> {
        let lease = match lease {
            None => None,
            Some(id) => match session.lease(id) {
                Some(lease) => Some(lease),
                None => return Ok(Answer::Failed(Failure::NoLease)),
            },
        };
        let addresses = match lease {
            // A registration has no task's address.
            Some(_) => None,
            None => Some(self.block(worker, session).await?.addresses()),
        };
        let cluster = &self.inner.cluster;
        let revision = cluster
            .worker_commit(worker, &transaction, addresses, lease.as_deref())
            .await?;
        Ok(Answer::Revision(revision))
    }

    async fn grant(&self, session: &Session, interval: u64, missed: u32) -> Result<Answer, WorkerError> {
        let heartbeat = Heartbeat {
            interval: Duration::from_millis(interval).clamp(MIN_HEARTBEAT, MAX_HEARTBEAT),
            missed: missed.clamp(1, MISSED_HEARTBEATS),
        };
        if lock(&session.leases).len() >= LEASES {
            return Ok(busy());
        }
        let lease = self.inner.cluster.store().lease(heartbeat).await?;
        let (id, time_to_live) = (lease.id(), heartbeat.time_to_live());
        lock(&session.leases).push(Held {
            lease: Arc::new(lease),
            until: Instant::now() + time_to_live,
            time_to_live,
        });
        Ok(Answer::Lease(id))
    }

    /// The worker's block of addresses, claimed in its name.
    async fn block(&self, worker: &NodeId, session: &Session) -> Result<AddressBlock, WorkerError> {
        let mut known = session.block.lock().await;
        if let Some((block, at)) = *known
            && at.elapsed() < KEEP_BLOCK
        {
            return Ok(block);
        }
        let store = self.inner.cluster.store();
        let block = identity::claim_block(store.as_ref(), worker).await;
        let block = block.map_err(|error| match error {
            identity::IdentityError::Store(error) => WorkerError::Store(error),
            error => WorkerError::Refused(error_chain(&error)),
        })?;
        *known = Some((block, Instant::now()));
        Ok(block)
    }

    async fn reveal(&self, worker: &NodeId, kind: &str, name: &str) -> Answer {
        let Some(kind) = Kind::ALL.into_iter().find(|known| known.segment() == kind) else {
            return refused("there are no such secrets");
        };
        let registry = |image: &str| ImageReference::parse(image).registry().to_owned();
        let may = self.inner.cluster.worker_may_reveal(worker, kind, name, registry);
        if !may {
            info!(%worker, %kind, name, "a worker asked for a secret that no task of it has");
            return refused(&format!("no task of this node has the {kind} {name}"));
        }
        match self.inner.vault.reveal(kind, name).await {
            Ok(value) => Answer::Value(Some(BASE64.encode(value.expose()))),
            Err(VaultError::Missing { .. }) => Answer::Value(None),
            Err(VaultError::Store(error)) => Answer::Failed(error.into()),
            Err(error) => Answer::Failed(Failure::Unavailable(error_chain(&error))),
        }
    }

    /// Shows a worker what it may read, until it stops reading or begins anew.
    async fn show(
        &self,
        name: &str,
        after: Option<Revision>,
        into: &mpsc::Sender<Frame>,
    ) -> Result<(), WorkerError> {
        let worker = self.inner.cluster.worker(name)?;
        let session = self.session(&worker);
        if !session.take(Instant::now(), LIST_COST) {
            return Err(WorkerError::Refused("too many requests".to_owned()));
        }
        session.stream.send_modify(|number| *number += 1);
        let mut newer = session.stream.subscribe();
        newer.mark_unchanged();
        let mut alive = interval_at(Instant::now() + ALIVE, ALIVE);
        alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let available = self.inner.cluster.available();
        // Many workers may come at once, after a manager was lost: those that wait for their turn must not
        // take this one for lost, too.
        let listed = async {
            let _turn = self.inner.lists.acquire().await;
            let cluster = &self.inner.cluster;
            if let Some(after) = after
                && let Some((feed, missed)) = cluster.worker_feed_after(&worker, after).await?
            {
                return Ok((feed, missed, true));
            }
            let mut feed = cluster.worker_feed(&worker).await?;
            let all = feed.next().await?;
            Ok::<_, WorkerError>((feed, all, false))
        };
        tokio::pin!(listed);
        let (mut feed, first, is_resumed) = loop {
            tokio::select! {
                listed = &mut listed => break listed?,
                _ = alive.tick() => if !send(into, Frame::Alive).await {
                    return Ok(());
                },
                () = into.closed() => return Ok(()),
            }
        };
        let is_sent = match is_resumed {
            true => send(into, Frame::Resumed).await && send(into, Frame::change(first)).await,
            false => send_all(into, first).await,
        };
        if !is_sent {
            return Ok(());
        }
        loop {
            let frame = tokio::select! {
                batch = feed.next() => Frame::change(batch?),
                _ = alive.tick() => match available.current() {
                    true => Frame::Alive,
                    // Another manager may reach it.
                    false => return Err(WorkerError::Refused("the manager cannot reach the store".to_owned())),
                },
                _ = newer.changed() => return Err(WorkerError::Refused("the node follows elsewhere".to_owned())),
                () = into.closed() => return Ok(()),
            };
            if !send(into, frame).await {
                return Ok(());
            }
        }
    }
}

/// Sends all objects in parts. False if the worker does not read any more.
async fn send_all(into: &mpsc::Sender<Frame>, batch: WatchBatch) -> bool {
    let entries = batch.events.into_iter().filter_map(|event| match event {
        Event::Put(entry) => Some(entry),
        Event::Delete(_) => None,
    });
    let (mut part, mut bytes) = (Vec::new(), 0);
    for entry in entries {
        bytes += size(&entry);
        part.push(Sent::from(entry));
        if bytes >= PART_BYTES {
            bytes = 0;
            if !send(into, Frame::Part(std::mem::take(&mut part))).await {
                return false;
            }
        }
    }
    send(into, Frame::Part(part)).await && send(into, Frame::Whole(batch.revision)).await
}

fn size(entry: &Entry) -> usize {
    entry.key.as_str().len() + entry.value.len()
}

/// False if the worker does not read any more.
async fn send(into: &mpsc::Sender<Frame>, frame: Frame) -> bool {
    matches!(timeout(STALLED, into.send(frame)).await, Ok(Ok(())))
}

fn renew(session: &Session, id: i64) -> Answer {
    let mut leases = lock(&session.leases);
    let held = leases
        .iter_mut()
        .find(|held| held.lease.id() == id && !held.lease.is_lost());
    match held {
        Some(held) => {
            held.until = Instant::now() + held.time_to_live;
            Answer::Done
        }
        None => Answer::Failed(Failure::NoLease),
    }
}

fn busy() -> Answer {
    Answer::Failed(Failure::Unavailable(
        "this node sends too many requests".to_owned(),
    ))
}

fn refused(why: &str) -> Answer {
    Answer::Failed(Failure::Refused(why.to_owned()))
}

fn failed(error: WorkerError) -> Answer {
    Answer::Failed(match error {
        WorkerError::Store(error) => error.into(),
        WorkerError::Behind(_) | WorkerError::Ended => Failure::Unavailable(error_chain(&error)),
        error => Failure::Refused(error_chain(&error)),
    })
}

/// Serves agents what they may use: those with access to the store the one, workers the other.
pub(super) fn by_peer(agents: Router, workers: Option<Router>) -> Router {
    let serve = move |ConnectInfo(peer): ConnectInfo<Peer>, request: HttpRequest| {
        let router = match peer {
            Peer::Agent => Some(agents.clone()),
            Peer::Worker(_) => workers.clone(),
            Peer::Anyone => None,
        };
        async move {
            match router {
                // A router answers every request.
                Some(router) => router
                    .oneshot(request)
                    .await
                    .unwrap_or_else(|never: Infallible| match never {}),
                None => StatusCode::FORBIDDEN.into_response(),
            }
        }
    };
    Router::new().fallback(serve)
}

/// What workers may use.
pub(super) fn routes(workers: &Workers) -> Router {
    Router::new()
        .route(ASK_PATH, post(ask))
        .route(OBJECTS_PATH, get(objects))
        .fallback(|| async { (StatusCode::FORBIDDEN, "workers may not use this") })
        .with_state(workers.clone())
}

async fn ask(
    State(workers): State<Workers>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: HttpRequest,
) -> Response {
    let Peer::Worker(name) = peer else {
        return StatusCode::FORBIDDEN.into_response();
    };
    Json(workers.answer(&name, request).await).into_response()
}

/// From where on a worker is shown changes.
#[derive(serde::Deserialize)]
struct Begin {
    after: Option<Revision>,
}

async fn objects(
    State(workers): State<Workers>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Query(begin): Query<Begin>,
) -> Response {
    let Peer::Worker(name) = peer else {
        return StatusCode::FORBIDDEN.into_response();
    };
    let (into, frames) = mpsc::channel(AHEAD);
    tokio::spawn(async move {
        if let Err(error) = workers.show(&name, begin.after, &into).await {
            let text = error_chain(&error);
            debug!(worker = name, error = text, "a worker is shown nothing more");
            send(&into, Frame::Failed(text)).await;
        }
    });
    let lines = stream::unfold(frames, |mut frames| async move {
        let frame = frames.recv().await?;
        let mut line = serde_json::to_vec(&frame).unwrap_or_default();
        line.push(b'\n');
        Some((Ok::<_, Infallible>(Bytes::from(line)), frames))
    });
    Body::from_stream(lines).into_response()
}
