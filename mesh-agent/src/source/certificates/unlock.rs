//! The key that unlocks an autolocked Swarm: managers' node keys are encrypted with it. A manager's engine
//! holds it in memory and gives it to users of its socket, so the agent asks for it each time that it reads
//! an encrypted node key, and keeps it nowhere.

use std::fmt;

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD},
};
use pkcs8::EncryptedPrivateKeyInfo;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::Deserialize;

use crate::docker::{Docker, DockerError};

/// What the key begins with in its readable form.
const PREFIX: &str = "SWMKEY-1-";

/// An encrypted node key could not be decrypted.
#[derive(Debug, thiserror::Error)]
pub enum UnlockError {
    /// The engine does not give the key.
    #[error(
        "this node's engine does not give the key that unlocks it; only a manager that is unlocked has it"
    )]
    Engine(#[source] DockerError),
    /// The engine has no key.
    #[error("this node's engine has no key that unlocks it; is autolock about to be switched off?")]
    NoKey,
    /// The engine's key is not of the known form.
    #[error("the engine's unlock key is not of the form {PREFIX}…; this engine may need a newer agent")]
    Form,
    /// The file is not an encrypted key.
    #[error("it is not PEM")]
    Pem(#[source] base64::DecodeError),
    /// The encryption is not known.
    #[error("it is encrypted in an unknown way; this engine may need a newer agent")]
    Encryption(#[source] pkcs8::Error),
    /// The key is another one.
    #[error("the engine's unlock key does not fit; is the unlock key being rotated?")]
    WrongKey,
}

/// The key that unlocks. Not printable.
pub(crate) struct UnlockKey(Vec<u8>);

impl fmt::Debug for UnlockKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("UnlockKey(...)")
    }
}

/// The engine's answer. Not printable.
#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "UnlockKey", default)]
    key: String,
}

impl UnlockKey {
    /// Asks this node's engine.
    ///
    /// # Errors
    /// When it does not answer, or has none: on workers, and where there is no autolock.
    pub(crate) async fn ask(docker: &Docker) -> Result<Self, UnlockError> {
        let answer: Answer = docker
            .get("/swarm/unlockkey")
            .await
            .map_err(UnlockError::Engine)?;
        Self::parse(&answer.key)
    }

    fn parse(text: &str) -> Result<Self, UnlockError> {
        if text.is_empty() {
            return Err(UnlockError::NoKey);
        }
        let encoded = text.strip_prefix(PREFIX).ok_or(UnlockError::Form)?;
        let key = STANDARD_NO_PAD.decode(encoded).map_err(|_| UnlockError::Form)?;
        Ok(Self(key))
    }

    /// Decrypts a node key: PEM without Swarm's headers.
    pub(super) fn decrypt(&self, pem: &str) -> Result<PrivateKeyDer<'static>, UnlockError> {
        let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        let encrypted = STANDARD.decode(body).map_err(UnlockError::Pem)?;
        let encrypted =
            EncryptedPrivateKeyInfo::try_from(encrypted.as_slice()).map_err(UnlockError::Encryption)?;
        let key = encrypted.decrypt(&self.0).map_err(|_| UnlockError::WrongKey)?;
        Ok(PrivatePkcs8KeyDer::from(key.as_bytes().to_vec()).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{
        CertificateError, NodeIdentity,
        test_authority::{Authority, written},
    };

    /// A manager's key as dockerd 20.10 wrote it, of a Swarm that is gone, and what unlocked it.
    const LOCKED: &str = include_str!("fixtures/autolocked.key");
    const UNLOCK: &str = "SWMKEY-1-2k0uQ3A1MUxoamrtM/DOgycTkhGsj6VcR43G1tFjpJA";

    #[test]
    fn a_managers_key_is_decrypted_with_the_engines_unlock_key() {
        let folder = written(&Authority::new("cluster-1"), "node-1");
        std::fs::write(folder.path().join("swarm-node.key"), LOCKED).unwrap();
        let key = UnlockKey::parse(UNLOCK).unwrap();
        let identity = NodeIdentity::read(folder.path(), Some(&key)).unwrap();
        rustls::crypto::ring::sign::any_ecdsa_type(&identity.key()).unwrap();
    }

    #[test]
    fn another_key_or_none_is_an_error_that_shows_nothing_of_either() {
        let folder = written(&Authority::new("cluster-1"), "node-1");
        std::fs::write(folder.path().join("swarm-node.key"), LOCKED).unwrap();
        let other = UNLOCK.replace("2k0u", "2k0v");
        let other = UnlockKey::parse(&other).unwrap();
        for (key, expected) in [(Some(&other), "does not fit"), (None, "no key that unlocks it")] {
            let error = NodeIdentity::read(folder.path(), key).unwrap_err();
            assert!(matches!(error, CertificateError::Encrypted { .. }), "{error:?}");
            let shown = format!("{} {error:?} {key:?}", mesh_support::error_chain(&error));
            assert!(shown.contains(expected) && shown.contains("autolock"), "{shown}");
            assert!(!shown.contains("2k0") && !shown.contains("MIG"), "{shown}");
        }
    }

    #[test]
    fn what_is_no_unlock_key_is_refused() {
        assert!(matches!(UnlockKey::parse(""), Err(UnlockError::NoKey)));
        for text in ["SWMKEY-2-AAAA", "SWMKEY-1-!", "2k0u"] {
            assert!(matches!(UnlockKey::parse(text), Err(UnlockError::Form)), "{text}");
        }
    }

    #[tokio::test]
    async fn the_engine_is_asked_only_for_an_encrypted_key() {
        let folder = written(&Authority::new("cluster-1"), "node-1");
        let docker = Docker::new("/nonexistent/docker.sock");
        NodeIdentity::load(folder.path(), &docker).await.unwrap();
        std::fs::write(folder.path().join("swarm-node.key"), LOCKED).unwrap();
        let error = NodeIdentity::load(folder.path(), &docker).await.unwrap_err();
        let shown = mesh_support::error_chain(&error);
        assert!(
            shown.contains("does not give the key") && shown.contains("/nonexistent"),
            "{shown}"
        );
    }
}
