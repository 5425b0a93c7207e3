//! What was IPv6, and what the pipeline passes: the kernel cannot take it, as it is IPv4 by now. It is
//! refused, as the kernel refuses what no process listens for.

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
