//! One connection to the feed: admits the node, then streams snapshots to it or receives its announcements
//! ([`super::announcing`]).

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_support::error_chain;
use mesh_support::watched::{Newest as _, Watched as _};
use rustls::ServerConfig;
use tokio::{
    net::TcpStream,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info};

use super::{
    Shared,
    announcing::{SEND_LIMIT, Takes, receive_announcements, send},
    refusal::{Refusal, handshake_refusal},
};
use crate::{
    model::NodeId,
    source::{
        NodeIdentity, SourceState, Subject, SubjectError,
        feed::{
            delta::Delta,
            wire::{self, FromManager, FromNode, Purpose, Reader, WireError, Writer},
        },
    },
};

/// Time for TLS and the first message.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
/// A node that has just joined may connect before this manager lists it.
const JOIN_LIMIT: Duration = Duration::from_secs(1);
/// Hints from one peer that come faster are dropped: after each one tasks are listed often anyway.
const HINT_GAP: Duration = Duration::from_millis(50);
/// A peer that requests whole snapshots faster is disconnected.
const FULL_GAP: Duration = Duration::from_millis(500);

/// Serves one connection.
pub(super) async fn session(
    stream: TcpStream,
    peer: SocketAddr,
    config: Arc<ServerConfig>,
    identity: &NodeIdentity,
    shared: &Shared,
) -> Result<(), Refusal> {
    // Deltas are small and urgent; without this they are merely slower.
    let _ = stream.set_nodelay(true);
    let stream = timeout(HANDSHAKE_LIMIT, TlsAcceptor::from(config).accept(stream))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(handshake_refusal)?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let subject = Subject::of(certificate.ok_or(Refusal::NoCertificate)?);
    let (reader, writer) = tokio::io::split(stream);
    let mut reader = Reader::new(reader, wire::MAX_FROM_NODE);
    let mut writer = Writer::new(writer, wire::MAX_FROM_MANAGER);

    let result = match admit(subject, identity, shared, &mut reader).await {
        Ok(admitted) => {
            let hello = FromManager::Hello {
                version: admitted.version,
                clock: wire::clock(),
            };
            let node = &admitted.node;
            match (send(&mut writer, &hello).await, admitted.purpose) {
                (Ok(()), Purpose::Follow) => follow(node, peer, shared, &mut reader, &mut writer).await,
                (Ok(()), Purpose::Check) => Ok(()),
                (Ok(()), Purpose::Announce) => unless_ended(
                    node,
                    receive_announcements(node, admitted.takes, shared, &mut reader, &mut writer).await,
                ),
                (refused, _) => unless_ended(node, refused),
            }
        }
        Err(refusal) => Err(refusal),
    };
    if let Err(refusal) = &result {
        let reason = refusal.to_string();
        // The peer may have disconnected.
        let _ = writer.send(&FromManager::Refused { reason }, SEND_LIMIT).await;
    }
    result
}

/// A node that is served.
struct Admitted {
    node: NodeId,
    /// The version of the messages that it and this agent speak.
    version: u32,
    purpose: Purpose,
    /// The requests that it takes.
    takes: Option<Takes>,
}

/// Streams snapshots, and lists the node as connected meanwhile.
async fn follow<R, W>(
    node: &NodeId,
    peer: SocketAddr,
    shared: &Shared,
    reader: &mut Reader<R>,
    writer: &mut Writer<W>,
) -> Result<(), Refusal>
where
    R: tokio::io::AsyncRead + Unpin,
    W: tokio::io::AsyncWrite + Unpin,
{
    info!(node, %peer, "node connected");
    shared.status.send_modify(|status| {
        status.peers.insert(node.clone(), peer);
    });
    let result = unless_ended(node, stream_snapshot(node, shared, reader, writer).await);
    shared.status.send_modify(|status| {
        // A newer connection of the same node keeps its entry.
        if status.peers.get(node) == Some(&peer) {
            status.peers.remove(node);
        }
    });
    info!(node, %peer, "node disconnected");
    result
}

/// A broken connection is no refusal.
fn unless_ended(node: &NodeId, result: Result<(), Refusal>) -> Result<(), Refusal> {
    match result {
        Err(Refusal::Protocol(error @ (WireError::Io(_) | WireError::Closed | WireError::Silent(_)))) => {
            debug!(node, error = error_chain(&error), "the connection ended");
            Ok(())
        }
        result => result,
    }
}

/// Decides whether to serve a peer whose certificate TLS accepts.
async fn admit<R: tokio::io::AsyncRead + Unpin>(
    subject: Result<Subject, SubjectError>,
    identity: &NodeIdentity,
    shared: &Shared,
    reader: &mut Reader<R>,
) -> Result<Admitted, Refusal> {
    let subject = subject?;
    if subject.cluster_id != identity.subject.cluster_id {
        return Err(Refusal::OtherCluster(subject.cluster_id));
    }
    let greeting = reader.next_within(HANDSHAKE_LIMIT).await;
    let (version, purpose, takes) = match greeting.map_err(Refusal::Protocol)? {
        FromNode::Hello {
            version,
            newest,
            purpose,
            takes_requests,
            takes_reads,
        } => {
            let common = wire::common_version(version, newest);
            let version = common.ok_or(Refusal::Version(version.max(newest)))?;
            (
                version,
                purpose,
                takes_requests.then_some(Takes { reads: takes_reads }),
            )
        }
        FromNode::Announce { .. }
        | FromNode::Hint
        | FromNode::NeedFull
        | FromNode::Drained { .. }
        | FromNode::WasRead { .. } => {
            return Err(Refusal::Misbehaved("no greeting"));
        }
    };
    let mut state = shared.options.state.clone();
    let knows = |state: &SourceState| {
        !state.cluster.cluster_id.is_empty() && state.cluster.nodes.contains_key(&subject.node)
    };
    if !knows(&state.current()) {
        shared.options.hint.hint();
        let listed = timeout(JOIN_LIMIT, state.wait_for(knows)).await;
        if !matches!(listed, Ok(Ok(_))) {
            // A certificate outlives its node's membership, so the list of nodes decides.
            return Err(Refusal::UnknownNode(subject.node));
        }
    }
    Ok(Admitted {
        node: subject.node,
        version,
        purpose,
        takes,
    })
}

async fn stream_snapshot<R, W>(
    node: &NodeId,
    shared: &Shared,
    reader: &mut Reader<R>,
    writer: &mut Writer<W>,
) -> Result<(), Refusal>
where
    R: tokio::io::AsyncRead + Unpin,
    W: tokio::io::AsyncWrite + Unpin,
{
    let mut state = shared.options.state.clone();
    let mut heartbeat = interval(wire::HEARTBEAT);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut hinted: Option<Instant> = None;

    let mut sent = state.newest();
    send(writer, &full(&sent)).await?;
    let mut sent_full = Instant::now();
    loop {
        tokio::select! {
            changed = state.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                let now = state.newest();
                if now.cluster.cluster_id.is_empty() {
                    // Of no cluster, so it says nothing about this node's membership.
                    continue;
                }
                if !now.cluster.nodes.contains_key(node) {
                    return Err(Refusal::UnknownNode(node.clone()));
                }
                if now.revision != sent.revision {
                    send(writer, &delta(&sent, &now)).await?;
                }
                if now.revision == sent.revision || now.trouble != sent.trouble {
                    send(writer, &heartbeat_message(&now)).await?;
                }
                sent = now;
            }
            _ = heartbeat.tick() => {
                // The confirmation of a newer snapshot says nothing about the one that the node has.
                let now = state.current();
                let current = if now.revision == sent.revision { &now } else { &sent };
                send(writer, &heartbeat_message(current)).await?;
            }
            message = reader.next() => match message.map_err(Refusal::Protocol)? {
                FromNode::Hint => {
                    if hinted.is_none_or(|hinted| hinted.elapsed() >= HINT_GAP) {
                        hinted = Some(Instant::now());
                        shared.options.hint.hint();
                    }
                }
                FromNode::NeedFull if sent_full.elapsed() < FULL_GAP => {
                    return Err(Refusal::Misbehaved("it requests whole snapshots too often"));
                }
                FromNode::NeedFull => {
                    sent = state.newest();
                    send(writer, &full(&sent)).await?;
                    sent_full = Instant::now();
                }
                FromNode::Hello { .. } => return Err(Refusal::Misbehaved("a second greeting")),
                FromNode::Announce { .. } => {
                    return Err(Refusal::Misbehaved("an announcement on a connection to follow"));
                }
                FromNode::Drained { .. } | FromNode::WasRead { .. } => {
                    return Err(Refusal::Misbehaved("an answer on a connection to follow"));
                }
            }
        }
    }
}

fn full(state: &SourceState) -> FromManager {
    FromManager::Full {
        revision: state.revision,
        changed_age: wire::age(state.changed),
        confirmed_age: wire::age(state.confirmed),
        epoch: state.epoch,
        key: state.key,
        cluster: Arc::clone(&state.cluster),
    }
}

fn delta(old: &SourceState, new: &SourceState) -> FromManager {
    FromManager::Delta {
        from: old.revision,
        to: new.revision,
        changed_age: wire::age(new.changed),
        confirmed_age: wire::age(new.confirmed),
        epoch: new.epoch,
        delta: Delta::between(&old.cluster, &new.cluster),
    }
}

fn heartbeat_message(state: &SourceState) -> FromManager {
    FromManager::Heartbeat {
        revision: state.revision,
        confirmed_age: wire::age(state.confirmed),
        epoch: state.epoch,
        trouble: state.trouble.clone(),
        key: state.key,
    }
}
