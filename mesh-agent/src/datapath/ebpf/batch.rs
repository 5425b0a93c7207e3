//! Reading a hash map in batches (`BPF_MAP_LOOKUP_BATCH`, Linux 5.6), which aya does not offer.

use std::{io, mem::MaybeUninit, os::fd::AsFd};

use aya::maps::{HashMap, IterableMap, MapData};
use mesh_support::bpf::{Cursor, look_up_batch};

/// Entries read per system call: more than the longest chain of a bucket.
const ENTRIES: usize = 4096;

/// Calls `visit` with every entry of a hash map. Entries that are added or removed meanwhile may be missed or
/// visited twice.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn for_each<K: aya::Pod, V: aya::Pod>(
    map: &HashMap<MapData, K, V>,
    mut visit: impl FnMut(&K, &V),
) -> io::Result<()> {
    let mut buffers = Buffers::new(ENTRIES);
    let mut cursor = Cursor::default();
    while !buffers.read(map, &mut cursor, &mut visit)? {}
    Ok(())
}

/// Calls `visit` with the next entries of a hash map; returns whether these are the last.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn next<K: aya::Pod, V: aya::Pod>(
    map: &HashMap<MapData, K, V>,
    cursor: &mut Cursor,
    mut visit: impl FnMut(&K, &V),
) -> io::Result<bool> {
    Buffers::new(ENTRIES).read(map, cursor, &mut visit)
}

struct Buffers<K, V> {
    keys: Vec<MaybeUninit<K>>,
    values: Vec<MaybeUninit<V>>,
}

impl<K: aya::Pod, V: aya::Pod> Buffers<K, V> {
    fn new(batch: usize) -> Self {
        Self {
            keys: vec![MaybeUninit::uninit(); batch],
            values: vec![MaybeUninit::uninit(); batch],
        }
    }

    fn read(
        &mut self,
        map: &HashMap<MapData, K, V>,
        cursor: &mut Cursor,
        visit: &mut impl FnMut(&K, &V),
    ) -> io::Result<bool> {
        let (keys, values) = (&mut self.keys, &mut self.values);
        // SAFETY: aya made a `HashMap` of K and V of this map only after comparing their sizes with the
        // map's, so each element of the buffers has room for a key or value.
        let (count, ended) = unsafe { look_up_batch(map.map().fd().as_fd(), cursor, keys, values) }?;
        for (key, value) in keys.iter().zip(&*values).take(count) {
            // SAFETY: the kernel wrote the first `count` elements of both buffers whole, and any bytes are a
            // valid value of a `Pod` type.
            let (key, value) = unsafe { (key.assume_init_ref(), value.assume_init_ref()) };
            visit(key, value);
        }
        Ok(ended)
    }
}
