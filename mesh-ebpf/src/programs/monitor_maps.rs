//! The maps of what is reported to those who watch. As long as no one does, a report costs one look-up.

use core::ptr::NonNull;

use aya_ebpf::{
    macros::map,
    maps::{Array, PerCpuArray, RingBuf},
};
use mesh_ebpf::{
    abi::{OBSERVATIONS_LENGTH, Observation, Report, Reported},
    frame::ReadFrame,
};

/// `BPF_RB_NO_WAKEUP`: who reads looks by itself, so that a report does not cost an interrupt.
const NO_WAKEUP: u64 = 1;

/// How many reports each processor may make in a span of [`Reported`], one entry; 0 while no one watches.
#[map]
static WATCHED: Array<u64> = Array::pinned(1, 0);
/// How many it has made.
#[map]
static REPORTED: PerCpuArray<Reported> = PerCpuArray::pinned(1, 0);
/// The reports.
#[map]
static OBSERVATIONS: RingBuf = RingBuf::pinned(OBSERVATIONS_LENGTH, 0);

#[inline(always)]
pub(crate) fn report<F: ReadFrame>(frame: &F, clock: impl FnOnce() -> u64, report: Report) {
    let Some(&limit @ 1..) = WATCHED.get(0) else {
        return;
    };
    let Some(reported) = REPORTED.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: a per-CPU array's value is this CPU's own, and the pointer was checked.
    let reported = unsafe { &mut *reported };
    let clock = clock();
    if reported.span != clock >> 30 {
        (reported.span, reported.count) = (clock >> 30, 0);
    }
    reported.count += 1;
    if reported.count > limit {
        reported.skipped += 1;
        return;
    }
    let Some(mut entry) = OBSERVATIONS.reserve::<Observation>(0) else {
        reported.skipped += 1;
        return;
    };
    let to = entry.as_mut_ptr();
    // SAFETY: the entry is this program's until it is submitted, aligned to 8 bytes.
    unsafe {
        (&raw mut (*to).clock).write(clock);
        (&raw mut (*to).skipped).write(reported.skipped);
        (&raw mut (*to).backend).write(report.backend);
        (&raw mut (*to).generation).write(report.generation);
        (&raw mut (*to).interface).write(frame.interface());
        (&raw mut (*to).length).write(frame.length());
        (&raw mut (*to).kind).write(report.kind as u32);
        (&raw mut (*to).reason).write(report.reason);
        let head = NonNull::new_unchecked(&raw mut (*to).head);
        (&raw mut (*to).captured).write(frame.copy_head::<0>(head));
    }
    reported.skipped = 0;
    entry.submit(NO_WAKEUP);
}
