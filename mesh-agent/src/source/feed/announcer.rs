//! Announces this node's data-path state to every manager's agent: at once when it changes, and again every
//! few seconds as a keep-alive in both directions. Reconnects to a manager that is lost.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use mesh_support::watched::Newest as _;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{
    dial::{Connection, Interruption, LIMIT, dial},
    requests::Requests,
    wire::{self, FromManager, FromNode, Purpose},
};
use crate::{
    backoff::Backoff,
    model::{Drained, FailedChecks, KeyId, NodeDatapath},
    source::{NodeIdentity, RelayedRequest},
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
    /// Where to send this node's packets, if not to its Swarm address.
    pub address: Option<Ipv4Addr>,
    /// This node's data path; nothing is announced while it is [`NodeDatapath::Unknown`].
    pub announcement: watch::Receiver<NodeDatapath>,
    /// The ids of the keys that it takes.
    pub keys: watch::Receiver<Vec<KeyId>>,
    /// The replicas that are drained on this node.
    pub drained: watch::Receiver<Drained>,
    /// The replicas on this node that fail their check.
    pub failed: watch::Receiver<FailedChecks>,
    /// What each manager has acknowledged.
    pub acknowledged: watch::Sender<Acknowledged>,
    /// Takes the requests that managers send to where they are carried out.
    pub relayed: mpsc::Sender<RelayedRequest>,
}

/// What each manager acknowledged last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Acknowledged(BTreeMap<SocketAddr, NodeDatapath>);

impl Acknowledged {
    /// Where announcements go to the orchestrator's store instead: what it holds for this node, `None`
    /// until the node is registered.
    #[cfg(feature = "orchestrator")]
    #[must_use]
    pub(crate) fn by_store(datapath: Option<NodeDatapath>) -> Self {
        let store = SocketAddr::from(([0, 0, 0, 0], 0));
        Self(datapath.into_iter().map(|datapath| (store, datapath)).collect())
    }

    /// How many managers have to acknowledge.
    #[must_use]
    pub fn managers(&self) -> usize {
        self.0.len()
    }

    /// Whether every manager has published `announcement`.
    #[must_use]
    pub fn by_all(&self, announcement: NodeDatapath) -> bool {
        self.0.values().all(|acknowledged| *acknowledged == announcement)
    }
}

/// Announces this node's data path to all managers.
#[derive(Debug)]
pub struct Announcer {
    options: AnnouncerOptions,
}

impl Announcer {
    /// Does nothing before [`Announcer::run`].
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
            let wanted: BTreeSet<_> = managers.newest().iter().take(MAX_MANAGERS).copied().collect();
            running.retain(|manager, stop| {
                let stays = wanted.contains(manager);
                if !stays {
                    stop.cancel();
                }
                stays
            });
            self.options.acknowledged.send_modify(|acknowledged| {
                acknowledged.0.retain(|manager, _| wanted.contains(manager));
                for manager in &wanted {
                    acknowledged.0.entry(*manager).or_default();
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
        self.options.acknowledged.send_replace(Acknowledged::default());
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
        let mut logged = String::new();
        loop {
            let interruption = match self.announce(&mut backoff).await {
                Ok(never) => match never {},
                Err(interruption) => interruption,
            };
            let trouble = mesh_support::error_chain(&interruption);
            if matches!(interruption, Interruption::Renewed) || logged == trouble {
                debug!(manager = %self.manager, trouble, "announcing to this manager again");
            } else {
                warn!(manager = %self.manager, trouble, "cannot announce the data path to this manager; retrying");
                logged = trouble;
            }
            sleep(backoff.next()).await;
        }
    }

    async fn announce(&mut self, backoff: &mut Backoff) -> Result<std::convert::Infallible, Interruption> {
        let identity = self.options.identity.newest();
        let Connection {
            mut reader,
            mut writer,
            version,
            ..
        } = dial(self.manager, &identity, Purpose::Announce).await?;
        let mut requests = Requests::new(self.options.relayed.clone());
        loop {
            let announcement = self.options.announcement.newest();
            let keys = self.options.keys.newest();
            let drained = self.options.drained.newest();
            let failed = self.options.failed.newest();
            if announcement != NodeDatapath::Unknown {
                let message = FromNode::Announce {
                    datapath: announcement,
                    address: self.options.address,
                    release: crate::RELEASE.to_owned(),
                    keys: Some(keys),
                    drained: Some(drained),
                    failed: (version >= wire::WITH_FAILED_CHECKS).then_some(failed),
                };
                writer.send(&message, LIMIT).await?;
                loop {
                    if let Some(message) = requests.take(reader.next_within(LIMIT).await?) {
                        break expect_acknowledgement(message, announcement)?;
                    }
                }
                backoff.reset();
                self.acknowledge(announcement);
            }
            let mut due = std::pin::pin!(sleep(wire::ANNOUNCE_INTERVAL));
            loop {
                tokio::select! {
                    () = &mut due => break,
                    Ok(()) = self.options.announcement.changed() => break,
                    Ok(()) = self.options.keys.changed() => break,
                    Ok(()) = self.options.drained.changed() => break,
                    Ok(()) = self.options.failed.changed() => break,
                    Ok(()) = self.options.identity.changed() => return Err(Interruption::Renewed),
                    Some(parts) = requests.next() => {
                        for part in parts {
                            writer.send(&part, LIMIT).await?;
                        }
                    }
                    // Only a manager's certificate is accepted there, and only managers' requests count.
                    message = reader.next() => if let Some(message) = requests.take(message?) {
                        expect_acknowledgement(message, NodeDatapath::Unknown)?;
                    },
                }
            }
        }
    }

    fn acknowledge(&self, announcement: NodeDatapath) {
        self.options.acknowledged.send_if_modified(|acknowledged| {
            // Do not add back a manager that has been removed meanwhile.
            match acknowledged.0.get_mut(&self.manager) {
                Some(last) if *last != announcement => {
                    *last = announcement;
                    true
                }
                Some(_) | None => false,
            }
        });
    }
}

fn expect_acknowledgement(message: FromManager, announcement: NodeDatapath) -> Result<(), Interruption> {
    match message {
        FromManager::Acknowledged { datapath } if datapath == announcement => Ok(()),
        FromManager::Refused { reason } => Err(Interruption::Refused(reason)),
        FromManager::Acknowledged { .. }
        | FromManager::Hello { .. }
        | FromManager::Full { .. }
        | FromManager::Delta { .. }
        | FromManager::Heartbeat { .. }
        | FromManager::Drain { .. }
        | FromManager::Read { .. } => Err(Interruption::Misbehaved("it did not acknowledge an announcement")),
    }
}
