//! What was IPv6, and what the pipeline passes: the kernel cannot take it, as it is IPv4 by now. A packet is
//! refused, as the kernel refuses what no process listens for, and an ICMP error is dropped.

use crate::{
    abi::{DropReason, Hook},
    errors,
    frame::Frame,
    observe,
    tables::Tables,
    verdict::Action,
};

/// Answers with RST or "port unreachable".
#[inline(always)]
pub fn refuse<F: Frame, T: Tables>(frame: &mut F, tables: &T, hook: Hook) -> Action {
    observe::refused(frame, tables, hook, DropReason::UnknownFlow);
    if errors::is_larger_than(frame) || !tables.may_answer() || errors::refuse(frame).is_err() {
        return Action::Drop;
    }
    Action::Answer
}

/// Drops an ICMP error about a flow that there is not, and counts it.
#[inline(always)]
pub fn ignore<F: Frame, T: Tables>(frame: &F, tables: &T, hook: Hook) -> Action {
    observe::dropped(frame, tables, hook, DropReason::UnknownFlow);
    Action::Drop
}
