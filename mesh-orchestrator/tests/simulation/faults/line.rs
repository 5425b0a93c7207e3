//! The connection of a node without access to the store to the managers: requests and answers take time, get
//! lost or come too late, and what a manager shows breaks off.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use mesh_orchestrator::store::{
    Event, Revision, Source, WatchBatch,
    remote::{
        Frames, Managers, NotAsked,
        wire::{Answer, Failure, Frame, Request, Sent},
    },
};
use mesh_support::watched::Watched as _;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

use super::{
    desk::{Desk, PATIENCE},
    link::{LATEST, World},
};

/// How often a worker is shown that the manager is alive.
const ALIVE: Duration = Duration::from_secs(1);
/// How long a manager may be silent.
const SILENCE: Duration = Duration::from_secs(4);

/// A worker's connection to the managers, for one run of its agent.
#[derive(Clone)]
pub(crate) struct Line {
    world: Arc<World>,
    /// The name in the worker's certificate.
    name: String,
    is_cut: Arc<AtomicBool>,
    /// The agent was killed: nothing that it has left to do happens.
    is_dead: Arc<AtomicBool>,
    current: Arc<AtomicUsize>,
}

impl fmt::Debug for Line {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Line").finish_non_exhaustive()
    }
}

impl Line {
    pub(crate) fn new(
        world: &Arc<World>,
        name: &str,
        is_cut: &Arc<AtomicBool>,
        is_dead: &Arc<AtomicBool>,
    ) -> Self {
        Self {
            world: Arc::clone(world),
            name: name.to_owned(),
            is_cut: Arc::clone(is_cut),
            is_dead: Arc::clone(is_dead),
            current: Arc::default(),
        }
    }

    /// The manager that is asked now, if its agent runs.
    fn desk(&self) -> Option<Desk> {
        let desks = self.world.desks();
        let number = self.current.load(Ordering::Relaxed) % desks.len().max(1);
        desks.values().nth(number).cloned()
    }

    fn avoid(&self) {
        self.current.fetch_add(1, Ordering::Relaxed);
    }

    fn is_cut(&self, desk: &Desk) -> bool {
        self.is_cut.load(Ordering::Relaxed) || desk.is_cut.load(Ordering::Relaxed)
    }

    /// Whether the manager's agent runs still.
    fn is_there(&self, desk: &Desk) -> bool {
        let desks = self.world.desks();
        desks.values().any(|known| known.is(desk))
    }

    /// The way of a message; forever, once the agent is dead.
    async fn travel(&self) {
        sleep(self.world.dice.up_to(self.world.weather().latency)).await;
        if self.is_dead.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    }

    async fn ask_one(&self, desk: &Desk, request: &Request) -> Result<Answer, NotAsked> {
        let weather = self.world.weather();
        let dice = &self.world.dice;
        let failed = |why: &str, may_be_done| NotAsked {
            source: why.into(),
            may_be_done,
        };
        self.travel().await;
        if dice.per_mille(weather.refused) {
            return Err(failed("no connection", false));
        }
        if self.is_cut(desk) || dice.per_mille(weather.lost) {
            sleep(PATIENCE).await;
            return Err(failed("no answer", true));
        }
        if dice.per_mille(weather.late) {
            let (desk, name, request) = (desk.clone(), self.name.clone(), request.clone());
            let after = dice.up_to(LATEST.as_secs() * 1_000);
            tokio::spawn(async move {
                sleep(after).await;
                desk.answer(&name, request).await;
            });
            sleep(PATIENCE).await;
            return Err(failed("no answer", true));
        }
        let answer = desk.answer(&self.name, request.clone()).await;
        self.travel().await;
        if self.is_cut(desk) || !self.is_there(desk) || dice.per_mille(weather.unanswered) {
            sleep(dice.up_to(5_000)).await;
            return Err(failed("no answer", true));
        }
        Ok(answer)
    }

    /// Shows the worker what it may read, or what it has missed, until something fails.
    async fn show(self, desk: Desk, after: Option<Revision>, sender: mpsc::Sender<Result<Frame, Source>>) {
        let shown: Result<(), Source> = async {
            let worker = desk.cluster().worker(&self.name)?;
            let resumed = match after {
                Some(after) => {
                    let resumed = desk.cluster().worker_feed_after(&worker, after);
                    timeout(2 * PATIENCE, resumed).await??
                }
                None => None,
            };
            let mut feed = if let Some((feed, missed)) = resumed {
                self.travel().await;
                sender.send(Ok(Frame::Resumed)).await?;
                sender.send(Ok(Frame::change(missed))).await?;
                feed
            } else {
                let mut feed = timeout(PATIENCE, desk.cluster().worker_feed(&worker)).await??;
                let WatchBatch { revision, events } = feed.next().await?;
                let entries = events.into_iter().filter_map(|event| match event {
                    Event::Put(entry) => Some(Sent::from(entry)),
                    Event::Delete(_) => None,
                });
                self.travel().await;
                sender.send(Ok(Frame::Part(entries.collect()))).await?;
                sender.send(Ok(Frame::Whole(revision))).await?;
                feed
            };
            let available = desk.cluster().available();
            let mut last_seen = Instant::now();
            loop {
                let next = timeout(ALIVE, feed.next()).await;
                let weather = self.world.weather();
                if self.world.dice.per_mille(weather.broken_watch) {
                    return Err("the connection broke".into());
                }
                if self.world.dice.per_mille(weather.lag) {
                    sleep(self.world.dice.up_to(8_000)).await;
                }
                let frame = match next {
                    Ok(batch) => Frame::change(batch?),
                    Err(_) if available.current() => Frame::Alive,
                    Err(_) => return Err("the manager cannot reach the store".into()),
                };
                // What is sent meanwhile arrives later.
                while self.is_cut(&desk) || !self.is_there(&desk) {
                    if last_seen.elapsed() > SILENCE {
                        return Err("the manager is silent".into());
                    }
                    sleep(Duration::from_millis(200)).await;
                }
                self.travel().await;
                last_seen = Instant::now();
                sender.send(Ok(frame)).await?;
            }
        }
        .await;
        if let Err(error) = shown {
            // The worker may have ended.
            let _ = sender.send(Err(error)).await;
        }
    }
}

#[async_trait]
impl Managers for Line {
    fn describe(&self) -> String {
        "the simulated managers".to_owned()
    }

    async fn ask(&self, request: &Request) -> Result<Answer, NotAsked> {
        let mut last = NotAsked {
            source: "no manager is there".into(),
            may_be_done: false,
        };
        let managers = self.world.desks().len();
        for _ in 0..managers {
            let Some(desk) = self.desk() else { break };
            last = match self.ask_one(&desk, request).await {
                Ok(Answer::Failed(Failure::Unavailable(text))) => NotAsked {
                    source: text.into(),
                    may_be_done: false,
                },
                Ok(answer) => return Ok(answer),
                Err(error) if error.may_be_done && !request.is_repeatable() => {
                    self.avoid();
                    return Err(error);
                }
                Err(NotAsked { source, .. }) => NotAsked {
                    source,
                    may_be_done: false,
                },
            };
            self.avoid();
        }
        Err(last)
    }

    async fn follow(&self, after: Option<Revision>) -> Result<Frames, Source> {
        self.travel().await;
        let desk = self.desk().filter(|desk| !self.is_cut(desk));
        let Some(desk) = desk else {
            self.avoid();
            return Err("no manager is there".into());
        };
        let (sender, frames) = mpsc::channel(16);
        tokio::spawn(self.clone().show(desk, after, sender));
        let line = self.clone();
        let frames = stream::unfold(frames, move |mut frames| {
            let line = line.clone();
            async move {
                let frame = frames.recv().await?;
                if frame.is_err() {
                    line.avoid();
                }
                Some((frame, frames))
            }
        });
        Ok(frames.boxed())
    }
}
