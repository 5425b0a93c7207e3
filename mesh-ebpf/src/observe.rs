//! Reports what becomes of packets, to those who watch. Whatever is counted as a drop is reported here.

use crate::{
    abi::{Backend, DropReason, Hook, NO_BACKEND, Observed, Report},
    frame::ReadFrame,
    tables::{FlowEntry, Tables},
};

/// Counts a packet that is dropped.
#[inline(always)]
pub fn dropped<F: ReadFrame, T: Tables>(frame: &F, tables: &T, hook: Hook, reason: DropReason) {
    not_sent_on(frame, tables, hook, Observed::Dropped, reason);
}

/// Counts a packet that is answered with an error, or would be if there were not too many.
#[inline(always)]
pub fn refused<F: ReadFrame, T: Tables>(frame: &F, tables: &T, hook: Hook, reason: DropReason) {
    not_sent_on(frame, tables, hook, Observed::Refused, reason);
}

#[inline(always)]
fn not_sent_on<F: ReadFrame, T: Tables>(
    frame: &F,
    tables: &T,
    hook: Hook,
    kind: Observed,
    reason: DropReason,
) {
    tables.count_drop(hook, reason);
    let report = Report {
        kind,
        reason: reason as u32,
        backend: NO_BACKEND,
        generation: 0,
    };
    tables.report(frame, report);
}

/// Counts a connection that this node, as its entry node, has opened.
#[inline(always)]
pub fn opened<F: ReadFrame, T: Tables>(frame: &F, tables: &T, (index, backend): (u32, &Backend)) {
    tables.count_connection(index);
    let report = Report {
        kind: Observed::Opened,
        reason: 0,
        backend: index,
        generation: backend.generation,
    };
    tables.report(frame, report);
}

/// Reports that a packet has ended its connection; its entry node does.
#[inline(always)]
pub fn ended<F: ReadFrame, T: Tables>(frame: &F, tables: &T, flow: FlowEntry, kind: Observed) {
    if flow.origin().is_tunnel() {
        return;
    }
    let report = Report {
        kind,
        reason: 0,
        backend: flow.backend(),
        generation: flow.generation(),
    };
    tables.report(frame, report);
}

#[cfg(test)]
mod tests;
