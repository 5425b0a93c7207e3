//! The keys in the maps, and which of them each peer is sent. Part of [`Tables`].
//!
//! A key keeps its index for as long as it is held, since next hops name keys by index. A new key replaces
//! the one that is not in use.

use std::{collections::BTreeMap, net::Ipv4Addr};

use mesh_ebpf::abi::{KEY_COUNT, Keys};

use super::{Maps, Tables};
use crate::{
    datapath::{DatapathError, ebpf::failed},
    model::{KeyId, TunnelKey, TunnelKeys},
};

/// The keys that this node holds, and what it knows of its peers'.
#[derive(Debug, Default)]
pub(super) struct HeldKeys {
    keys: Keys,
    /// The index of the one that is sent to peers that take it.
    newest: usize,
    /// The keys that each peer takes.
    peers: BTreeMap<Ipv4Addr, Vec<KeyId>>,
}

impl HeldKeys {
    /// What an earlier agent left.
    pub(super) fn adopt(keys: Keys) -> Self {
        Self {
            keys,
            ..Self::default()
        }
    }

    /// Takes the cluster's key over; true if that changes what the map is to hold.
    fn take(&mut self, key: TunnelKey) -> bool {
        let held = self.keys.ids.iter().position(|id| *id == key.id());
        let index = held.unwrap_or_else(|| {
            let free = self.keys.ids.iter().position(|id| *id == 0);
            free.unwrap_or((self.newest + 1) % KEY_COUNT)
        });
        let value = u64::from_ne_bytes(key.to_bytes());
        let changed = self.keys.values[index] != value;
        self.keys.ids[index] = key.id();
        self.keys.values[index] = value;
        self.newest = index;
        changed
    }

    /// What names the key that a peer is sent: an index plus one, 0 for none. `before` holds while nothing is
    /// known of the peer.
    pub(super) fn number_for(&self, peer: Ipv4Addr, before: u16) -> u16 {
        let Some(takes) = self.peers.get(&peer) else {
            return before;
        };
        let holds = |index: &usize| self.keys.ids[*index] != 0 && takes.contains(&self.keys.ids[*index]);
        match [self.newest, (self.newest + 1) % KEY_COUNT]
            .iter()
            .find(|index| holds(index))
        {
            Some(index) => *index as u16 + 1,
            None if takes.is_empty() => 0,
            // It has been given another key, which this node will learn as well.
            None => before,
        }
    }

    fn key(&self, number: u16) -> Option<TunnelKey> {
        let index = usize::from(number).checked_sub(1)?;
        TunnelKey::from_bytes(
            *self.keys.ids.get(index)?,
            self.keys.values.get(index)?.to_ne_bytes(),
        )
    }
}

impl Tables {
    /// Takes over the cluster's key and what is known of the peers', and keeps next hops in step.
    pub(in super::super) fn set_keys(
        &mut self,
        maps: &mut Maps,
        wanted: &TunnelKeys,
    ) -> Result<(), DatapathError> {
        if let Some(key) = wanted.current
            && self.keys.take(key)
        {
            maps.set_keys(&self.keys.keys)?;
        }
        self.keys.peers.clone_from(&wanted.peers);
        for (address, peer) in &mut self.peers {
            let number = self.keys.number_for(*address, peer.key);
            let failed = |error| failed(format!("write the key of peer {address}"), error);
            // Its packets have no key, or no longer one, or the next ones will not have one yet.
            let has_none = wanted.peers.get(address).is_some_and(Vec::is_empty);
            if has_none || wanted.without_datapath.contains(address) {
                maps.keyed.set(peer.index, 0, 0).map_err(failed)?;
            }
            if number != peer.key {
                let mut next_hop = maps.next_hops.get(&peer.index, 0).map_err(failed)?;
                next_hop.key = number;
                maps.next_hops.set(peer.index, next_hop, 0).map_err(failed)?;
                peer.key = number;
            }
        }
        Ok(())
    }

    /// The ids of the keys that this node takes.
    pub(in super::super) fn key_ids(&self) -> Vec<KeyId> {
        let ids = self.keys.keys.ids;
        ids.into_iter().filter(|id| *id != 0).collect()
    }

    /// The key that each peer is sent.
    pub(in super::super) fn sent_keys(&self) -> BTreeMap<Ipv4Addr, TunnelKey> {
        let peers = self.peers.iter();
        peers
            .filter_map(|(address, peer)| Some((*address, self.keys.key(peer.key)?)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

    fn key(secret: &str) -> TunnelKey {
        TunnelKey::derive(secret.as_bytes(), "cluster")
    }

    /// The key that the peer is sent, when it was sent `before` and takes these.
    fn sent(held: &mut HeldKeys, takes: &[TunnelKey], before: u16) -> Option<TunnelKey> {
        held.peers
            .insert(PEER, takes.iter().map(|key| key.id()).collect());
        held.key(held.number_for(PEER, before))
    }

    #[test]
    fn a_peer_is_sent_the_newest_key_that_it_takes() {
        let (old, new) = (key("old"), key("new"));
        let mut held = HeldKeys::default();
        assert!(held.take(old));
        assert!(!held.take(old), "it is held already");
        assert_eq!(sent(&mut held, &[], 0), None);
        assert_eq!(sent(&mut held, &[old], 0), Some(old));
        assert!(held.take(new));
        assert_eq!(
            sent(&mut held, &[old], 1),
            Some(old),
            "it does not take the new one yet"
        );
        assert_eq!(sent(&mut held, &[old, new], 1), Some(new));
        assert_eq!(sent(&mut held, &[new], 1), Some(new));
    }

    #[test]
    fn what_is_not_known_changes_nothing() {
        let mut held = HeldKeys::default();
        held.take(key("old"));
        assert_eq!(held.number_for(PEER, 1), 1, "no announcement");
        assert_eq!(sent(&mut held, &[key("newer")], 1), Some(key("old")));
        assert_eq!(sent(&mut held, &[], 1), None, "a release without keys");
    }

    #[test]
    fn a_third_key_replaces_the_oldest() {
        let mut held = HeldKeys::default();
        for secret in ["first", "second", "third"] {
            held.take(key(secret));
        }
        assert_eq!(sent(&mut held, &[key("second")], 0), Some(key("second")));
        assert_eq!(
            sent(&mut held, &[key("first"), key("third")], 0),
            Some(key("third"))
        );
        // A manager that still has the key before.
        assert!(!held.take(key("second")));
        assert_eq!(
            sent(&mut held, &[key("third"), key("second")], 0),
            Some(key("second"))
        );
    }
}
