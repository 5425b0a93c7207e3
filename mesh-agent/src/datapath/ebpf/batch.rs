//! Reading a hash map in batches (`BPF_MAP_LOOKUP_BATCH`, Linux 5.6), which aya does not offer. The one
//! raw system call of the agent's data path.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsRawFd, BorrowedFd},
};

const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;

/// The part of `union bpf_attr` that batch operations use (`linux/bpf.h`).
#[repr(C)]
#[derive(Default)]
struct BatchAttributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Calls `visit` with every entry of a hash map, in batches of up to `batch` (more than the longest
/// chain of a bucket). Entries that come and go meanwhile may be missed or seen twice.
///
/// # Errors
/// What the kernel answered.
pub(super) fn for_each<K: aya::Pod, V: aya::Pod>(
    map: BorrowedFd<'_>,
    batch: usize,
    mut visit: impl FnMut(&K, &V),
) -> io::Result<()> {
    let mut keys = vec![MaybeUninit::<K>::uninit(); batch];
    let mut values = vec![MaybeUninit::<V>::uninit(); batch];
    let mut position = 0_u64;
    let mut next = 0_u64;
    let mut first = true;
    loop {
        let mut attributes = BatchAttributes {
            in_batch: if first { 0 } else { &raw mut position as u64 },
            out_batch: &raw mut next as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: batch as u32,
            map_fd: map.as_raw_fd() as u32,
            ..BatchAttributes::default()
        };
        // SAFETY: the attributes and the buffers they point to live across the call, and the buffers hold
        // `count` keys and values of the map's own sizes (the map was opened as one of K and V).
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_MAP_LOOKUP_BATCH,
                &raw mut attributes,
                size_of::<BatchAttributes>(),
            )
        };
        let error = io::Error::last_os_error();
        let ended = result != 0 && error.raw_os_error() == Some(libc::ENOENT);
        if result != 0 && !ended {
            return Err(error);
        }
        let count = (attributes.count as usize).min(batch);
        for (key, value) in keys.iter().zip(&values).take(count) {
            // SAFETY: the kernel has written the first `count` of both, and a Pod takes any bytes.
            let (key, value) = unsafe { (key.assume_init_ref(), value.assume_init_ref()) };
            visit(key, value);
        }
        if ended {
            return Ok(());
        }
        position = next;
        first = false;
    }
}
