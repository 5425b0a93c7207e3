//! Secrets, configs and registry credentials: encrypted before they reach a store, decrypted only for
//! whoever uses them. Depends on the store's trait.
//!
//! What is stored is useless without the key file, which is not in the store and in no backup; on
//! several nodes each has a copy. Names, labels and times are not secret and are stored as they are.

mod key_file;
mod sealed;
mod vault;

pub use key_file::{KeyFileError, KeyRing};
pub use sealed::{Plaintext, SealError, Sealed};
pub use vault::{Kind, Record, Vault, VaultError};
