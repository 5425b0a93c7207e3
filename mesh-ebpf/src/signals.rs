//! Counts how each backend answers the connections that it is asked to open, on their entry node: refused,
//! unanswered, asked again, reset, and how long the answer takes. The packets of an open connection pay
//! nothing for it.
//!
//! A connection that a flood keeps out of the tables is not counted. With direct return, this node does not
//! see the answers of other nodes' backends: it counts what their clients send again and reset.

use crate::{
    abi::{Opening, Signal, answer_bucket, since_asked},
    headers::{TCP_RST, TCP_SYN},
    parse::Packet,
    tables::{FlowEntry, Tables},
};

/// Nanoseconds after which a SYN is another than the flow's first. XDP and tc see the same one within far
/// less, and clients wait longer before they ask again (RFC 6298: a second).
const ASKED_AGAIN: u64 = 100_000_000;

/// Whether a packet that may open a flow is another than the one that opened it. The same one comes twice
/// where XDP leaves a packet for this node to tc. By the kernel's clock, as the agent's stands still when
/// there is no agent.
#[inline(always)]
pub fn is_sent_again<T: Tables>(tables: &T, flow: FlowEntry) -> bool {
    let now = tables.clock();
    if flow.opening().asked_at() == Opening::time(now) {
        return false;
    }
    match flow.asked() {
        0 => true,
        moment => since_asked(moment, now) >= ASKED_AGAIN,
    }
}

/// Counts a SYN that its client has sent again to a half-open flow.
#[inline(always)]
pub fn asked_again<T: Tables>(tables: &T, flow: FlowEntry) {
    tables.count_signal(flow.backend(), Signal::SynRetransmitted);
    unanswered(tables, flow);
    // tc may see it as well.
    flow.opening_is(flow.opening().again(Opening::time(tables.clock())));
}

/// Counts that a flow's backend has not answered its SYN, unless a SYN that was sent again has counted.
#[inline(always)]
pub fn unanswered<T: Tables>(tables: &T, flow: FlowEntry) {
    let asked = flow.asked();
    // The time changes with each SYN that is sent again, the moment is that of the first one.
    if asked != 0 && flow.opening().asked_at() == Opening::time(u64::from(asked) << 8) {
        tables.count_signal(flow.backend(), Signal::Unanswered);
    }
}

/// Counts the first answer of a flow's backend, other than a RST, by the entry that the backend's packets are
/// found by.
#[inline(always)]
pub fn answered<T: Tables>(tables: &T, flow: FlowEntry, packet: &Packet) {
    let asked = flow.asked();
    if asked != 0 && packet.tcp_flags & TCP_SYN != 0 {
        let nanoseconds = since_asked(asked, tables.clock());
        tables.count_answer(flow.backend(), answer_bucket(nanoseconds), nanoseconds);
    }
}

/// Counts a RST of a backend in sequence, unless its flow is closed: it refuses the flow, or ends it.
#[inline(always)]
pub fn reset_by_backend<T: Tables>(tables: &T, forward: FlowEntry, packet: &Packet) {
    if packet.tcp_flags & TCP_RST == 0 || forward.origin().is_tunnel() || forward.is_closed() {
        return;
    }
    let opening = forward.opening();
    if opening.is_open() {
        tables.count_signal(forward.backend(), Signal::ResetByBackend);
    } else if !opening.is_answered() {
        tables.count_signal(forward.backend(), Signal::Refused);
    }
}

/// Counts a RST of a client in sequence, unless its flow is closed already or not open yet.
#[inline(always)]
pub fn reset_by_client<T: Tables>(tables: &T, forward: FlowEntry, packet: &Packet) {
    if packet.tcp_flags & TCP_RST != 0
        && !forward.origin().is_tunnel()
        && forward.opening().is_open()
        && !forward.is_closed()
    {
        tables.count_signal(forward.backend(), Signal::ResetByClient);
    }
}

#[cfg(test)]
mod tests;
