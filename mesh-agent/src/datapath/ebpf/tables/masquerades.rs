//! What containers see instead of clients of their own networks, in the maps. Part of [`Tables`].

use std::net::Ipv4Addr;

use aya::maps::lpm_trie::Key;
use mesh_ebpf::{abi, bytes::Be32};

use super::{Maps, Tables, removed};
use crate::{
    datapath::{DatapathError, ebpf::failed},
    model::{Masquerade, Subnet},
};

impl Tables {
    /// Gives clients of a network another source towards a container.
    pub(in super::super) fn upsert_masquerade(
        &mut self,
        maps: &mut Maps,
        key: Masquerade,
        source: Ipv4Addr,
    ) -> Result<(), DatapathError> {
        maps.masquerades
            .insert(&abi_key(key), Be32::from(source), 0)
            .map_err(|error| failed(format!("give {key} the source {source}"), error))?;
        self.masquerades.insert(key, false);
        Ok(())
    }

    /// Lets a container see the clients of a network, if it does not.
    pub(in super::super) fn remove_masquerade(
        &mut self,
        maps: &mut Maps,
        key: Masquerade,
    ) -> Result<(), DatapathError> {
        self.masquerades.remove(&key);
        removed(maps.masquerades.remove(&abi_key(key)), "MASQUERADES")
    }
}

fn abi_key(Masquerade { interface, clients }: Masquerade) -> Key<abi::Masquerade> {
    let bits = abi::Masquerade::INTERFACE_BITS + u32::from(clients.prefix());
    let client = clients.address().into();
    Key::new(bits, abi::Masquerade { interface, client })
}

/// What an entry's key means.
pub(in super::super) fn masquerade(key: &Key<abi::Masquerade>) -> Masquerade {
    let abi::Masquerade { interface, client } = key.data();
    let bits = key.prefix_len().saturating_sub(abi::Masquerade::INTERFACE_BITS);
    Masquerade {
        interface,
        clients: Subnet::of(client.into(), bits as u8),
    }
}
