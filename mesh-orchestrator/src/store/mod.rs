//! Storage of the orchestrator's objects: one trait, an embedded implementation for one node ([`redb`]), one
//! for several ([`etcd`]), one for nodes that have no access to a store and ask managers ([`remote`]), and
//! versioned objects on top ([`revisions`]).
//!
//! What every store guarantees, and the conformance suite checks:
//! - A transaction is committed whole or not at all, and only if all its conditions hold. A committed
//!   transaction survives a crash.
//! - Reads see every transaction committed before them. A list is the state at one revision, however many
//!   pages it has.
//! - A watch from a list's revision sees each later transaction once, whole, in order.
//!
//! Depends on `objects::Timestamp` only.

pub mod etcd;
pub mod membership;
pub mod redb;
pub mod remote;
pub mod revisions;

mod diff;
mod error;
mod key;
pub(crate) mod later;
mod lease;
mod revision;
mod transaction;
mod watch;

use std::fmt;

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt, stream::BoxStream};

pub use diff::{Difference, diff};
pub use error::{Source, StoreError};
pub use key::{InvalidKey, Key, MAX_KEY_BYTES, Prefix};
pub use lease::{EPHEMERAL, Heartbeat, Keeper, Lease, is_ephemeral};
pub use revision::{Expected, Revision};
pub use transaction::{MAX_OPERATIONS, MAX_TRANSACTION_BYTES, Transaction, Write};
pub use watch::{Event, Watch, WatchBatch, WatchSender};

/// The version of the stored keys and values. A store with a higher one is refused.
pub const SCHEMA: u64 = 1;

/// The default page size of a list.
pub const PAGE: usize = 500;

/// One stored object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub key: Key,
    /// Its value.
    pub value: Vec<u8>,
    /// When it was created, or last created again.
    pub created: Revision,
    /// When it was last changed.
    pub modified: Revision,
    /// How many times it was written since it was created, including then.
    pub version: u64,
}

/// All entries below a prefix at one revision, page by page, in key order.
pub struct Listing {
    /// The revision; watch from here to miss nothing.
    pub revision: Revision,
    /// The pages, none empty.
    pub pages: BoxStream<'static, Result<Vec<Entry>, StoreError>>,
}

impl Listing {
    /// All entries at once.
    ///
    /// # Errors
    /// When the store is unavailable, or the revision was compacted between two pages.
    pub async fn entries(self) -> Result<Vec<Entry>, StoreError> {
        self.pages.try_concat().await
    }

    /// The next page; `None` after the last.
    ///
    /// # Errors
    /// As [`Self::entries`].
    pub async fn next_page(&mut self) -> Result<Option<Vec<Entry>>, StoreError> {
        self.pages.next().await.transpose()
    }
}

impl fmt::Debug for Listing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Listing")
            .field("revision", &self.revision)
            .finish_non_exhaustive()
    }
}

/// A durable, ordered, versioned map from keys to bytes.
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// The file or the endpoints, for messages.
    fn describe(&self) -> String;

    /// One entry; `None` if there is no such key.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::Corrupt`].
    async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError>;

    /// The entries below a prefix, in pages of at most `page` entries (at least one).
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::Corrupt`]; of a later page also [`StoreError::Compacted`].
    async fn list(&self, prefix: &Prefix, page: usize) -> Result<Listing, StoreError>;

    /// Commits a transaction. Returns its revision, or the current one if it changed nothing.
    ///
    /// # Errors
    /// [`StoreError::Conflict`], [`StoreError::TooLarge`] and [`StoreError::Unavailable`]: nothing was
    /// changed. [`StoreError::OutcomeUnknown`]: it may have been committed.
    async fn commit(&self, transaction: Transaction) -> Result<Revision, StoreError>;

    /// Grants a lease, and renews it.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn lease(&self, heartbeat: Heartbeat) -> Result<Lease, StoreError>;

    /// As [`Self::commit`], but the ephemeral keys (see [`is_ephemeral`]) that it puts are removed with the
    /// lease, unless they are put again.
    ///
    /// # Errors
    /// As [`Self::commit`]; [`StoreError::Unavailable`] when the lease is lost.
    async fn commit_under(&self, lease: &Lease, transaction: Transaction) -> Result<Revision, StoreError>;

    /// The changes below a prefix after a revision, as far back as the store keeps them.
    ///
    /// The watch survives outages of the store: it is silent meanwhile, and nothing is lost. It ends with
    /// [`StoreError::Compacted`] when the store no longer has the next change.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] (also for a revision that the store never had, as it was replaced),
    /// [`StoreError::Unavailable`].
    async fn watch(&self, prefix: &Prefix, after: Revision) -> Result<Watch, StoreError>;

    /// All entries, at one revision.
    ///
    /// # Errors
    /// As [`Self::list`].
    async fn snapshot(&self) -> Result<Listing, StoreError> {
        self.list(&Prefix::everything(), PAGE).await
    }

    /// The revision now; other programs may have made it.
    ///
    /// # Errors
    /// As [`Self::list`].
    async fn newest(&self) -> Result<Revision, StoreError> {
        Ok(self.list(&Prefix::everything(), 1).await?.revision)
    }

    /// Drops the history before a revision, if the store does not do so by itself. Watches cannot start there
    /// any more.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn compact(&self, _before: Revision) -> Result<(), StoreError> {
        Ok(())
    }
}
