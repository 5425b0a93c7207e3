//! The source that fits the node's role: Swarm itself and the feed for workers on a manager, a
//! manager's feed on a worker. Switches over when the role changes; the last snapshot stays in force
//! until the new source has one. Beside it, every manager is acknowledged what balances on this node.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use mesh_support::error_chain;
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::membership::{EngineReport, Member, Membership};
use crate::{
    config::RunOptions,
    docker::Docker,
    model::{NodeDatapath, announced::keep_known},
    source::{
        Acknowledged, Announcements, Announcer, AnnouncerOptions, CertificateWatcher, FeedClient,
        FeedClientOptions, FeedServer, FeedServerOptions, FeedServerStatus, HintHandle, NodeIdentity,
        SourceState, SwarmSource,
    },
};

/// Between attempts at what a fault of the node prevents: certificates, the feed's port.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// How often the time of the last confirmation is taken over, for which a source wakes nobody.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(1);

/// Passes hints on to whichever source is running.
#[derive(Clone, Default)]
pub(super) struct SourceHints(Arc<Mutex<Handles>>);

#[derive(Default)]
struct Handles {
    source: HintHandle,
    certificates: HintHandle,
}

impl SourceHints {
    /// Something has happened that foretells a change. Never blocks for long.
    pub(super) fn hint(&self) {
        self.with(|handles| handles.source.hint());
    }

    /// Reads certificates and cluster anew.
    pub(super) fn reload(&self) {
        self.with(|handles| {
            handles.certificates.hint();
            handles.source.hint();
        });
    }

    fn with(&self, act: impl FnOnce(&mut Handles)) {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Runs the source of the node's role.
pub(super) struct Sources {
    pub(super) docker: Docker,
    pub(super) options: RunOptions,
    pub(super) engine: watch::Receiver<EngineReport>,
    /// The snapshot, whatever its source.
    pub(super) state: watch::Sender<SourceState>,
    /// Who is connected to this manager's feed; empty on workers.
    pub(super) workers: watch::Sender<FeedServerStatus>,
    pub(super) hints: SourceHints,
    /// What balances on this node.
    pub(super) announcement: watch::Receiver<NodeDatapath>,
    /// Which managers have heard it.
    pub(super) acknowledged: watch::Sender<Acknowledged>,
}

impl Sources {
    /// Runs until cancelled.
    pub(super) async fn run(self, shutdown: CancellationToken) {
        let mut engine = self.engine.clone();
        let mut membership = Membership::Unknown;
        while !shutdown.is_cancelled() {
            let stop = shutdown.child_token();
            let serving = self.serve(membership.clone(), stop.clone());
            tokio::pin!(serving);
            let next = tokio::select! {
                () = &mut serving => return,
                next = self.next_membership(&mut engine, &membership) => next,
            };
            stop.cancel();
            serving.await;
            membership = next;
            if membership == Membership::Outside {
                self.state.send_replace(SourceState {
                    trouble: Some("this node is in no Swarm".to_owned()),
                    ..SourceState::default()
                });
            }
        }
    }

    /// Waits until the node stands elsewhere.
    async fn next_membership(
        &self,
        engine: &mut watch::Receiver<EngineReport>,
        membership: &Membership,
    ) -> Membership {
        loop {
            let now = engine
                .borrow_and_update()
                .membership(self.options.docker_root.as_ref());
            // "Unknown" after something was known is Docker's trouble, not a change of place.
            if now != *membership && now != Membership::Unknown {
                return now;
            }
            if engine.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Runs what the membership asks for, until stopped.
    async fn serve(&self, membership: Membership, stop: CancellationToken) {
        match membership {
            Membership::Unknown | Membership::Outside => stop.cancelled().await,
            Membership::Member(member) if member.manager => self.manager(member, stop).await,
            Membership::Member(member) => self.worker(member, stop).await,
        }
        self.workers.send_replace(FeedServerStatus::default());
    }

    async fn manager(&self, member: Member, stop: CancellationToken) {
        let announcements = Announcements::new();
        let (source, snapshot, hint) = SwarmSource::new(self.docker.clone(), announcements.clone());
        self.hints.with(|handles| handles.source = hint.clone());
        let feed = async {
            let Some((certificates, identity)) = self.identity(&member, &stop).await else {
                return;
            };
            let listen = SocketAddr::new(IpAddr::V4(member.address), self.options.feed_port);
            let options = FeedServerOptions {
                listen,
                identity: identity.clone(),
                state: snapshot.clone(),
                hint: hint.clone(),
                announcements: announcements.clone(),
            };
            let (managers, refresh) = self.managers(&member, &stop);
            tokio::join!(
                certificates.run(stop.clone()),
                self.serve_workers(options, &stop),
                self.announcer(managers, identity).run(stop.clone()),
                refresh
            );
        };
        let speak = announcements.announce_for(&member.node, self.announcement.clone());
        tokio::join!(
            source.run(stop.clone()),
            relay(snapshot.clone(), &self.state, &stop),
            feed,
            stop.run_until_cancelled(speak)
        );
    }

    async fn serve_workers(&self, options: FeedServerOptions, stop: &CancellationToken) {
        let attempt = || FeedServer::bind(options.clone());
        let Some((server, status)) = until_done(attempt, stop).await else {
            return;
        };
        tokio::join!(server.run(stop.clone()), relay(status, &self.workers, stop));
    }

    async fn worker(&self, member: Member, stop: CancellationToken) {
        let Some((certificates, identity)) = self.identity(&member, &stop).await else {
            return;
        };
        let (managers, refresh) = self.managers(&member, &stop);
        let announcer = self.announcer(managers.clone(), identity.clone());
        let (client, snapshot, hint) = FeedClient::new(FeedClientOptions { managers, identity });
        self.hints.with(|handles| handles.source = hint);
        tokio::join!(
            certificates.run(stop.clone()),
            client.run(stop.clone()),
            announcer.run(stop.clone()),
            relay(snapshot, &self.state, &stop),
            refresh
        );
    }

    fn announcer(
        &self,
        managers: watch::Receiver<Vec<SocketAddr>>,
        identity: watch::Receiver<Arc<NodeIdentity>>,
    ) -> Announcer {
        Announcer::new(AnnouncerOptions {
            managers,
            identity,
            announcement: self.announcement.clone(),
            acknowledged: self.acknowledged.clone(),
        })
    }

    /// The other managers' feed addresses, and what keeps them up to date until stopped.
    fn managers<'a>(
        &self,
        member: &'a Member,
        stop: &'a CancellationToken,
    ) -> (watch::Receiver<Vec<SocketAddr>>, impl Future<Output = ()> + 'a) {
        let mut engine = self.engine.clone();
        let port = self.options.feed_port;
        let list = move |engine: &EngineReport| managers(engine, member, port);
        let (sender, receiver) = watch::channel(list(&engine.borrow_and_update()));
        let refresh = async move {
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    changed = engine.changed() => if changed.is_err() {
                        return stop.cancelled().await;
                    },
                }
                let new = list(&engine.borrow_and_update());
                sender.send_if_modified(|known| {
                    // An engine without its Swarm lists nobody; the last list is better than none.
                    let changed = !new.is_empty() && *known != new;
                    if changed {
                        *known = new;
                    }
                    changed
                });
            }
        };
        (receiver, refresh)
    }

    /// Waits until the node's certificate can be loaded.
    async fn identity(
        &self,
        member: &Member,
        stop: &CancellationToken,
    ) -> Option<(CertificateWatcher, watch::Receiver<Arc<NodeIdentity>>)> {
        let attempt = || async { CertificateWatcher::new(member.certificates.clone()) };
        let (watcher, identity, reload) = until_done(attempt, stop).await?;
        self.hints.with(|handles| handles.certificates = reload);
        Some((watcher, identity))
    }
}

/// The feed addresses of the managers the engine knows, this node's own left out.
fn managers(engine: &EngineReport, member: &Member, port: u16) -> Vec<SocketAddr> {
    let mut addresses: Vec<_> = engine
        .info
        .iter()
        .flat_map(|info| &info.remote_managers)
        .filter(|manager| manager.node != member.node)
        .map(|manager| SocketAddr::new(IpAddr::V4(manager.address), port))
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// Tries until it succeeds; says so when the reason of the failure is another. `None` when stopped.
async fn until_done<T, E, F>(attempt: impl Fn() -> F, stop: &CancellationToken) -> Option<T>
where
    E: std::error::Error + 'static,
    F: Future<Output = Result<T, E>>,
{
    let mut said = String::new();
    loop {
        let failure = tokio::select! {
            () = stop.cancelled() => return None,
            result = attempt() => match result {
                Ok(done) => return Some(done),
                Err(error) => error_chain(&error),
            },
        };
        if failure != said {
            warn!("{failure}; trying again every {} s", RETRY_INTERVAL.as_secs());
            said = failure;
        }
        tokio::select! {
            () = stop.cancelled() => return None,
            () = sleep(RETRY_INTERVAL) => {}
        }
    }
}

/// What can take another's place on the agent's own channel.
trait Relayed: Clone {
    /// Takes over what `self` says; a source that has never had a snapshot does not wipe the last one.
    fn into_place_of(self, last: &mut Self);

    /// Takes over what moves on without anybody being woken; true if somebody is to be woken for once.
    fn follow(&self, _last: &mut Self) -> bool {
        false
    }
}

impl Relayed for FeedServerStatus {
    fn into_place_of(self, last: &mut Self) {
        *last = self;
    }
}

impl Relayed for SourceState {
    fn into_place_of(mut self, last: &mut Self) {
        if self.confirmed.is_some() {
            keep_known(&mut self.cluster, &last.cluster);
            *last = self;
        } else {
            last.trouble = self.trouble;
        }
    }

    fn follow(&self, last: &mut Self) -> bool {
        if self.confirmed.is_none() {
            return false;
        }
        if last.confirmed.is_none() {
            // Nothing was known before, so there is nothing to keep.
            *last = self.clone();
            return true;
        }
        last.confirmed = self.confirmed;
        false
    }
}

async fn relay<T: Relayed>(mut from: watch::Receiver<T>, to: &watch::Sender<T>, stop: &CancellationToken) {
    let mut tick = tokio::time::interval(FOLLOW_INTERVAL);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {
                let now = from.borrow();
                to.send_if_modified(|last| now.follow(last));
                continue;
            }
            changed = from.changed() => if changed.is_err() {
                return stop.cancelled().await;
            },
        }
        let new = from.borrow_and_update().clone();
        to.send_modify(|last| new.into_place_of(last));
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::model::Cluster;

    #[test]
    fn a_source_that_has_never_spoken_does_not_wipe_the_last_snapshot() {
        let cluster = Arc::new(Cluster {
            cluster_id: "cluster".into(),
            ..Cluster::default()
        });
        let mut last = SourceState {
            cluster: Arc::clone(&cluster),
            revision: 7,
            confirmed: Some(SystemTime::UNIX_EPOCH),
            ..SourceState::default()
        };
        let silent = SourceState {
            trouble: Some("no manager answers".into()),
            ..SourceState::default()
        };
        silent.into_place_of(&mut last);
        assert_eq!((last.cluster.as_ref(), last.revision), (cluster.as_ref(), 7));
        assert_eq!(last.trouble.as_deref(), Some("no manager answers"));
        let spoken = SourceState {
            revision: 1,
            confirmed: Some(SystemTime::UNIX_EPOCH),
            ..SourceState::default()
        };
        spoken.clone().into_place_of(&mut last);
        assert_eq!(last.revision, 1);
        let confirmed = SourceState {
            confirmed: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(9)),
            ..spoken
        };
        assert!(!confirmed.follow(&mut last), "nobody is woken for a heartbeat");
        assert_eq!(last.confirmed, confirmed.confirmed);
    }
}
