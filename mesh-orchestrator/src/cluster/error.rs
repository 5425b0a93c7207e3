//! Why the cluster was not opened or changed. Imports `commands`, `objects` and the store's errors.

use crate::{
    backups::BackupError,
    commands::CommandError,
    objects::Refused,
    store::{InvalidKey, Key, StoreError, revisions::RevisionError},
};

/// An object in the store that cannot be read, or one that cannot be written.
#[derive(Debug, thiserror::Error)]
#[error(
    "{key} is not as this release writes it; install the newest release on every node, or restore the newest backup"
)]
pub struct Unreadable {
    /// Where it is.
    pub key: Key,
    /// What is wrong with it.
    pub source: serde_json::Error,
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
    /// The objects contradict each other.
    #[error("the objects in the store contradict each other; restore the newest backup")]
    Contradiction(#[from] Refused),
}

/// Why the cluster was not changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChangeError {
    /// What was asked for is not possible.
    #[error("the change is refused")]
    Command(#[from] CommandError),
    /// What was worked out does not fit the state (any more).
    #[error("the change does not fit the cluster's state")]
    Refused(#[from] Refused),
    /// Others were faster, again and again.
    #[error("{key} was changed by others {attempts} times while the change was made; repeat it")]
    Contended {
        /// What they changed last.
        key: Key,
        /// How often it was tried.
        attempts: u32,
    },
    /// A backup is being restored, or a restore was broken off.
    #[error(
        "nothing can be changed while a backup is restored; if the restore was broken off, restore the backup again"
    )]
    Restoring,
    /// The lead was lost, so that nothing may be changed in its name.
    #[error("this node does not lead the cluster any more")]
    NotLeader,
    /// An identifier cannot be part of a key.
    #[error("an identifier is not allowed")]
    Name(#[from] InvalidKey),
    /// An object cannot be written.
    #[error("one of the objects cannot be stored")]
    Unwritable(#[from] Unreadable),
    /// Old revisions.
    #[error("the service's revisions could not be used")]
    Revision(#[from] RevisionError),
    /// A backup.
    #[error("the backup could not be used")]
    Backup(#[from] BackupError),
    /// The store.
    #[error("the store did not take the change")]
    Store(#[from] StoreError),
}

impl ChangeError {
    /// Whether the store is out of reach, so that the same change can go through later.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::Store(error) | Self::Revision(RevisionError::Store(error)) => error.is_unavailable(),
            _ => false,
        }
    }
}
