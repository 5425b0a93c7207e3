//! A machine's connection to the simulated store: a [`Store`] whose requests take time, get lost, are
//! answered too late or not at all, and whose leases end sooner than their holder expects.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use mesh_orchestrator::store::{
    Entry, Heartbeat, Keeper, Key, Lease, Listing, Prefix, Revision, Store, StoreError, Transaction, Watch,
    WatchSender,
};
use tokio::time::{Instant, sleep, timeout};

use super::{
    desk::Desks,
    server::{NAME, Server, unavailable, unknown},
    weather::{Dice, Weather},
};

/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The latest that a commit is carried out.
pub(crate) const LATEST: Duration = Duration::from_secs(8);
/// The largest page of a list, so that lists have several.
const MOST_IN_PAGE: usize = 20;

/// What all machines share.
#[derive(Debug)]
pub(crate) struct World {
    server: Mutex<Server>,
    weather: Mutex<Weather>,
    desks: Mutex<Desks>,
    /// The number of nodes that reach the store through managers.
    pub(crate) remote: u64,
    pub(crate) dice: Dice,
}

impl World {
    pub(crate) fn new(dice: Dice, weather: Weather, remote: u64) -> Arc<Self> {
        Arc::new(Self {
            server: Mutex::new(Server::new()),
            weather: Mutex::new(weather),
            desks: Mutex::default(),
            remote,
            dice,
        })
    }

    pub(crate) fn server(&self) -> MutexGuard<'_, Server> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The managers that serve such nodes.
    pub(crate) fn desks(&self) -> MutexGuard<'_, Desks> {
        self.desks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn weather(&self) -> Weather {
        *self.weather.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn calm(&self) {
        let mut weather = self.weather.lock().unwrap_or_else(PoisonError::into_inner);
        *weather = weather.calm();
    }
}

/// One run of a machine's agent, and its connection.
pub(crate) struct Link {
    world: Arc<World>,
    is_cut: Arc<AtomicBool>,
    /// The agent was killed: nothing that it has left to do happens.
    is_dead: Arc<AtomicBool>,
}

impl fmt::Debug for Link {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Link").finish_non_exhaustive()
    }
}

impl Clone for Link {
    fn clone(&self) -> Self {
        Self {
            world: Arc::clone(&self.world),
            is_cut: Arc::clone(&self.is_cut),
            is_dead: Arc::clone(&self.is_dead),
        }
    }
}

impl Link {
    /// A connection over a cable that may be cut.
    pub(crate) fn new(world: &Arc<World>, is_cut: &Arc<AtomicBool>) -> Self {
        Self {
            world: Arc::clone(world),
            is_cut: Arc::clone(is_cut),
            is_dead: Arc::default(),
        }
    }

    /// Ends the connection together with its agent.
    pub(crate) fn kill(&self) {
        self.is_dead.store(true, Ordering::Relaxed);
    }

    /// Whether the agent was killed.
    pub(crate) fn death(&self) -> &Arc<AtomicBool> {
        &self.is_dead
    }

    fn is_cut(&self) -> bool {
        self.is_cut.load(Ordering::Relaxed)
    }

    /// The way of a message; forever, once the agent is dead.
    async fn travel(&self) {
        let way = self.world.dice.up_to(self.world.weather().latency);
        sleep(way).await;
        if self.is_dead.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    }

    /// A request that changes no entries.
    async fn ask<T>(
        &self,
        operation: &'static str,
        work: impl FnOnce(&mut Server) -> T,
    ) -> Result<T, StoreError> {
        let weather = self.world.weather();
        self.travel().await;
        if self.world.dice.per_mille(weather.refused) {
            return Err(unavailable(operation, "refused"));
        }
        if self.is_cut() || self.world.dice.per_mille(weather.lost) {
            sleep(PATIENCE).await;
            return Err(unavailable(operation, "no answer"));
        }
        let answer = work(&mut self.world.server());
        self.travel().await;
        if self.is_cut() || self.world.dice.per_mille(weather.unanswered) {
            sleep(PATIENCE).await;
            return Err(unavailable(operation, "no answer"));
        }
        Ok(answer)
    }

    async fn send(&self, transaction: Transaction, lease: Option<i64>) -> Result<Revision, StoreError> {
        let weather = self.world.weather();
        let dice = &self.world.dice;
        self.travel().await;
        if dice.per_mille(weather.refused) {
            return Err(unavailable("commit", "refused"));
        }
        if self.is_cut() {
            sleep(PATIENCE).await;
            // A client that has no connection knows that nothing was sent.
            return Err(match dice.per_mille(500) {
                true => unavailable("commit", "no connection"),
                false => unknown(),
            });
        }
        if dice.per_mille(weather.lost) {
            sleep(PATIENCE).await;
            return Err(unknown());
        }
        if dice.per_mille(weather.late) {
            let (world, after) = (Arc::clone(&self.world), dice.up_to(LATEST.as_secs() * 1_000));
            tokio::spawn(async move {
                sleep(after).await;
                // The client learns nothing of it.
                drop(world.server().commit(&transaction, lease));
            });
            sleep(PATIENCE).await;
            return Err(unknown());
        }
        let answer = self.world.server().commit(&transaction, lease);
        self.travel().await;
        if self.is_cut() || dice.per_mille(weather.unanswered) {
            sleep(dice.up_to(5_000)).await;
            return Err(unknown());
        }
        answer
    }

    /// How long a lease lives in the store: its clock may be faster.
    fn lives(&self, time_to_live: Duration) -> Duration {
        let skew = self.world.weather().skew;
        let faster = self.world.dice.random().between(0, skew);
        time_to_live * u32::try_from(100 - faster.min(100)).unwrap_or(100) / 100
    }

    async fn keep(self, lease: i64, heartbeat: Heartbeat, requested: Instant, mut keeper: Keeper) {
        let revoked = tokio::select! {
            biased;
            _ = &mut keeper.given_up => true,
            () = self.beat(lease, heartbeat, requested) => false,
        };
        if revoked {
            let revoke = self.ask("revoke a lease", |server| server.revoke(lease));
            let _ = timeout(Duration::from_secs(2), revoke).await;
        }
        keeper.lost.send_replace(true);
    }

    /// Sends heartbeats until the lease is lost.
    async fn beat(&self, lease: i64, heartbeat: Heartbeat, requested: Instant) {
        let time_to_live = heartbeat.time_to_live();
        let mut valid_until = requested + time_to_live;
        loop {
            sleep(heartbeat.interval.min(time_to_live / 3)).await;
            let left = valid_until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let requested = Instant::now();
            let lives = self.lives(time_to_live);
            let beat = self.ask("renew a lease", |server| server.renew(lease, lives));
            match timeout(left.min(time_to_live / 3), beat).await {
                Ok(Ok(true)) => valid_until = requested + time_to_live,
                Ok(Ok(false)) => return,
                Ok(Err(_)) | Err(_) => {}
            }
        }
    }

    async fn follow(self, prefix: Prefix, after: Revision, sender: WatchSender) {
        let mut newest = self.world.server().newest();
        let mut delivered = after;
        loop {
            newest.mark_unchanged();
            self.travel().await;
            let weather = self.world.weather();
            if self.is_cut() {
                sleep(Duration::from_millis(200)).await;
                continue;
            }
            if self.world.dice.per_mille(weather.broken_watch) {
                return;
            }
            if self.world.dice.per_mille(weather.lag) {
                sleep(self.world.dice.up_to(8_000)).await;
            }
            let changes = self.world.server().changes(&prefix, delivered, 8);
            let (batches, until) = match changes {
                Ok(changes) => changes,
                Err(error) => {
                    let _ = sender.send(Err(error)).await;
                    return;
                }
            };
            for batch in batches {
                if sender.send(Ok(batch)).await.is_err() {
                    return;
                }
            }
            let has_moved = until > delivered;
            delivered = until;
            if !has_moved && newest.changed().await.is_err() {
                return;
            }
        }
    }
}

#[async_trait]
impl Store for Link {
    fn describe(&self) -> String {
        NAME.to_owned()
    }

    async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        self.ask("read", |server| server.get(key)).await
    }

    async fn list(&self, prefix: &Prefix, page: usize) -> Result<Listing, StoreError> {
        let (revision, entries) = self
            .ask("list", |server| (server.revision(), server.list(prefix)))
            .await?;
        let pages: Vec<Vec<Entry>> = entries
            .chunks(page.clamp(1, MOST_IN_PAGE))
            .map(<[Entry]>::to_vec)
            .collect();
        let link = self.clone();
        let pages = stream::iter(pages.into_iter().enumerate()).then(move |(number, page)| {
            let link = link.clone();
            async move {
                if number > 0 {
                    let oldest = link.ask("list", |server| server.compacted()).await?;
                    if oldest > revision {
                        let requested = revision;
                        return Err(StoreError::Compacted { requested, oldest });
                    }
                }
                Ok(page)
            }
        });
        Ok(Listing {
            revision,
            pages: pages.boxed(),
        })
    }

    async fn commit(&self, transaction: Transaction) -> Result<Revision, StoreError> {
        self.send(transaction, None).await
    }

    async fn lease(&self, heartbeat: Heartbeat) -> Result<Lease, StoreError> {
        let requested = Instant::now();
        let lives = self.lives(heartbeat.time_to_live());
        let lease = self.ask("grant a lease", |server| server.grant(lives)).await?;
        let link = self.clone();
        Ok(Lease::start(lease, move |keeper| {
            link.keep(lease, heartbeat, requested, keeper)
        }))
    }

    async fn commit_under(&self, lease: &Lease, transaction: Transaction) -> Result<Revision, StoreError> {
        if lease.is_lost() {
            return Err(unavailable("commit under a lease", "the lease has ended"));
        }
        self.send(transaction, Some(lease.id())).await
    }

    async fn watch(&self, prefix: &Prefix, after: Revision) -> Result<Watch, StoreError> {
        self.ask("watch", |server| server.changes(prefix, after, 0).map(drop))
            .await??;
        let (link, prefix) = (self.clone(), prefix.clone());
        Ok(Watch::start(move |sender| link.follow(prefix, after, sender)))
    }

    async fn compact(&self, before: Revision) -> Result<(), StoreError> {
        self.ask("compact", |server| server.compact(before)).await
    }
}
