//! The flow tables, and the memory in which a flow is made. Depends on nothing of the programs.

use core::ptr::NonNull;

use aya_ebpf::{
    helpers::bpf_map_update_elem,
    macros::map,
    maps::{HashMap, LruHashMap, PerCpuArray},
};
use mesh_ebpf::{
    abi::{Flow, FlowKey, FlowRecord},
    tables::{FlowEntry, InsertError},
};

const EEXIST: i32 = -17;

/// Open flows, both directions. The agent sets its size, and makes room when it is nearly full.
#[map]
pub(crate) static FLOWS: HashMap<FlowKey, FlowRecord> = HashMap::pinned(262_144, 0);
/// Half-open flows, both directions. New ones push out old ones. The agent sets its size.
#[map]
pub(crate) static HALF_OPEN: LruHashMap<FlowKey, FlowRecord> = LruHashMap::pinned(65_536, 0);
/// The flow of the packet that a processor deals with, one entry.
#[map]
static STAGED: PerCpuArray<FlowRecord> = PerCpuArray::pinned(1, 0);

/// The entry behind a pointer into one of the flow tables.
#[inline(always)]
pub(crate) fn entry(pointer: *mut FlowRecord) -> Option<FlowEntry> {
    // SAFETY: a map value stays readable and writable until the program ends. Both maps are preallocated:
    // an entry that is removed meanwhile may hold another flow at once, of which the program then reads or
    // writes a field or two. It holds plain integers only.
    Some(unsafe { FlowEntry::new(NonNull::new(pointer)?) })
}

/// Puts a half-open flow in its table. From the memory that the CPU has for it, as the stack is small.
#[inline(always)]
pub(crate) fn insert(key: &FlowKey, flow: &Flow, flags: u64) -> Result<(), InsertError> {
    let record = stage(flow).ok_or(InsertError::Full)?;
    // SAFETY: one of the flow tables, and a record in a map.
    match unsafe { update(&raw const HALF_OPEN, key, record, flags) } {
        0 => Ok(()),
        EEXIST => Err(InsertError::Exists),
        _ => Err(InsertError::Full),
    }
}

/// Writes an entry of a flow table from a value that is in another map.
///
/// # Safety
/// `table` must be a map from keys of flows to records, and `record` readable.
#[inline(always)]
pub(crate) unsafe fn update<M>(table: *const M, key: &FlowKey, record: *const FlowRecord, flags: u64) -> i32 {
    // SAFETY: this function's contract.
    let result = unsafe {
        bpf_map_update_elem(
            table.cast_mut().cast(),
            (&raw const *key).cast(),
            record.cast(),
            flags,
        )
    };
    result as i32
}

/// The memory that this CPU has for a flow.
#[inline(always)]
pub(crate) fn staged() -> Option<*mut FlowRecord> {
    STAGED.get_ptr_mut(0)
}

/// Writes a flow, without a way to its client, to the memory that this CPU has for it.
#[inline(always)]
pub(crate) fn stage(flow: &Flow) -> Option<*mut FlowRecord> {
    let staged = staged()?;
    // SAFETY: this CPU's own value, checked; programs at these hooks do not interrupt each other.
    unsafe {
        (&raw mut (*staged).flow).write(*flow);
        // Volatile, or it and the zeros before it become a call of `memset`, a loop over single bytes.
        (&raw mut (*staged).way.moment).write_volatile(0);
    }
    Some(staged)
}
