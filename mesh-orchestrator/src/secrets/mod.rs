//! Secrets, configs and registry credentials: encrypted before they are stored, decrypted only for their
//! users. Depends on the store's trait.
//!
//! The stored values are useless without the key file, which is neither in the store nor in backups; each
//! manager has a copy. Names, labels and times are stored in clear text.

mod error;
mod key_file;
mod record;
mod remote;
mod sealed;
mod tunnel;
mod vault;

pub use error::VaultError;
pub use key_file::{KeyFileError, KeyRing};
pub use record::{Kind, Record};
pub use remote::Secrets;
pub use sealed::{Plaintext, SealError, Sealed};
pub use tunnel::TUNNEL;
pub use vault::Vault;
