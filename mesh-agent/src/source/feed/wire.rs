//! What managers' and other nodes' agents say to each other: JSON messages in frames of a bounded length,
//! four bytes of length (big-endian) first. Depends on the model and the delta.

use std::{
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::codec::{FramedRead, FramedWrite, LengthDelimitedCodec};

use super::delta::Delta;
use crate::model::{Cluster, NodeDatapath};

/// The version of these messages; both ends say it first, and must agree.
pub(super) const VERSION: u32 = 3;
/// The largest message a worker accepts: a cluster of a hundred thousand tasks.
pub(super) const MAX_FROM_MANAGER: usize = 32 << 20;
/// The largest message a manager accepts.
pub(super) const MAX_FROM_NODE: usize = 1 << 10;
/// A manager says this often that it is there.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(1);
/// A node repeats its announcement this often: the answer shows that the manager is there.
pub(super) const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(2);

/// What a manager says. Times are told as ages: the nodes' clocks may differ.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FromManager {
    /// Its first message.
    Hello {
        /// Its [`VERSION`].
        version: u32,
    },
    /// It will not serve this worker; the connection ends.
    Refused {
        /// Why, for the worker's log.
        reason: String,
    },
    /// The whole snapshot.
    Full {
        /// Its revision.
        revision: u64,
        /// Milliseconds since the event that led to it.
        changed_age: Option<u64>,
        /// The snapshot.
        cluster: Arc<Cluster>,
    },
    /// What has changed.
    Delta {
        /// The revision it must be applied to.
        from: u64,
        /// The revision it leads to.
        to: u64,
        /// Milliseconds since the event that led to it.
        changed_age: Option<u64>,
        /// The change.
        delta: Delta,
    },
    /// Nothing has changed.
    Heartbeat {
        /// The current revision.
        revision: u64,
        /// Milliseconds since the snapshot was last confirmed.
        confirmed_age: Option<u64>,
        /// What is wrong with the manager's own source.
        trouble: Option<String>,
    },
    /// The node's announcement is in the published snapshot.
    Acknowledged {
        /// What was announced.
        datapath: NodeDatapath,
    },
}

/// What a node says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FromNode {
    /// Its first message.
    Hello {
        /// Its [`VERSION`].
        version: u32,
        /// What the connection is for.
        #[serde(default)]
        purpose: Purpose,
    },
    /// What balances on the node.
    Announce {
        /// Never [`NodeDatapath::Unknown`].
        datapath: NodeDatapath,
    },
    /// A container of a task has changed here: a task will change soon.
    Hint,
    /// A delta did not fit: send the whole snapshot.
    NeedFull,
}

/// What a node connects for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Purpose {
    /// To be told the snapshot; one manager does.
    #[default]
    Follow,
    /// To tell what balances on the node; every manager has to know.
    Announce,
}

/// The other end said something else than expected.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    /// The connection broke, or a frame was too long.
    #[error("the connection broke")]
    Io(#[from] io::Error),
    /// A frame held no message.
    #[error("a message is not understood")]
    Decode(#[source] serde_json::Error),
    /// A message could not be written.
    #[error("a message cannot be encoded")]
    Encode(#[source] serde_json::Error),
    /// The other end closed the connection.
    #[error("the other end closed the connection")]
    Closed,
    /// The other end was silent, or did not read, for too long.
    #[error("the other end was silent for {0:?}")]
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

    /// Sends a message. After an error, or when cancelled, the connection is of no use any more.
    pub(super) async fn send<T: Serialize>(&mut self, message: &T, limit: Duration) -> Result<(), WireError> {
        let json = serde_json::to_vec(message).map_err(WireError::Encode)?;
        tokio::time::timeout(limit, self.0.send(Bytes::from(json)))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        Ok(())
    }
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
