//! Backups: a whole store in one file, to inspect and to restore. Depends on the store's trait.
//!
//! Secrets are in it as in the store, encrypted. The key file, which is needed to use them, is not.

mod file;
mod restore;
mod schedule;

pub use file::{BackupError, BackupInfo, FORMAT, Header, create, inspect, list, read};
pub use restore::{RestoreInto, interrupted, restore};
pub use schedule::{BackupKind, BackupName, InvalidName, Keep, expired, is_due};
