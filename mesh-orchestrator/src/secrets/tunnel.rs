//! The secret from which the cluster's agents derive the key of the packets between their nodes. It has no
//! other use. Depends on `vault`.

use std::collections::BTreeMap;

use zeroize::Zeroizing;

use super::{
    error::VaultError,
    key_file::KeyFileError,
    record::Kind,
    sealed::{Plaintext, SealError},
    vault::Vault,
};
use crate::objects::Timestamp;

/// Its name in the vault.
pub const TUNNEL: &str = "tunnel";
/// As many as the output of the hash that keys are derived with.
const BYTES: usize = 32;

impl Vault {
    /// The secret, if there is one.
    ///
    /// # Errors
    /// As [`Vault::reveal`].
    pub async fn tunnel_secret(&self) -> Result<Option<Plaintext>, VaultError> {
        match self.reveal(Kind::Agents, TUNNEL).await {
            Ok(secret) => Ok(Some(secret)),
            Err(VaultError::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The secret; makes it if there is none.
    ///
    /// # Errors
    /// As [`Vault::create`] and [`Vault::reveal`].
    pub async fn ensure_tunnel_secret(&self, now: Timestamp) -> Result<Option<Plaintext>, VaultError> {
        if let Some(secret) = self.tunnel_secret().await? {
            return Ok(Some(secret));
        }
        match self
            .create(Kind::Agents, TUNNEL, BTreeMap::new(), &random()?, now)
            .await
        {
            // If another node was faster, its secret counts.
            Ok(()) | Err(VaultError::Exists { .. }) => self.tunnel_secret().await,
            Err(error) => Err(error),
        }
    }

    /// Replaces the secret by another one.
    ///
    /// # Errors
    /// As [`Vault::replace`].
    pub async fn rotate_tunnel_secret(&self, now: Timestamp) -> Result<(), VaultError> {
        self.replace(Kind::Agents, TUNNEL, &random()?, now).await
    }
}

fn random() -> Result<Plaintext, VaultError> {
    let mut bytes = Zeroizing::new(vec![0; BYTES]);
    getrandom::fill(&mut bytes).map_err(|_| KeyFileError::from(SealError::Randomness))?;
    Ok(Plaintext::new(std::mem::take(&mut *bytes)))
}
