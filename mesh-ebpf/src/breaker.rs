//! Passes over backends that do not answer, without an agent's help.
//!
//! Each backend counts the TCP flows that it was asked to open and has not answered; an answer zeroes the
//! count. UDP does not count, as a service may never answer it. In `dsr`, this node does not see answers.

use crate::{
    abi::{BREAKER_LIMIT, Backend, Config, FlowKey, Origin},
    headers::{PROTOCOL_TCP, TCP_RST},
    onward::is_direct,
    parse::Packet,
    tables::Tables,
};

/// Nanoseconds after which an open counts as unanswered. Longer than a round trip, so that a burst of opens
/// does not look like a backend that hangs.
pub const PATIENCE: u64 = 100_000_000;
/// Nanoseconds between two flows that try whether a backend answers again.
pub const TRIAL_INTERVAL: u64 = 1_000_000_000;

/// Whether the backend must answer a new flow by way of this node.
#[inline(always)]
pub fn must_answer(config: &Config, key: &FlowKey, origin: Origin, backend: &Backend) -> bool {
    key.protocol == u32::from(PROTOCOL_TCP) && !is_direct(config, origin, key.source, backend)
}

/// Whether a backend's packet answers an open. A RST does not: nothing listens there.
#[inline(always)]
pub fn is_answer(packet: &Packet) -> bool {
    packet.tcp_flags & TCP_RST == 0
}

/// Whether a backend does not answer.
#[inline(always)]
pub fn is_open<T: Tables>(tables: &T, backend: u32) -> bool {
    let breaker = tables.breaker(backend);
    breaker.unanswered >= BREAKER_LIMIT && tables.clock().wrapping_sub(breaker.since) >= PATIENCE
}

/// Whether a flow may try if a backend that does not answer does so again: one a second.
#[inline(always)]
pub fn may_try<T: Tables>(tables: &T, backend: u32) -> bool {
    let now = tables.clock();
    let is_time = now.wrapping_sub(tables.breaker(backend).tried) >= TRIAL_INTERVAL;
    if is_time {
        tables.note_trial(backend, now);
    }
    is_time
}

#[cfg(test)]
mod tests;
