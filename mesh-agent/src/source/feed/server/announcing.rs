//! A node's announcements, and the requests that a manager sends to it on the same connection.

use std::time::Duration;

use tokio::time::{sleep, timeout};
use tracing::{debug, info};

use super::{Shared, refusal::Refusal};
use crate::{
    model::{NodeDatapath, NodeId},
    source::{
        SourceState,
        announcements::{Announced, known_keys},
        feed::wire::{self, FromManager, FromNode, Reader, WireError, Writer},
        relay::{Pending, RelayedRequest, RelayedRequests},
    },
};

/// Announcements of one node that come faster are delayed: each is sent to the whole cluster.
const ANNOUNCE_GAP: Duration = Duration::from_millis(50);
/// A node that misses three announcements is considered disconnected.
const ANNOUNCE_SILENCE: Duration =
    Duration::from_millis(3 * wire::ANNOUNCE_INTERVAL.as_millis() as u64 + 500);
/// A peer that takes longer to read a message is disconnected.
pub(super) const SEND_LIMIT: Duration = Duration::from_secs(10);
/// Time for an announcement to get into the published snapshot.
const PUBLISH_LIMIT: Duration = Duration::from_secs(2);

/// Which requests a node's greeting says that it takes, if any.
#[derive(Clone, Copy, Debug)]
pub(super) struct Takes {
    /// Whether that includes those to read.
    pub(super) reads: bool,
}

/// Receives a node's announcements, and acknowledges each when the published snapshot contains it. In
/// between, the node is sent requests, if it takes any.
pub(super) async fn receive_announcements<R, W>(
    node: &NodeId,
    takes: Option<Takes>,
    shared: &Shared,
    reader: &mut Reader<R>,
    writer: &mut Writer<W>,
) -> Result<(), Refusal>
where
    R: tokio::io::AsyncRead + Unpin,
    W: tokio::io::AsyncWrite + Unpin,
{
    let mut state = shared.options.state.clone();
    let session = shared.options.announcements.open(node);
    let mut requests = takes.map(|takes| shared.options.relay.open(node, takes.reads));
    let mut pending = Pending::default();
    let mut last = None;
    loop {
        let announced = next_announcement(reader, writer, &mut requests, &mut pending).await?;
        let datapath = announced.datapath;
        if !session.announce(announced) {
            debug!(node, "the node has a newer connection");
            return Ok(());
        }
        if last.replace(datapath) != Some(datapath) {
            info!(node, datapath = datapath.name(), "a node announced its data path");
        }
        let listed = |state: &SourceState| state.cluster.nodes.get(node).map(|node| node.datapath);
        let published = |state: &SourceState| listed(state).is_none_or(|listed| listed == datapath);
        match timeout(PUBLISH_LIMIT, state.wait_for(published)).await {
            Ok(Ok(now)) if listed(&now).is_none() => return Err(Refusal::UnknownNode(node.clone())),
            Ok(Ok(_)) => {}
            // The publisher has ended, or a newer connection has announced something else.
            Ok(Err(_)) | Err(_) => return Ok(()),
        }
        send(writer, &FromManager::Acknowledged { datapath }).await?;
        sleep(ANNOUNCE_GAP).await;
    }
}

/// Waits for an announcement; sends requests and passes on answers meanwhile.
async fn next_announcement<R, W>(
    reader: &mut Reader<R>,
    writer: &mut Writer<W>,
    requests: &mut Option<RelayedRequests>,
    pending: &mut Pending,
) -> Result<Announced, Refusal>
where
    R: tokio::io::AsyncRead + Unpin,
    W: tokio::io::AsyncWrite + Unpin,
{
    let mut silence = std::pin::pin!(sleep(ANNOUNCE_SILENCE));
    loop {
        let message = tokio::select! {
            message = reader.next() => message.map_err(Refusal::Protocol)?,
            request = next_request(requests) => {
                send(writer, &numbered(pending, request)).await?;
                continue;
            }
            () = &mut silence => return Err(Refusal::Protocol(WireError::Silent(ANNOUNCE_SILENCE))),
        };
        match message {
            FromNode::Announce {
                datapath: NodeDatapath::Unknown,
                ..
            } => return Err(Refusal::Misbehaved("it announces nothing")),
            FromNode::Announce {
                datapath,
                address,
                release,
                keys,
                drained,
                failed,
            } => {
                return Ok(Announced {
                    datapath,
                    address,
                    release: known_release(release),
                    keys: known_keys(keys),
                    drained: drained.unwrap_or_default(),
                    failed: failed.unwrap_or_default(),
                });
            }
            FromNode::Drained {
                number,
                refusal,
                report,
                more,
            } => pending.drained(number, refusal.map_or(Ok(report), Err), more),
            FromNode::WasRead {
                number,
                refusal,
                text,
                more,
            } => pending.was_read(number, refusal.map_or(Ok(text), Err), more),
            FromNode::Hello { .. } => return Err(Refusal::Misbehaved("a second greeting")),
            FromNode::Hint | FromNode::NeedFull => {
                return Err(Refusal::Misbehaved("a request on a connection to announce"));
            }
        }
    }
}

fn numbered(pending: &mut Pending, request: RelayedRequest) -> FromManager {
    match request {
        RelayedRequest::Drain { request, answer } => FromManager::Drain {
            number: pending.drain(answer),
            request,
        },
        RelayedRequest::Read { path, answer } => FromManager::Read {
            number: pending.read(answer),
            path,
        },
    }
}

async fn next_request(requests: &mut Option<RelayedRequests>) -> RelayedRequest {
    match requests {
        Some(requests) => requests.next().await,
        None => std::future::pending().await,
    }
}

/// Sends a message, unless the peer takes too long to read it.
pub(super) async fn send<W: tokio::io::AsyncWrite + Unpin>(
    writer: &mut Writer<W>,
    message: &FromManager,
) -> Result<(), Refusal> {
    writer.send(message, SEND_LIMIT).await.map_err(Refusal::Protocol)
}

/// The release, if it looks like one: it is shown to users as it is.
fn known_release(release: String) -> String {
    const LONGEST: usize = 40;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-+".contains(&byte);
    if release.len() <= LONGEST && release.bytes().all(allowed) {
        release
    } else {
        String::new()
    }
}
