//! The maps of clients' affinities, and [`AffinityTables`] over them.

use aya_ebpf::{
    macros::map,
    maps::{Array, LruHashMap},
};
use mesh_ebpf::{
    abi::{Affinity, AffinityKey, MAX_AFFINITIES, MAX_BACKENDS},
    affinity_tables::AffinityTables,
};

use crate::maps::KernelTables;

/// Which backend a client's last open flow went to, where its service has affinity. New ones push out old
/// ones.
#[map]
static AFFINITIES: LruHashMap<AffinityKey, Affinity> = LruHashMap::pinned(MAX_AFFINITIES, 0);
/// The generation of each backend that its service's ring names, by index; 0 for the others.
#[map]
static IN_RING: Array<u32> = Array::pinned(MAX_BACKENDS, 0);

impl AffinityTables for KernelTables {
    #[inline(always)]
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        // SAFETY: the value is copied at once; an update replaces it whole.
        unsafe { AFFINITIES.get(key) }.copied()
    }

    #[inline(always)]
    fn note_affinity(&self, key: &AffinityKey, affinity: &Affinity) {
        // Without it, the client is one that is not known.
        let _ = AFFINITIES.insert(key, affinity, 0);
    }

    #[inline(always)]
    fn takes_new_flows(&self, backend: u32, generation: u32) -> bool {
        IN_RING.get(backend).is_some_and(|in_ring| *in_ring == generation)
    }
}
