//! The values of a node that has no key: a manager decrypts them for its tasks. Depends on `record` and the
//! remote store.

use async_trait::async_trait;

use super::{error::VaultError, record::Kind, sealed::Plaintext, tunnel::TUNNEL, vault::Vault};
use crate::store::remote::RemoteStore;

/// Where a node's agent reads values in clear text.
#[async_trait]
pub trait Secrets: std::fmt::Debug + Send + Sync + 'static {
    /// One value in clear text.
    ///
    /// # Errors
    /// [`VaultError::Missing`]; when the store does not answer, or the value cannot be decrypted.
    async fn reveal(&self, kind: Kind, name: &str) -> Result<Plaintext, VaultError>;

    /// The secret of which agents derive the key of the packets between nodes, if there is one.
    ///
    /// # Errors
    /// As [`Self::reveal`].
    async fn tunnel_secret(&self) -> Result<Option<Plaintext>, VaultError> {
        match self.reveal(Kind::Agents, TUNNEL).await {
            Ok(secret) => Ok(Some(secret)),
            Err(VaultError::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[async_trait]
impl Secrets for Vault {
    async fn reveal(&self, kind: Kind, name: &str) -> Result<Plaintext, VaultError> {
        Self::reveal(self, kind, name).await
    }
}

#[async_trait]
impl Secrets for RemoteStore {
    async fn reveal(&self, kind: Kind, name: &str) -> Result<Plaintext, VaultError> {
        let value = self.value(kind.segment(), name).await?;
        value.map(Plaintext::new).ok_or_else(|| VaultError::Missing {
            kind,
            name: name.to_owned(),
        })
    }
}
