//! Peers in the maps: the index by which backends refer to them, and the next hop of each. Part of
//! [`Tables`].

use std::net::Ipv4Addr;

use mesh_ebpf::{abi, bytes::Be32};

use super::{Maps, PeerSlot, Tables, remove};
use crate::{
    datapath::{
        DatapathError,
        ebpf::{failed, inner_mtu},
    },
    model::NextHop,
};

impl Tables {
    /// Writes a peer's next hop; without one, tc leaves the look-up to the kernel.
    pub(in super::super) fn upsert_peer(
        &mut self,
        maps: &mut Maps,
        address: Ipv4Addr,
        hop: Option<NextHop>,
    ) -> Result<(), DatapathError> {
        let doing = || format!("write the next hop to peer {address}");
        let (index, key) = match self.peers.get(&address) {
            Some(peer) => (peer.index, peer.key),
            None => {
                let index = self.peer_slots.allocate();
                let index = index.ok_or_else(|| failed(doing(), "the table of peers is full"))?;
                (index, self.keys.number_for(address, 0))
            }
        };
        let mut value = abi::NextHop {
            address: address.into(),
            key,
            ..abi::NextHop::default()
        };
        if let Some(hop) = hop {
            value.interface = hop.interface;
            value.source_mac = hop.source_mac.0;
            value.destination_mac = hop.destination_mac.0;
            value.inner_mtu = hop.mtu.map_or(0, inner_mtu);
        }
        maps.next_hops
            .set(index, value, 0)
            .map_err(|error| failed(doing(), error))?;
        maps.peer_index
            .insert(Be32::from(address), index, 0)
            .map_err(|error| failed(doing(), error))?;
        self.peers.insert(
            address,
            PeerSlot {
                index,
                key,
                adopted: false,
            },
        );
        Ok(())
    }

    /// Removes a peer. No backend refers to it any more.
    pub(in super::super) fn remove_peer(
        &mut self,
        maps: &mut Maps,
        address: Ipv4Addr,
    ) -> Result<(), DatapathError> {
        let Some(peer) = self.peers.remove(&address) else {
            return Ok(());
        };
        remove(&mut maps.peer_index, &Be32::from(address), "PEER_INDEX")?;
        maps.next_hops
            .set(peer.index, abi::NextHop::default(), 0)
            .map_err(|error| failed(format!("clear the next hop to peer {address}"), error))?;
        maps.keyed
            .set(peer.index, 0, 0)
            .map_err(|error| failed(format!("forget that peer {address} has sent keys"), error))?;
        self.peer_slots.release(peer.index);
        Ok(())
    }
}
