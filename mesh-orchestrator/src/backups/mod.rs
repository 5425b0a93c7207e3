//! Backups: the whole of a store in one file, to inspect and to restore from. Depends on the store's
//! trait.
//!
//! Secrets are in it as they are in the store: encrypted. The key file is not, and is needed to use them.

mod file;
mod restore;
mod schedule;

pub use file::{BackupError, BackupInfo, FORMAT, Header, create, inspect, list, read};
pub use restore::{RestoreInto, interrupted, restore};
pub use schedule::{BackupKind, BackupName, InvalidName, Keep, expired, is_due};
