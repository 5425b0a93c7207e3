//! Reading a hash map in batches (`BPF_MAP_LOOKUP_BATCH`, Linux 5.6), which aya does not offer.

use std::{io, mem::MaybeUninit, os::fd::AsFd};

use aya::maps::{HashMap, IterableMap, MapData};
use mesh_support::bpf::{Cursor, look_up_batch};

/// Calls `visit` with every entry of a hash map, in batches of up to `batch` (which must exceed the longest
/// chain of a bucket). Entries that are added or removed meanwhile may be missed or visited twice.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn for_each<K: aya::Pod, V: aya::Pod>(
    map: &HashMap<MapData, K, V>,
    batch: usize,
    mut visit: impl FnMut(&K, &V),
) -> io::Result<()> {
    let mut keys = vec![MaybeUninit::<K>::uninit(); batch];
    let mut values = vec![MaybeUninit::<V>::uninit(); batch];
    let mut cursor = Cursor::default();
    loop {
        // SAFETY: aya made a `HashMap` of K and V of this map only after comparing their sizes with the
        // map's, so each element of the buffers has room for a key or value.
        let (count, ended) =
            unsafe { look_up_batch(map.map().fd().as_fd(), &mut cursor, &mut keys, &mut values) }?;
        for (key, value) in keys.iter().zip(&values).take(count) {
            // SAFETY: the kernel wrote the first `count` elements of both buffers whole, and any bytes are a
            // valid value of a `Pod` type.
            let (key, value) = unsafe { (key.assume_init_ref(), value.assume_init_ref()) };
            visit(key, value);
        }
        if ended {
            return Ok(());
        }
    }
}
