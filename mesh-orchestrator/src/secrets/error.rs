//! Why a vault refused a request. Depends on `record` and `key_file`.

use std::path::PathBuf;

use super::{key_file::KeyFileError, record::Kind};
use crate::store::{InvalidKey, StoreError};

/// Why a value was not stored or revealed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VaultError {
    /// The name cannot be part of a key.
    #[error("the name of a {kind} is not allowed")]
    Name {
        /// Its kind.
        kind: Kind,
        /// What is wrong with it.
        source: InvalidKey,
    },
    /// There is no new key to use.
    #[error("no new key was prepared: rotate without --finish first, and copy the key file to all nodes")]
    NotPrepared,
    /// Larger than Docker allows.
    #[error("a {kind} of {found} bytes is too large; the limit is {}", kind.max_bytes())]
    TooLarge {
        /// Its kind.
        kind: Kind,
        /// How large it is.
        found: usize,
    },
    /// It exists already.
    #[error("the {kind} {name} already exists")]
    Exists {
        /// Its kind.
        kind: Kind,
        /// Its name.
        name: String,
    },
    /// It does not exist.
    #[error("there is no {kind} {name}")]
    Missing {
        /// Its kind.
        kind: Kind,
        /// Its name.
        name: String,
    },
    /// This machine lacks the key of the store's secrets.
    #[error(
        "the store's secrets are encrypted with the key {active}, which is not in {path}; copy the key file there from a node that has it, or from your own copy"
    )]
    NoKey {
        /// The identifier of the active key.
        active: String,
        /// Where the key file should be.
        path: PathBuf,
    },
    /// The stored entry is not a record.
    #[error("{key} is not the record of a secret; unless it was edited by hand, restore the newest backup")]
    Damaged {
        /// Its key.
        key: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The key file.
    #[error("the key file could not be used")]
    KeyFile(#[from] KeyFileError),
    /// The store.
    #[error("the store could not be read or written")]
    Store(#[from] StoreError),
}
