//! The maps of new flows past their service's limits, and [`FloodTables`] over them.

use core::ptr::NonNull;

use aya_ebpf::{
    helpers::bpf_ktime_get_coarse_ns,
    macros::map,
    maps::{Array, LruHashMap, PerCpuArray},
};
use mesh_ebpf::{
    abi::{
        FLOOD_MEMORY, Flow, FlowKey, MAX_SERVICES, MAX_SOURCES, MAX_UNTRACKED, Openings, SourceKey,
        SourceOpenings, span,
    },
    bytes::Be32,
    flood_tables::{FloodTables, Mark, OpeningsEntry},
    headers::PROTOCOL_UDP,
    tables::FlowEntry,
};

use crate::{
    flow_maps::{entry, stage},
    maps::{KernelTables, fetch_add},
};

/// Limits and counts of new flows, by service.
#[map]
static OPENINGS: Array<Openings> = Array::pinned(MAX_SERVICES, 0);
/// Counts of new flows, by client, where there is a limit. New ones push out old ones.
#[map]
static SOURCE_OPENINGS: LruHashMap<SourceKey, SourceOpenings> = LruHashMap::pinned(MAX_SOURCES, 0);
/// The last span in which a service was flooded, one entry.
#[map]
static FLOOD: Array<u64> = Array::pinned(1, 0);
/// The last span in which the service of a published port was past its flood limit, as the port filter has
/// them.
#[map]
static PAST_LIMIT: Array<u64> = Array::pinned(2 * 65_536, 0);
/// What translates the replies of flows that have no entries, for the moment until those come.
#[map]
static UNTRACKED: Array<Flow> = Array::pinned(MAX_UNTRACKED, 0);
/// What is noted about that packet.
#[map]
static MARKS: PerCpuArray<[u64; 4]> = PerCpuArray::pinned(1, 0);

#[inline(always)]
fn past_limit_index(key: &FlowKey) -> u32 {
    let half = if key.protocol == u32::from(PROTOCOL_UDP) {
        65_536
    } else {
        0
    };
    half + u32::from(key.destination_port.get())
}

impl FloodTables for KernelTables {
    #[inline(always)]
    fn stage(&self, flow: &Flow) -> Option<FlowEntry> {
        entry(stage(flow)?)
    }

    #[inline(always)]
    fn mark(&self, mark: Mark, value: bool) {
        if let Some(marks) = MARKS.get_ptr_mut(0) {
            // SAFETY: this CPU's own value, checked; volatile, since it is there to be read back.
            unsafe {
                (&raw mut (*marks)[mark as usize & 3]).write_volatile(u64::from(value));
            }
        }
    }

    #[inline(always)]
    fn is_marked(&self, mark: Mark) -> bool {
        match MARKS.get_ptr(0) {
            // SAFETY: as above.
            Some(marks) => unsafe { (&raw const (*marks)[mark as usize & 3]).read_volatile() != 0 },
            None => false,
        }
    }

    #[inline(always)]
    fn keep_untracked(&self, slot: u32, flow: &Flow) {
        if let Some(kept) = UNTRACKED.get_ptr_mut(slot) {
            // SAFETY: checked. What two CPUs write at once is torn, and read as such: see `untracked`.
            unsafe { kept.write(*flow) };
        }
    }

    #[inline(always)]
    fn untracked(&self, slot: u32) -> Option<FlowEntry> {
        let kept = UNTRACKED.get_ptr(slot)?;
        // SAFETY: checked; a torn copy is still a valid `Flow`, and the caller compares it with its packet.
        self.stage(&unsafe { kept.read() })
    }

    #[inline(always)]
    fn openings(&self, service: u32) -> Option<OpeningsEntry> {
        let openings = NonNull::new(OPENINGS.get_ptr_mut(service)?)?;
        // SAFETY: as an entry of the flow tables, in an array.
        Some(unsafe { OpeningsEntry::new(openings) })
    }

    #[inline(always)]
    fn add_one(&self, counter: NonNull<u64>) -> u64 {
        // SAFETY: an aligned u64 of an entry in a map, which lives as long as the program runs.
        unsafe { fetch_add(counter.as_ptr(), 1) }
    }

    #[inline(always)]
    fn count_source(&self, service: u32, client: Be32, span: u64) -> u64 {
        let key = SourceKey { service, client };
        let Some(counted) = SOURCE_OPENINGS.get_ptr_mut(key) else {
            let _ = SOURCE_OPENINGS.insert(key, SourceOpenings { span, opened: 1 }, 0);
            return 1;
        };
        // SAFETY: checked; aligned u64s in a map value, which lives as long as the program runs. If it is
        // pushed out meanwhile, another client's count is a packet off.
        unsafe {
            if (&raw const (*counted).span).read() != span {
                (&raw mut (*counted).span).write(span);
                (&raw mut (*counted).opened).write(0);
            }
            fetch_add(&raw mut (*counted).opened, 1) + 1
        }
    }

    #[inline(always)]
    fn span(&self) -> u64 {
        // SAFETY: a helper without arguments.
        span(unsafe { bpf_ktime_get_coarse_ns() })
    }

    #[inline(always)]
    fn is_flooded(&self) -> bool {
        FLOOD
            .get(0)
            .is_some_and(|flooded| *flooded != 0 && self.span().wrapping_sub(*flooded) <= FLOOD_MEMORY)
    }

    #[inline(always)]
    fn note_flood(&self, span: u64) {
        if let Some(flooded) = FLOOD.get_ptr_mut(0) {
            // SAFETY: checked; an aligned u64 in a map value, which lives as long as the program runs.
            unsafe { flooded.write(span) };
        }
    }

    #[inline(always)]
    fn is_past_limit(&self, key: &FlowKey) -> bool {
        PAST_LIMIT
            .get(past_limit_index(key))
            .is_some_and(|past| *past != 0 && *past == self.span())
    }

    #[inline(always)]
    fn note_past_limit(&self, key: &FlowKey, span: u64) {
        if let Some(past) = PAST_LIMIT.get_ptr_mut(past_limit_index(key)) {
            // SAFETY: checked; an aligned u64 in a map value, which lives as long as the program runs.
            unsafe {
                if past.read() != span {
                    past.write(span);
                }
            }
        }
    }
}
