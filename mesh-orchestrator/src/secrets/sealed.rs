//! One encrypted value: XChaCha20-Poly1305 with a random nonce, bound to the storage key. Pure but for the
//! nonce, which comes from the operating system. Depends on nothing of ours.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};
use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Generate, Payload},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// Bytes of a nonce.
const NONCE_BYTES: usize = 24;

/// A secret in clear text; wiped from memory when dropped, never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Plaintext(Zeroizing<Vec<u8>>);

impl Plaintext {
    /// From the secret's bytes.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The secret itself.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Plaintext {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("[redacted]")
    }
}

/// A key's identifier: a hash of the key, so that two keys never share one. It does not reveal the key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct KeyId(pub(super) String);

impl fmt::Display for KeyId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// An encryption key; wiped from memory when dropped, never shown.
#[derive(Clone)]
pub(super) struct Key(Zeroizing<[u8; 32]>);

impl fmt::Debug for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Key").field(&self.id()).finish()
    }
}

impl Key {
    /// Generates a key with the operating system's randomness.
    pub(super) fn generate() -> Result<Self, SealError> {
        let bytes = <[u8; 32]>::try_generate().map_err(|_| SealError::Randomness)?;
        Ok(Self(Zeroizing::new(bytes)))
    }

    /// The inverse of [`Self::encode`].
    pub(super) fn decode(text: &str) -> Option<Self> {
        let bytes = Zeroizing::new(STANDARD.decode(text).ok()?);
        let mut key = Zeroizing::new([0; 32]);
        if bytes.len() != key.len() {
            return None;
        }
        key.copy_from_slice(&bytes);
        Some(Self(key))
    }

    pub(super) fn encode(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(self.0.as_slice()))
    }

    pub(super) fn id(&self) -> KeyId {
        let digest = Sha256::new()
            .chain_update("mesh key id")
            .chain_update(self.0.as_slice())
            .finalize();
        KeyId(digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect())
    }

    /// Encrypts for one storage key: a value moved to another one cannot be decrypted.
    pub(super) fn seal(&self, plaintext: &Plaintext, location: &str) -> Result<Sealed, SealError> {
        let nonce = <[u8; NONCE_BYTES]>::try_generate().map_err(|_| SealError::Randomness)?;
        let payload = Payload {
            msg: plaintext.expose(),
            aad: location.as_bytes(),
        };
        let ciphertext = self
            .cipher()
            .encrypt(&XNonce::from(nonce), payload)
            .map_err(|_| SealError::Encrypt(location.to_owned()))?;
        Ok(Sealed {
            key_id: self.id(),
            nonce: Base64(nonce.to_vec()),
            ciphertext: Base64(ciphertext),
        })
    }

    pub(super) fn open(&self, sealed: &Sealed, location: &str) -> Result<Plaintext, SealError> {
        let refused = || SealError::Decrypt(location.to_owned());
        let nonce: [u8; NONCE_BYTES] = sealed.nonce.0.as_slice().try_into().map_err(|_| refused())?;
        let payload = Payload {
            msg: &sealed.ciphertext.0,
            aad: location.as_bytes(),
        };
        self.cipher()
            .decrypt(&XNonce::from(nonce), payload)
            .map(Plaintext::new)
            .map_err(|_| refused())
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new((&*self.0).into())
    }
}

/// An encrypted value, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sealed {
    pub(super) key_id: KeyId,
    nonce: Base64,
    ciphertext: Base64,
}

impl Sealed {
    /// The key with which it is encrypted.
    #[must_use]
    pub fn key_id(&self) -> &str {
        &self.key_id.0
    }
}

/// Why a value was not encrypted or decrypted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// The operating system returned no random numbers.
    #[error("the operating system returned no random numbers, without which nothing can be encrypted")]
    Randomness,
    /// Too large for the cipher.
    #[error("could not encrypt {0}")]
    Encrypt(String),
    /// It was changed or moved, or encrypted with another key of the same identifier.
    #[error(
        "could not decrypt {0}: it was changed or moved since it was encrypted; create it again or restore a backup"
    )]
    Decrypt(String),
}

#[derive(Clone, PartialEq, Eq)]
struct Base64(Vec<u8>);

impl fmt::Debug for Base64 {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "[{} bytes]", self.0.len())
    }
}

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Self).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_sealed_value_opens_at_its_own_location_only(bytes: Vec<u8>, change in 0..16_usize) {
            let key = Key::generate().unwrap();
            let plaintext = Plaintext::new(bytes);
            let sealed = key.seal(&plaintext, "/secrets/a").unwrap();
            let stored = serde_json::to_string(&sealed).unwrap();
            let sealed: Sealed = serde_json::from_str(&stored).unwrap();
            prop_assert_eq!(key.open(&sealed, "/secrets/a").unwrap(), plaintext.clone());
            prop_assert!(key.open(&sealed, "/secrets/b").is_err());
            prop_assert!(Key::generate().unwrap().open(&sealed, "/secrets/a").is_err());
            let mut changed = sealed;
            let index = change % changed.ciphertext.0.len();
            changed.ciphertext.0[index] ^= 1;
            prop_assert!(key.open(&changed, "/secrets/a").is_err());
        }
    }

    #[test]
    fn debug_output_shows_no_secret() {
        let key = Key::generate().unwrap();
        let plaintext = Plaintext::new(b"hunter2".to_vec());
        assert_eq!(format!("{plaintext:?}"), "[redacted]");
        let shown = format!("{key:?}");
        assert!(
            !shown.contains(key.encode().as_str()) && shown.contains(&key.id().0),
            "{shown}"
        );
    }

    #[test]
    fn the_same_secret_is_never_encrypted_to_the_same_ciphertext() {
        let key = Key::generate().unwrap();
        let plaintext = Plaintext::new(b"hunter2".to_vec());
        assert_ne!(
            key.seal(&plaintext, "x").unwrap(),
            key.seal(&plaintext, "x").unwrap()
        );
    }

    #[test]
    fn a_key_round_trips() {
        let key = Key::generate().unwrap();
        assert_eq!(Key::decode(&key.encode()).unwrap().id(), key.id());
        assert!(Key::decode("short").is_none());
    }
}
