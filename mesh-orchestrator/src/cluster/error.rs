//! Why the cluster could not be opened or changed. Imports `commands`, `objects` and the store's errors.

use crate::{
    backups::BackupError,
    commands::CommandError,
    objects::{Refused, ServiceId},
    store::{InvalidKey, Key, Revision, StoreError, revisions::RevisionError},
};

/// An object in the store that cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error(
    "{key} does not have the format of this release; install the newest release on every node, or restore the newest backup"
)]
pub struct Unreadable {
    /// Its key.
    pub key: Key,
    /// What is wrong with it.
    pub source: serde_json::Error,
}

/// A task whose specification is not in the store.
#[derive(Debug, thiserror::Error)]
#[error(
    "the specification of {task} is missing in the store: /specs/{service}/{version}; restore the newest backup"
)]
pub struct MissingSpec {
    /// The task's key.
    pub task: Key,
    /// Its service.
    pub service: ServiceId,
    /// The task version that it runs.
    pub version: u64,
}

/// Why a cluster cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The store.
    #[error("could not read the cluster's objects from the store")]
    Store(#[from] StoreError),
    /// An object cannot be read.
    #[error("could not read one of the cluster's objects")]
    Unreadable(#[from] Unreadable),
    /// A part of one is missing.
    #[error("one of the cluster's tasks is incomplete")]
    MissingSpec(#[from] MissingSpec),
    /// The objects contradict each other.
    #[error("the objects in the store contradict each other; restore the newest backup")]
    Contradiction(#[from] Refused),
}

/// Why the cluster was not changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChangeError {
    /// The change is not possible.
    #[error("the change was refused")]
    Command(#[from] CommandError),
    /// The planned change does not fit the state, or not any more.
    #[error("the change does not fit the cluster's state")]
    Refused(#[from] Refused),
    /// Other writers were always faster.
    #[error("others changed {key} during each of {attempts} attempts to make the change; repeat it")]
    Contended {
        /// What they changed last.
        key: Key,
        /// How many attempts were made.
        attempts: u32,
    },
    /// The change would do nothing in a state that is older than the store's.
    #[error(
        "this node has the cluster's state only up to revision {seen}, and the store is at {newest}: whether the change is needed is not known; repeat it"
    )]
    Behind {
        /// The state's revision.
        seen: Revision,
        /// The store's.
        newest: Revision,
    },
    /// A backup is being restored, or a restore was interrupted.
    #[error(
        "nothing can be changed while a backup is being restored; if the restore was interrupted, restore the backup again"
    )]
    Restoring,
    /// Leadership was lost, so the leader's changes are refused.
    #[error("this node no longer leads the cluster")]
    NotLeader,
    /// An identifier cannot be part of a key.
    #[error("an identifier is not allowed")]
    Name(#[from] InvalidKey),
    /// An object is larger than a store accepts.
    #[error("{key} would take {bytes} bytes, and the store accepts {limit}; shorten the specification")]
    TooLarge {
        /// Its key.
        key: Key,
        /// Its size.
        bytes: usize,
        /// How large it may be.
        limit: usize,
    },
    /// An object cannot be written.
    #[error("one of the objects cannot be stored")]
    Unwritable(#[from] Unreadable),
    /// Old revisions.
    #[error("the service's revisions could not be read or written")]
    Revision(#[from] RevisionError),
    /// A backup.
    #[error("the backup could not be restored")]
    Backup(#[from] BackupError),
    /// The store.
    #[error("the store could not commit the change")]
    Store(#[from] StoreError),
}

impl ChangeError {
    /// Whether the store is unavailable, so that the same change may succeed later.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::Store(error) | Self::Revision(RevisionError::Store(error)) => error.is_unavailable(),
            Self::Behind { .. } => true,
            _ => false,
        }
    }
}
