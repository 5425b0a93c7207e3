//! The maps of IPv6 addresses, and [`MappedTables`] over them.

use aya_ebpf::{
    macros::map,
    maps::{HashMap, LruHashMap, PerCpuArray},
};
use mesh_ebpf::{
    abi::{Answered, Ipv6Address, MAX_MAPPED_CLIENTS, MAX_NEW_CLIENTS, MAX_OWN_IPV6, MappedClient},
    bytes::Be32,
    mapped_tables::MappedTables,
    tables::Tables,
};

use crate::maps::{CLIENTS_BY_IPV4, KernelTables, is_within};

/// What stands for each IPv6 address of this node.
#[map]
static OWN_BY_IPV6: HashMap<Ipv6Address, Be32> = HashMap::pinned(MAX_OWN_IPV6, 0);
/// The opposite.
#[map]
static OWN_BY_IPV4: HashMap<Be32, Ipv6Address> = HashMap::pinned(MAX_OWN_IPV6, 0);
/// What stands for each IPv6 client whose preferred address was another one's. New ones push out old ones,
/// here and in the opposite, which has all clients.
#[map]
static CLIENTS_BY_IPV6: LruHashMap<Ipv6Address, Be32> = LruHashMap::pinned(MAX_MAPPED_CLIENTS, 0);
/// How many new clients each processor has taken, one entry.
#[map]
static NEW_CLIENTS: PerCpuArray<Answered> = PerCpuArray::pinned(1, 0);

impl MappedTables for KernelTables {
    #[inline(always)]
    fn own_mapped(&self, address: &Ipv6Address) -> Option<Be32> {
        // SAFETY: the value is copied at once; an update replaces it whole.
        unsafe { OWN_BY_IPV6.get(address) }.copied()
    }

    #[inline(always)]
    fn own_ipv6(&self, mapped: Be32) -> Option<Ipv6Address> {
        // SAFETY: the value is copied at once; an update replaces it whole.
        unsafe { OWN_BY_IPV4.get(mapped) }.copied()
    }

    #[inline(always)]
    fn displaced(&self, address: &Ipv6Address) -> Option<Be32> {
        // SAFETY: the value is copied at once; an update replaces it whole.
        unsafe { CLIENTS_BY_IPV6.get(address) }.copied()
    }

    #[inline(always)]
    fn map_client(&self, client: &MappedClient, mapped: Be32) {
        // Where the kernel has no memory, the client's next packet tries again.
        let _ = CLIENTS_BY_IPV4.insert(mapped, client, 0);
    }

    #[inline(always)]
    fn displace(&self, address: &Ipv6Address, mapped: Be32) {
        // As above.
        let _ = CLIENTS_BY_IPV6.insert(address, mapped, 0);
    }

    #[inline(always)]
    fn may_map_client(&self) -> bool {
        is_within(&NEW_CLIENTS, self.clock(), MAX_NEW_CLIENTS)
    }
}
