//! What every hook does with a frame: decide about it, then carry the decision out.

use crate::{abi::Hook, entry::decide, execute::execute, frame::Frame, tables::Tables, verdict::Action};

/// Runs a frame through the pipeline; what it returns is left for the hook to do.
#[inline(always)]
pub fn run<F: Frame, T: Tables>(frame: &mut F, tables: &T, hook: Hook) -> Action {
    // Until the agent has written the settings, no packet is the mesh's.
    let Some(config) = tables.config() else {
        return Action::Pass;
    };
    let decision = decide(frame, tables, config, hook);
    execute(frame, tables, config, hook, decision)
}
