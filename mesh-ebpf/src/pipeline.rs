//! What every hook does with a frame: decide about it, then carry the decision out.

use crate::{
    abi::Hook,
    entry::{decide, decide_ipv4},
    execute::execute,
    frame::Frame,
    layer3::{Layer3Frame, WithoutEthernet},
    tables::Tables,
    verdict::{Action, Decision},
};

/// Runs a frame through the pipeline; what it returns is left for the hook to do.
#[inline(always)]
pub fn run<F: Frame, T: Tables>(frame: &mut F, tables: &T, hook: Hook) -> Action {
    // Until the agent has written the settings, no packet is the mesh's.
    let Some(config) = tables.config() else {
        return Action::Pass;
    };
    let decision = decide(frame, tables, config, hook);
    execute::<false, F, T>(frame, tables, config, hook, decision)
}

/// The same with an IPv4 packet that begins with its IP header. It gets an Ethernet header unless it passes.
#[inline(always)]
pub fn run_layer3<F: Layer3Frame, T: Tables>(packet: &mut F, tables: &T, hook: Hook) -> Action {
    let Some(config) = tables.config() else {
        return Action::Pass;
    };
    let mut decision = decide_ipv4(&WithoutEthernet(packet), tables, config, hook);
    // A failure becomes a decision rather than an action: an action without a payload leaves that
    // undefined, which the verifier refuses here (see `Decision`).
    if !decision.leaves_packet()
        && let Err(refused) = packet.insert_ethernet()
    {
        decision = Decision::drop(refused.into());
    }
    execute::<false, F, T>(packet, tables, config, hook, decision)
}
