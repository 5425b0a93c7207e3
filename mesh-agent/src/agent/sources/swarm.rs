//! Swarm as a source: its API, and the feed for workers, on a manager; a manager's feed on a worker. Switches
//! when the role changes, and announces this node's data path to every manager.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use mesh_support::error_chain;
use mesh_support::watched::{Newest as _, Watched as _};
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{Channels, Source, SourceError, relay::relay};
use crate::{
    agent::membership::{EngineReport, Member, Membership},
    config::RunOptions,
    discovery::Scheduler,
    docker::{Docker, data_path_address},
    process::Ended,
    source::{
        Announcements, Announcer, AnnouncerOptions, CertificateWatcher, FeedClient, FeedClientOptions,
        FeedServer, FeedServerOptions, FeedServerStatus, NodeIdentity, SourceState, SwarmSource,
    },
};

/// Between attempts at what a fault of the node prevents: reading certificates, binding the feed's port.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Follows the Swarm that this node is a member of.
pub(super) struct Swarm {
    options: RunOptions,
    docker: Docker,
}

/// A [`Swarm`] that runs.
struct Running {
    options: RunOptions,
    docker: Docker,
    channels: Channels,
}

impl Swarm {
    pub(super) fn new(options: RunOptions, docker: Docker) -> Self {
        Self { options, docker }
    }
}

#[async_trait]
impl Source for Swarm {
    fn scheduler(&self) -> Scheduler {
        Scheduler::Swarm
    }

    async fn run(
        self: Box<Self>,
        channels: Channels,
        shutdown: CancellationToken,
    ) -> Result<Ended, SourceError> {
        let running = Running {
            options: self.options,
            docker: self.docker,
            channels,
        };
        running.follow_membership(shutdown).await;
        Ok(Ended::Stopped)
    }
}

impl Running {
    async fn follow_membership(self, shutdown: CancellationToken) {
        let mut engine = self.channels.engine.clone();
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
                self.channels.state.send_replace(SourceState {
                    trouble: Some("this node is in no Swarm".to_owned()),
                    ..SourceState::default()
                });
            }
        }
    }

    /// Waits until the membership changes.
    async fn next_membership(
        &self,
        engine: &mut watch::Receiver<EngineReport>,
        membership: &Membership,
    ) -> Membership {
        loop {
            let now = engine.newest().membership(self.options.docker_root.as_ref());
            // An unknown membership after a known one is an outage of Docker, not a change.
            if now != *membership && now != Membership::Unknown {
                return now;
            }
            if engine.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Runs what the membership requires, until stopped.
    async fn serve(&self, membership: Membership, stop: CancellationToken) {
        match membership {
            Membership::Unknown | Membership::Outside => stop.cancelled().await,
            Membership::Member(member) if member.manager => self.manager(member, stop).await,
            Membership::Member(member) => self.worker(member, stop).await,
        }
        self.channels.workers.send_replace(FeedServerStatus::default());
    }

    async fn manager(&self, member: Member, stop: CancellationToken) {
        let announcements = Announcements::new();
        let (source, snapshot, hint) = SwarmSource::new(self.docker.clone(), announcements.clone());
        self.channels.hints.set_source(hint.clone());
        let feed = async {
            let Some((certificates, identity)) = self.identity(&member, &stop).await else {
                return;
            };
            let listen = SocketAddr::new(
                IpAddr::V4(self.options.feed_listen.unwrap_or(member.address)),
                self.options.feed_port,
            );
            let options = FeedServerOptions {
                listen,
                identity: identity.clone(),
                state: snapshot.clone(),
                hint: hint.clone(),
                announcements: announcements.clone(),
                relay: self.channels.relay.clone(),
            };
            let (managers, refresh) = self.managers(&member, &stop);
            tokio::join!(
                certificates.run(stop.clone()),
                self.serve_workers(options, &stop),
                self.announcer(&member, managers, identity).run(stop.clone()),
                refresh
            );
        };
        let data_path = self.data_path(&member);
        let announce = announcements.announce_for(
            &member.node,
            data_path,
            self.channels.announcement.clone(),
            self.channels.keys.clone(),
            self.channels.drained.clone(),
            self.channels.failed.clone(),
        );
        tokio::join!(
            source.run(stop.clone()),
            relay(snapshot.clone(), &self.channels.state, &stop),
            feed,
            stop.run_until_cancelled(announce)
        );
    }

    async fn serve_workers(&self, options: FeedServerOptions, stop: &CancellationToken) {
        let attempt = || FeedServer::bind(options.clone());
        let Some((server, status)) = retry_until_done(attempt, stop).await else {
            return;
        };
        tokio::join!(
            server.run(stop.clone()),
            relay(status, &self.channels.workers, stop)
        );
    }

    async fn worker(&self, member: Member, stop: CancellationToken) {
        let Some((certificates, identity)) = self.identity(&member, &stop).await else {
            return;
        };
        let (managers, refresh) = self.managers(&member, &stop);
        let announcer = self.announcer(&member, managers.clone(), identity.clone());
        let (client, snapshot, hint) = FeedClient::new(FeedClientOptions {
            managers,
            identity,
            last: self.channels.state.current(),
        });
        self.channels.hints.set_source(hint);
        tokio::join!(
            certificates.run(stop.clone()),
            client.run(stop.clone()),
            announcer.run(stop.clone()),
            relay(snapshot, &self.channels.state, &stop),
            refresh
        );
    }

    /// Where to send this node's packets, if not to its Swarm address.
    fn data_path(&self, member: &Member) -> Option<Ipv4Addr> {
        self.options
            .data_path_address
            .or_else(|| data_path_address(&member.certificates))
            .filter(|address| *address != member.address)
    }

    fn announcer(
        &self,
        member: &Member,
        managers: watch::Receiver<Vec<SocketAddr>>,
        identity: watch::Receiver<Arc<NodeIdentity>>,
    ) -> Announcer {
        Announcer::new(AnnouncerOptions {
            managers,
            identity,
            address: self.data_path(member),
            announcement: self.channels.announcement.clone(),
            keys: self.channels.keys.clone(),
            drained: self.channels.drained.clone(),
            failed: self.channels.failed.clone(),
            acknowledged: self.channels.acknowledged.clone(),
            relayed: self.channels.relayed.clone(),
        })
    }

    /// The other managers' feed addresses, and a future that updates them until stopped.
    fn managers<'a>(
        &self,
        member: &'a Member,
        stop: &'a CancellationToken,
    ) -> (watch::Receiver<Vec<SocketAddr>>, impl Future<Output = ()> + 'a) {
        let mut engine = self.channels.engine.clone();
        let port = self.options.feed_port;
        let list = move |engine: &EngineReport| managers(engine, member, port);
        let (sender, receiver) = watch::channel(list(&engine.newest()));
        let refresh = async move {
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    changed = engine.changed() => if changed.is_err() {
                        return stop.cancelled().await;
                    },
                }
                let new = list(&engine.newest());
                sender.send_if_modified(|known| {
                    // An engine that has lost its Swarm lists no managers: keep the last list.
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
        let attempt = || CertificateWatcher::new(member.certificates.clone(), self.docker.clone());
        let (watcher, identity, reload) = retry_until_done(attempt, stop).await?;
        self.channels.hints.set_certificates(reload);
        Some((watcher, identity))
    }
}

/// The feed addresses of the managers that the engine knows, except this node's own.
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

/// Retries until it succeeds; logs a failure whenever its reason changes. `None` when stopped.
async fn retry_until_done<T, E, F>(attempt: impl Fn() -> F, stop: &CancellationToken) -> Option<T>
where
    E: std::error::Error + 'static,
    F: Future<Output = Result<T, E>>,
{
    let mut logged = String::new();
    loop {
        let failure = tokio::select! {
            () = stop.cancelled() => return None,
            result = attempt() => match result {
                Ok(done) => return Some(done),
                Err(error) => error_chain(&error),
            },
        };
        if failure != logged {
            warn!("{failure}; retrying every {} s", RETRY_INTERVAL.as_secs());
            logged = failure;
        }
        tokio::select! {
            () = stop.cancelled() => return None,
            () = sleep(RETRY_INTERVAL) => {}
        }
    }
}
