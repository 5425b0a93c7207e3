//! Reading a hash map in batches (`BPF_MAP_LOOKUP_BATCH`, Linux 5.6), which aya does not offer.

use std::{io, mem::MaybeUninit, os::fd::BorrowedFd};

use mesh_support::bpf::{Cursor, look_up_batch};

/// Calls `visit` with every entry of a hash map of `K` to `V`, in batches of up to `batch` (more than the longest
/// chain of a bucket). Entries that come and go meanwhile may be missed or seen twice.
///
/// # Errors
/// The kernel's refusal.
pub(super) fn for_each<K: aya::Pod, V: aya::Pod>(
    map: BorrowedFd<'_>,
    batch: usize,
    mut visit: impl FnMut(&K, &V),
) -> io::Result<()> {
    let mut keys = vec![MaybeUninit::<K>::uninit(); batch];
    let mut values = vec![MaybeUninit::<V>::uninit(); batch];
    let mut cursor = Cursor::default();
    loop {
        // SAFETY: the map was opened as one of K and V, and aya compared their sizes with the map's.
        let (count, ended) = unsafe { look_up_batch(map, &mut cursor, &mut keys, &mut values) }?;
        for (key, value) in keys.iter().zip(&values).take(count) {
            // SAFETY: the kernel has written the first `count` of both, and a Pod takes any bytes.
            let (key, value) = unsafe { (key.assume_init_ref(), value.assume_init_ref()) };
            visit(key, value);
        }
        if ended {
            return Ok(());
        }
    }
}
