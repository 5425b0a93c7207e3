//! The keys by which nodes know that a packet in the tunnel is from a node of their cluster. A key's value
//! must not reach a log, a dump or a snapshot; its id may.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::Ipv4Addr,
};

use ring::hmac;
use serde::{Deserialize, Serialize};

/// A key's public name. It says nothing about the key's value.
pub type KeyId = u32;

/// A key and its public name.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelKey {
    id: KeyId,
    value: u64,
}

impl TunnelKey {
    /// Derives a cluster's key from a secret, which cannot be calculated from it.
    #[must_use]
    pub fn derive(secret: &[u8], cluster_id: &str) -> Self {
        let secret = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let number = |purpose: &str| {
            let tag = hmac::sign(&secret, format!("mesh tunnel {purpose} {cluster_id}").as_bytes());
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&tag.as_ref()[..8]);
            u64::from_be_bytes(bytes)
        };
        Self {
            // Zero stands for no key.
            id: ((number("id") >> 32) as KeyId).max(1),
            value: number("key").max(1),
        }
    }

    /// Its public name.
    #[must_use]
    pub fn id(self) -> KeyId {
        self.id
    }

    /// Its value as it is on the wire.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 8] {
        self.value.to_be_bytes()
    }

    /// A key from its public name and its value as it is on the wire; `None` if there is none.
    #[must_use]
    pub fn from_bytes(id: KeyId, bytes: [u8; 8]) -> Option<Self> {
        let value = u64::from_be_bytes(bytes);
        (id != 0 && value != 0).then_some(Self { id, value })
    }
}

/// Without the value.
impl fmt::Debug for TunnelKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "TunnelKey({:08x}, ...)", self.id)
    }
}

/// What a data path has to know of keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TunnelKeys {
    /// The cluster's key; `None` while this node has not learned it, which changes nothing.
    pub current: Option<TunnelKey>,
    /// The keys that each peer's data path takes: none if the peer is of a release without keys. Of a peer
    /// that is not listed nothing is known, and what was known before holds.
    pub peers: BTreeMap<Ipv4Addr, Vec<KeyId>>,
    /// The peers without a data path: one that comes up there knows no keys yet.
    pub without_datapath: BTreeSet<Ipv4Addr>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_secret_and_cluster_has_a_key_of_its_own() {
        let key = TunnelKey::derive(b"secret", "cluster");
        assert_eq!(key, TunnelKey::derive(b"secret", "cluster"));
        for other in [
            TunnelKey::derive(b"another", "cluster"),
            TunnelKey::derive(b"secret", "another"),
        ] {
            assert_ne!(key.value, other.value);
            assert_ne!(key.id, other.id);
        }
        assert_eq!(TunnelKey::from_bytes(key.id(), key.to_bytes()), Some(key));
        assert_eq!(TunnelKey::from_bytes(0, [0; 8]), None);
    }

    #[test]
    fn no_value_is_printed() {
        let key = TunnelKey::derive(b"secret", "cluster");
        let keys = TunnelKeys {
            current: Some(key),
            ..TunnelKeys::default()
        };
        let text = format!("{key:?} {keys:?} {keys:#?}");
        for value in [
            key.value.to_string(),
            format!("{:x}", key.value),
            format!("{:?}", key.to_bytes()),
        ] {
            assert!(!text.contains(&value), "{text}");
        }
    }
}
