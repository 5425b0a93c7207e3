//! Packets that the pipeline leaves to a program of its own behind each tc hook, so that they cost it
//! nothing: ICMP errors about its flows, and all fragments but the first, of which the pipeline makes use as
//! of any packet. The hook's program calls that one with the packet as it came.

use crate::{
    abi::{Config, DropReason, FlowKey, Hook, Role},
    encapsulation,
    execute::{counted, execute},
    fragment::{self, Fragment, Unloaded},
    frame::{CopyFrame, FragmentFrame},
    headers::{ETHERNET_LENGTH, GeneveKind, Ipv4, PROTOCOL_ICMP},
    icmp,
    layer3::{Layer3Frame, WithoutEthernet},
    observe, onward,
    parse::parse,
    tables::Tables,
    tunnel::{self, Envelope},
    verdict::{Action, Decision},
};

/// What happens to an exceptional packet: one of the two passes.
#[derive(Clone, Copy)]
struct Decisions<'a> {
    error: icmp::Decision<'a>,
    packet: Decision<'a>,
}

impl<'a> Decisions<'a> {
    const PASS: Self = Self {
        error: icmp::Decision::PASS,
        packet: Decision::PASS,
    };

    const fn of_error(error: icmp::Decision<'a>) -> Self {
        Self { error, ..Self::PASS }
    }

    const fn of_packet(packet: Decision<'a>) -> Self {
        Self { packet, ..Self::PASS }
    }
}

/// Runs an exceptional packet through; what it returns is left for the hook to do.
#[inline(always)]
pub fn run<F: FragmentFrame, T: Tables>(frame: &mut F, tables: &T, hook: Hook) -> Action {
    let Some(config) = tables.config() else {
        return Action::Pass;
    };
    match release::<ETHERNET_LENGTH, F, T>(frame, tables, hook) {
        Action::Pass => {}
        action => return action,
    }
    let decisions = decide(frame, tables, config, hook);
    carry_out(frame, tables, config, hook, &decisions)
}

/// The same with an IPv4 packet that begins with its IP header. It gets an Ethernet header unless it passes.
#[inline(always)]
pub fn run_layer3<F: FragmentFrame + Layer3Frame, T: Tables>(
    packet: &mut F,
    tables: &T,
    hook: Hook,
) -> Action {
    let Some(config) = tables.config() else {
        return Action::Pass;
    };
    match release::<0, F, T>(packet, tables, hook) {
        Action::Pass => {}
        action => return action,
    }
    let decisions = decide(&WithoutEthernet(packet), tables, config, hook);
    if decisions.error.leaves_packet() && decisions.packet.leaves_packet() {
        return Action::Pass;
    }
    if packet.insert_ethernet().is_err() {
        observe::dropped(packet, tables, hook, DropReason::RewriteFailed);
        return Action::Drop;
    }
    carry_out(packet, tables, config, hook, &decisions)
}

/// Lets fragments that came before their first one follow it. Passes what is to be decided about.
#[inline(always)]
fn release<const OFFSET: usize, F: FragmentFrame, T: Tables>(
    frame: &mut F,
    tables: &T,
    hook: Hook,
) -> Action {
    if !matches!(hook, Hook::TcUplink) {
        return Action::Pass;
    }
    let Some(fragment) = fragment::find(frame, OFFSET) else {
        return Action::Pass;
    };
    let done = if fragment.is_carrier() {
        match fragment.unload(frame, tables, OFFSET) {
            Ok(Unloaded::Waits) => Ok(Action::Again),
            Ok(Unloaded::Fragment | Unloaded::Nothing) => Ok(Action::Pass),
            Err(refused) => Err(refused),
        }
    } else if fragment.is_first() {
        fragment
            .send_carrier(frame, tables, OFFSET)
            .map(|()| Action::Pass)
    } else {
        Ok(Action::Pass)
    };
    counted(frame, tables, hook, done.map_err(DropReason::from))
}

#[inline(always)]
fn decide<'a, F: CopyFrame, T: Tables>(
    frame: &F,
    tables: &'a T,
    config: &Config,
    hook: Hook,
) -> Decisions<'a> {
    if is_icmp(frame, ETHERNET_LENGTH) {
        return Decisions::of_error(icmp::decide(frame, tables, hook));
    }
    if let Some(fragment) = fragment::find(frame, ETHERNET_LENGTH) {
        return Decisions::of_packet(plain_fragment(frame, tables, config, hook, &fragment));
    }
    let Ok(outer) = parse(frame, ETHERNET_LENGTH) else {
        return Decisions::PASS;
    };
    if !tunnel::is_encapsulated(config, &outer) {
        // It is too big for its way, and to be split.
        return Decisions::of_packet(ours(known_flow(tables, config, hook, &outer.key)));
    }
    // The pipeline has opened it just now.
    let Ok(envelope) = tunnel::open_envelope(frame, tables, config, &outer) else {
        return Decisions::PASS;
    };
    let offset = ETHERNET_LENGTH + encapsulation::outer_length(frame);
    if is_icmp(frame, offset) {
        Decisions::of_error(icmp::decide_encapsulated(frame, tables, &envelope))
    } else {
        Decisions::of_packet(encapsulated_fragment(frame, tables, config, offset, &envelope))
    }
}

#[inline(always)]
fn is_icmp<F: CopyFrame>(frame: &F, offset: usize) -> bool {
    frame
        .at::<Ipv4>(offset)
        .is_some_and(|ip| ip.protocol == PROTOCOL_ICMP)
}

/// Decides about a fragment that is not encapsulated.
#[inline(always)]
fn plain_fragment<'a, F: CopyFrame, T: Tables>(
    frame: &F,
    tables: &'a T,
    config: &Config,
    hook: Hook,
    fragment: &Fragment,
) -> Decision<'a> {
    if fragment.is_carrier() {
        // With nothing to carry, or another's: no packet is so long, and the kernel drops it.
        return Decision::PASS;
    }
    let mut key = match fragment.flow_key(frame, tables, ETHERNET_LENGTH) {
        Ok(key) => key,
        Err(reason) => return Decision::drop(reason),
    };
    // What this node's own kernels send is in order.
    if key.is_none() && matches!(hook, Hook::TcUplink) && !fragment.is_first() {
        fragment.hold(frame, tables, ETHERNET_LENGTH);
        // The first one may have come on another CPU meanwhile, too early to let this one follow. (If not,
        // the receiver gets it twice.)
        key = match fragment.flow_key(frame, tables, ETHERNET_LENGTH) {
            Ok(key) => key,
            Err(reason) => return Decision::drop(reason),
        };
    }
    let Some(key) = key else {
        return Decision::PASS;
    };
    let decision = known_flow(tables, config, hook, &key);
    if fragment.is_first() {
        ours(decision)
    } else {
        decision
    }
}

/// The decision about a packet of which the pipeline knows that it is ours: it may have been written to. If
/// its flow has no entries (its service is flooded), one of another flow may have its key.
#[inline(always)]
fn ours(decision: Decision<'_>) -> Decision<'_> {
    if decision.leaves_packet() {
        Decision::drop(DropReason::UnknownFlow)
    } else {
        decision
    }
}

/// Decides about a packet that is not encapsulated, of a flow that the pipeline has opened.
#[inline(always)]
fn known_flow<'a, T: Tables>(tables: &'a T, config: &Config, hook: Hook, key: &FlowKey) -> Decision<'a> {
    let Some((flow, backend)) = icmp::current(tables, key) else {
        return Decision::drop(DropReason::UnknownFlow);
    };
    flow.touch(config.now);
    if flow.role() == Role::REPLY && matches!(hook, Hook::TcContainer) {
        Decision::reply(flow)
    } else if flow.role() == Role::FORWARD && !flow.origin().is_tunnel() {
        onward::decide(config, hook, flow, backend)
    } else {
        // Its flow's packets come in elsewhere.
        Decision::PASS
    }
}

/// Decides about a later fragment that a peer has sent. The peer has sent the first one before.
#[inline(always)]
fn encapsulated_fragment<'a, F: CopyFrame, T: Tables>(
    frame: &F,
    tables: &'a T,
    config: &Config,
    offset: usize,
    envelope: &Envelope,
) -> Decision<'a> {
    let Some(fragment) = fragment::find(frame, offset) else {
        return Decision::drop(DropReason::BadGeneve);
    };
    let key = match fragment.flow_key(frame, tables, offset) {
        Ok(Some(key)) => key,
        Ok(None) => return Decision::drop(DropReason::Fragment),
        Err(reason) => return Decision::drop(reason),
    };
    let (is_reply, key) = match envelope.kind {
        GeneveKind::Reply => (true, key.reversed()),
        _ => (false, key),
    };
    let Some((flow, backend)) = icmp::current(tables, &key) else {
        return Decision::drop(DropReason::UnknownFlow);
    };
    if !icmp::is_of_peer(flow, backend, envelope, !is_reply) {
        return Decision::drop(DropReason::UnknownFlow);
    }
    flow.touch(config.now);
    if is_reply {
        Decision::deliver_reply(flow)
    } else {
        Decision::deliver(flow, backend, true)
    }
}

#[inline(always)]
fn carry_out<F: FragmentFrame, T: Tables>(
    frame: &mut F,
    tables: &T,
    config: &Config,
    hook: Hook,
    decisions: &Decisions<'_>,
) -> Action {
    if !decisions.error.leaves_packet() {
        return icmp::execute(frame, tables, config, hook, decisions.error);
    }
    match execute::<true, F, T>(frame, tables, config, hook, decisions.packet) {
        Action::Split { mtu } => {
            let split = fragment::split(frame, tables, mtu);
            counted(frame, tables, hook, split)
        }
        action => action,
    }
}
