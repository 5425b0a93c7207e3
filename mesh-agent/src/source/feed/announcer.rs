//! Tells every manager's agent what data path stands on this node: at once when it changes, and again
//! every few seconds, which shows either end that the other is there. A lost manager is dialled again.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use tokio::{sync::watch, task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{
    dial::{Interruption, LIMIT, dial},
    wire::{self, FromManager, FromNode, Purpose},
};
use crate::{
    model::NodeDatapath,
    source::{Backoff, NodeIdentity},
};

/// More managers than any Swarm has.
const MAX_MANAGERS: usize = 64;

/// What an announcer needs.
#[derive(Clone, Debug)]
pub struct AnnouncerOptions {
    /// The other managers' feed addresses, as they change.
    pub managers: watch::Receiver<Vec<SocketAddr>>,
    /// This node's credentials, as they are renewed.
    pub identity: watch::Receiver<Arc<NodeIdentity>>,
    /// What balances on this node; nothing is said while it is [`NodeDatapath::Unknown`].
    pub word: watch::Receiver<NodeDatapath>,
    /// Shows which managers have heard what.
    pub told: watch::Sender<Told>,
}

/// What each manager that has to be told last acknowledged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told(BTreeMap<SocketAddr, NodeDatapath>);

impl Told {
    /// What the cluster has heard where it is told in one place: the orchestrator's store. Nothing is to be
    /// told there until the node is registered.
    #[must_use]
    pub(crate) fn by_the_cluster(heard: Option<NodeDatapath>) -> Self {
        let store = SocketAddr::from(([0, 0, 0, 0], 0));
        Self(heard.into_iter().map(|heard| (store, heard)).collect())
    }

    /// How many managers are to be told.
    #[must_use]
    pub fn managers(&self) -> usize {
        self.0.len()
    }

    /// Whether every manager that is to be told has published `word`.
    #[must_use]
    pub fn everybody(&self, word: NodeDatapath) -> bool {
        self.0.values().all(|heard| *heard == word)
    }
}

/// Announces this node's data path to all managers.
#[derive(Debug)]
pub struct Announcer {
    options: AnnouncerOptions,
}

impl Announcer {
    /// An announcer; nothing happens before [`Announcer::run`].
    #[must_use]
    pub fn new(options: AnnouncerOptions) -> Self {
        Self { options }
    }

    /// Announces until cancelled; survives every failure.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut managers = self.options.managers.clone();
        let mut tasks = JoinSet::new();
        let mut running: BTreeMap<SocketAddr, CancellationToken> = BTreeMap::new();
        loop {
            let wanted: BTreeSet<_> = managers
                .borrow_and_update()
                .iter()
                .take(MAX_MANAGERS)
                .copied()
                .collect();
            running.retain(|manager, stop| {
                let stays = wanted.contains(manager);
                if !stays {
                    stop.cancel();
                }
                stays
            });
            self.options.told.send_modify(|told| {
                told.0.retain(|manager, _| wanted.contains(manager));
                for manager in &wanted {
                    told.0.entry(*manager).or_default();
                }
            });
            for manager in wanted {
                running.entry(manager).or_insert_with(|| {
                    let stop = shutdown.child_token();
                    let link = Link {
                        manager,
                        options: self.options.clone(),
                    };
                    let run = stop.clone();
                    tasks.spawn(async move {
                        run.run_until_cancelled(link.keep()).await;
                    });
                    stop
                });
            }
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(_) = tasks.join_next() => {}
                Ok(()) = managers.changed() => {}
            }
        }
        tasks.shutdown().await;
        self.options.told.send_replace(Told::default());
    }
}

/// The connection to one manager.
struct Link {
    manager: SocketAddr,
    options: AnnouncerOptions,
}

impl Link {
    async fn keep(mut self) {
        let mut backoff = Backoff::default();
        let mut said = String::new();
        loop {
            let interruption = match self.announce(&mut backoff).await {
                Ok(never) => match never {},
                Err(interruption) => interruption,
            };
            let trouble = crate::error::error_chain(&interruption);
            if matches!(interruption, Interruption::Renewed) || said == trouble {
                debug!(manager = %self.manager, trouble, "announcing to this manager again");
            } else {
                warn!(manager = %self.manager, trouble, "this manager cannot be told of the data path; trying again");
                said = trouble;
            }
            sleep(backoff.next()).await;
        }
    }

    async fn announce(&mut self, backoff: &mut Backoff) -> Result<std::convert::Infallible, Interruption> {
        let identity = Arc::clone(&self.options.identity.borrow_and_update());
        let (mut reader, mut writer) = dial(self.manager, &identity, Purpose::Announce).await?;
        loop {
            let word = *self.options.word.borrow_and_update();
            if word != NodeDatapath::Unknown {
                writer.send(&FromNode::Announce { datapath: word }, LIMIT).await?;
                answered(reader.next_within(LIMIT).await?, word)?;
                backoff.reset();
                self.heard(word);
            }
            tokio::select! {
                () = sleep(wire::ANNOUNCE_INTERVAL) => {}
                Ok(()) = self.options.word.changed() => {}
                Ok(()) = self.options.identity.changed() => return Err(Interruption::Renewed),
                message = reader.next() => {
                    answered(message?, NodeDatapath::Unknown)?;
                }
            }
        }
    }

    fn heard(&self, word: NodeDatapath) {
        self.options.told.send_if_modified(|told| {
            // A manager that is no longer to be told is not put back.
            match told.0.get_mut(&self.manager) {
                Some(heard) if *heard != word => {
                    *heard = word;
                    true
                }
                Some(_) | None => false,
            }
        });
    }
}

fn answered(message: FromManager, word: NodeDatapath) -> Result<(), Interruption> {
    match message {
        FromManager::Heard { datapath } if datapath == word => Ok(()),
        FromManager::Refused { reason } => Err(Interruption::Refused(reason)),
        FromManager::Heard { .. }
        | FromManager::Hello { .. }
        | FromManager::Full { .. }
        | FromManager::Delta { .. }
        | FromManager::Heartbeat { .. } => Err(Interruption::Misbehaved("no answer to an announcement")),
    }
}
