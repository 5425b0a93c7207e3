//! The messages between managers' and other nodes' agents: JSON in length-delimited frames (four bytes,
//! big-endian) of limited length. Imports the model and the delta.

use std::{
    io,
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::codec::{FramedRead, FramedWrite, LengthDelimitedCodec};

use super::delta::Delta;
use crate::model::{
    Cluster, DrainReport, DrainRequest, Drained, FailedChecks, KeyId, NodeDatapath, TunnelKey,
};

/// The version of these messages. Fields that a peer does not know are ignored, and those that it does not
/// send have defaults, so a message of one version can be read by the next and by the one before.
pub(super) const VERSION: u32 = 5;
/// The oldest version that is still spoken, so that agents can be upgraded one by one.
pub(super) const OLDEST: u32 = 3;
/// The largest message a worker accepts: a cluster of a hundred thousand tasks.
pub(super) const MAX_FROM_MANAGER: usize = 32 << 20;
/// The largest message a manager accepts: the replicas that fail their check take most of it. 1 KiB before
/// version 5.
pub(super) const MAX_FROM_NODE: usize = 16 << 10;
/// The oldest version in which replicas that fail their check are announced; before, messages were shorter.
pub(super) const WITH_FAILED_CHECKS: u32 = 5;
/// A manager sends a heartbeat this often.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(1);
/// A node repeats its announcement this often; the acknowledgement shows that the manager is alive.
pub(super) const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(2);

/// A manager's messages. Times are sent as ages, as the nodes' clocks may differ.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FromManager {
    /// The first message.
    Hello {
        /// The version that it chose.
        version: u32,
        /// Its clock, in milliseconds since 1970; `None` from older agents. Only compared, never used.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        clock: Option<u64>,
    },
    /// The manager does not serve this node; the connection ends.
    Refused {
        /// Why, for the node's log.
        reason: String,
    },
    /// A whole snapshot.
    Full {
        /// Its revision.
        revision: u64,
        /// Milliseconds since the event that caused it.
        changed_age: Option<u64>,
        /// Milliseconds since the snapshot was last confirmed by a list; `None` in version 3.
        confirmed_age: Option<u64>,
        /// The store's version of the newest object in the snapshot; 0 in version 3.
        #[serde(default)]
        epoch: u64,
        /// The key of packets between nodes; `None` from older agents.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<TunnelKey>,
        /// The snapshot.
        cluster: Arc<Cluster>,
    },
    /// The difference to the last snapshot.
    Delta {
        /// The revision that it applies to.
        from: u64,
        /// The resulting revision.
        to: u64,
        /// Milliseconds since the event that caused it.
        changed_age: Option<u64>,
        /// Milliseconds since the snapshot was last confirmed by a list; `None` in version 3.
        confirmed_age: Option<u64>,
        /// The store's version of the newest object in the snapshot; 0 in version 3.
        #[serde(default)]
        epoch: u64,
        /// The difference.
        delta: Delta,
    },
    /// Nothing has changed.
    Heartbeat {
        /// The current revision.
        revision: u64,
        /// Milliseconds since the snapshot was last confirmed.
        confirmed_age: Option<u64>,
        /// The store's version of the newest object in the snapshot; 0 in version 3.
        #[serde(default)]
        epoch: u64,
        /// What is wrong with the manager's own source.
        trouble: Option<String>,
        /// The key of packets between nodes; `None` from older agents.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<TunnelKey>,
    },
    /// The published snapshot contains the node's announcement.
    Acknowledged {
        /// What was announced.
        datapath: NodeDatapath,
    },
    /// An operator asks about the node's drained replicas. Only sent to a node whose greeting says that it
    /// takes requests.
    Drain {
        /// The number of the answer.
        number: u64,
        /// What to do first, if anything.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        request: Option<DrainRequest>,
    },
    /// An operator reads what the node's agent shows on its own admin socket. Only sent to a node whose
    /// greeting says that it takes such requests.
    Read {
        /// The number of the answer.
        number: u64,
        /// What to read: a path below the version of the admin API, with its query.
        path: String,
    },
}

/// A node's messages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FromNode {
    /// The first message.
    Hello {
        /// The oldest version that the node speaks. Version 3 knows no other.
        version: u32,
        /// The newest one; 0 for `version`.
        #[serde(default)]
        newest: u32,
        /// The purpose of the connection.
        #[serde(default)]
        purpose: Purpose,
        /// Whether the node takes [`FromManager::Drain`]; older agents do not.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        takes_requests: bool,
        /// Whether the node takes [`FromManager::Read`]; older agents do not.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        takes_reads: bool,
    },
    /// The node's data path.
    Announce {
        /// Never [`NodeDatapath::Unknown`].
        datapath: NodeDatapath,
        /// Where to send its packets, if not to its Swarm address; never in version 3.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        address: Option<Ipv4Addr>,
        /// The agent's release; empty from older agents.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        release: String,
        /// The ids of the keys that the data path takes; `None` from older agents, which take none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        keys: Option<Vec<KeyId>>,
        /// The replicas that an operator drains on the node; `None` from agents that cannot.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        drained: Option<Drained>,
        /// The replicas on the node that fail their check; never before version 5.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        failed: Option<FailedChecks>,
    },
    /// A task's container has changed here, so the task is about to change.
    Hint,
    /// A delta did not apply: send a whole snapshot.
    NeedFull,
    /// The answer to [`FromManager::Drain`], or a part of it.
    Drained {
        /// The request's number.
        number: u64,
        /// Why nothing has changed; `None` if the request was carried out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        refusal: Option<String>,
        /// What is drained.
        #[serde(default)]
        report: DrainReport,
        /// Whether another part follows.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        more: bool,
    },
    /// The answer to [`FromManager::Read`], or a part of it.
    WasRead {
        /// The request's number.
        number: u64,
        /// Why there is nothing to read; `None` if there is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        refusal: Option<String>,
        /// A part of the answer's JSON.
        #[serde(default)]
        text: String,
        /// Whether another part follows.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        more: bool,
    },
}

/// The purpose of a node's connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Purpose {
    /// To receive snapshots, from one manager.
    #[default]
    Follow,
    /// To announce its data path, to every manager.
    Announce,
    /// To find out whether the manager serves the node; the connection ends with the greeting.
    Check,
}

/// The connection failed, or the peer broke the protocol.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    /// The connection broke, or a frame was too long.
    #[error("the connection broke")]
    Io(#[from] io::Error),
    /// A frame contained no valid message.
    #[error("cannot parse a message")]
    Decode(#[source] serde_json::Error),
    /// A message could not be encoded.
    #[error("cannot encode a message")]
    Encode(#[source] serde_json::Error),
    /// The peer closed the connection.
    #[error("the peer closed the connection")]
    Closed,
    /// The peer sent or read nothing for too long.
    #[error("the peer was silent for {0:?}")]
    Silent(Duration),
}

/// The reading half of a connection.
pub(super) struct Reader<R>(FramedRead<R, LengthDelimitedCodec>);

impl<R: AsyncRead + Unpin> Reader<R> {
    pub(super) fn new(half: R, max_length: usize) -> Self {
        let codec = LengthDelimitedCodec::builder()
            .max_frame_length(max_length)
            .new_codec();
        Self(FramedRead::new(half, codec))
    }

    /// The next message. Cancel safe.
    pub(super) async fn next<T: DeserializeOwned>(&mut self) -> Result<T, WireError> {
        let frame = self.0.next().await.ok_or(WireError::Closed)??;
        serde_json::from_slice(&frame).map_err(WireError::Decode)
    }

    /// The next message, unless it takes too long.
    pub(super) async fn next_within<T: DeserializeOwned>(&mut self, limit: Duration) -> Result<T, WireError> {
        tokio::time::timeout(limit, self.next())
            .await
            .unwrap_or(Err(WireError::Silent(limit)))
    }
}

/// The writing half of a connection.
pub(super) struct Writer<W>(FramedWrite<W, LengthDelimitedCodec>);

impl<W: AsyncWrite + Unpin> Writer<W> {
    pub(super) fn new(half: W, max_length: usize) -> Self {
        let codec = LengthDelimitedCodec::builder()
            .max_frame_length(max_length)
            .new_codec();
        Self(FramedWrite::new(half, codec))
    }

    /// Sends a message. After an error, or when cancelled, the connection is unusable.
    pub(super) async fn send<T: Serialize>(&mut self, message: &T, limit: Duration) -> Result<(), WireError> {
        let json = serde_json::to_vec(message).map_err(WireError::Encode)?;
        tokio::time::timeout(limit, self.0.send(Bytes::from(json)))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        Ok(())
    }
}

/// The version to speak with a node that speaks `oldest` to `newest`: the newest common one.
pub(super) fn common_version(oldest: u32, newest: u32) -> Option<u32> {
    let version = newest.max(oldest).min(VERSION);
    (version >= oldest.max(OLDEST)).then_some(version)
}

/// This machine's clock in milliseconds since 1970.
pub(super) fn clock() -> Option<u64> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?;
    u64::try_from(since.as_millis()).ok()
}

/// A time as an age in milliseconds.
pub(super) fn age(time: Option<SystemTime>) -> Option<u64> {
    let age = time?.elapsed().unwrap_or_default().as_millis();
    u64::try_from(age).ok()
}

/// An age in milliseconds as a time.
pub(super) fn time(age: Option<u64>) -> Option<SystemTime> {
    SystemTime::now().checked_sub(Duration::from_millis(age?))
}

/// An age in milliseconds as a moment of this machine's monotonic clock.
pub(super) fn instant(age: Option<u64>, now: Instant) -> Option<Instant> {
    now.checked_sub(Duration::from_millis(age?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_speak_their_newest_common_version() {
        for (oldest, newest, expected) in [
            (3, 0, Some(3)),
            (3, 4, Some(4)),
            (4, 5, Some(5)),
            (5, 6, Some(5)),
            (6, 7, None),
            (2, 0, None),
            (1, 2, None),
        ] {
            assert_eq!(common_version(oldest, newest), expected, "{oldest} to {newest}");
        }
    }
}
