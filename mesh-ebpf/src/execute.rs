//! Carries decisions out: rewrites the packet and names the action that is left for the hook.
//!
//! `execute` makes no decision of its own, with two exceptions: in XDP, a packet whose way to the next hop
//! the kernel has yet to resolve is passed to tc, which can have it resolved, and so is one that leaves by
//! a layer 3 device or is for an IPv6 client, to which tc alone can send; and a packet that is too big for
//! its way is answered by ICMP. Both are known only once the way has been looked up, and are checked before
//! anything is written to the packet.

use crate::{
    abi::{
        Backend, Config, DropReason, Endpoint, Event, FlowKey, Hook, NextHop, Origin, Role, is_mapped_client,
    },
    bytes::Be16,
    checksum::{self, Difference},
    encapsulation::{self, address_frame, encapsulate},
    errors, fragment,
    frame::{ChecksumChange, Frame, ReadFrame, Refused, Route},
    headers::{
        ETHERNET_LENGTH, GeneveKind, IPV4_FRAGMENT_OFFSET_MASK, IPV4_LENGTH, Ipv4, L4_OFFSET, PROTOCOL_TCP,
        Ports, TCP_CHECKSUM_OFFSET, TCP_SYN, Tcp, UDP_CHECKSUM_OFFSET,
    },
    mss, observe, probe,
    tables::{FlowEntry, Tables},
    verdict::{Action, Decision, Verdict},
    way::{self, Reach, Way},
};

/// Carries a decision out. The packet must be the one it was made for. A packet is rewritten whole or
/// dropped and counted. `FRAGMENTS`: it may be a fragment other than the first.
#[inline(always)]
pub fn execute<const FRAGMENTS: bool, F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    config: &Config,
    hook: Hook,
    decision: Decision<'_>,
) -> Action {
    let is_xdp = matches!(hook, Hook::Xdp);
    let done = match decision.verdict() {
        Verdict::Pass => return Action::Pass,
        Verdict::Exceptional => return Action::Exceptional,
        Verdict::Drop(reason) => Err(reason),
        Verdict::Refuse(reason) => {
            observe::refused(frame, tables, hook, reason);
            let is_from_network = matches!(hook, Hook::Xdp | Hook::TcUplink);
            if (is_from_network && errors::is_larger_than(frame)) || !tables.may_answer() {
                return Action::Drop;
            }
            return answer(errors::refuse(frame));
        }
        Verdict::RefuseReturned { flow, reason } if !is_xdp => {
            refuse_returned(frame, tables, config, hook, flow, reason)
        }
        Verdict::SendBack { peer, reason } if !is_xdp => send_back(frame, tables, config, hook, peer, reason),
        // XDP leaves both to tc.
        Verdict::RefuseReturned { .. } | Verdict::SendBack { .. } => return Action::Pass,
        Verdict::AnswerProbe => match probe::answer(frame) {
            // As below: not as a `Result` of an action that has no payload.
            Ok(()) => return Action::Answer,
            Err(refused) => Err(refused.into()),
        },
        Verdict::Deliver {
            flow,
            backend,
            decapsulate,
        } => deliver::<FRAGMENTS, F, T>(frame, tables, hook, flow, backend, decapsulate),
        Verdict::Forward {
            flow,
            backend,
            kind,
            returned,
        } => match way_to_peer(tables, backend) {
            // The exception, for a peer. (Both return from here: a step's `Result` with a payload that is
            // undefined for `Pass` is what the verifier refuses.)
            Some(next_hop) if is_xdp && !next_hop.takes_frames() => return Action::Pass,
            // The second exception. A returned packet was in the tunnel already.
            Some(next_hop) if !returned && !way::fits(frame, encapsulation::inner_mtu(config, next_hop)) => {
                return too_big(frame, tables, hook, encapsulation::inner_mtu(config, next_hop));
            }
            Some(next_hop) => {
                let written = if returned && !is_xdp {
                    forward_returned(frame, tables, config, next_hop, flow, backend, kind)
                } else {
                    forward::<FRAGMENTS, F, T>(frame, tables, config, next_hop, flow, backend, kind)
                };
                match written {
                    Ok(()) => to_peer(frame, config, next_hop),
                    Err(reason) => Err(reason),
                }
            }
            None => Err(DropReason::NoRoute),
        },
        Verdict::Reply { flow } => {
            let way = way::of_reply(frame, tables, config, flow);
            // The second exception.
            if way.reach == Reach::TooBig {
                return too_big(frame, tables, hook, way.mtu);
            }
            reply::<FRAGMENTS, F, T>(frame, tables, config, flow, &way)
        }
        Verdict::DeliverReply { flow } => {
            // mesh0, where replies to IPv6 clients become IPv6, takes none of XDP's frames.
            if is_xdp && is_mapped_client(flow.client().address) {
                return Action::Pass;
            }
            let way = way::to_client(frame, tables, flow);
            // The exception, for a client.
            if is_xdp && way.reach != Reach::Resolved {
                return Action::Pass;
            }
            // The second exception.
            if way.reach == Reach::TooBig && flow.role() == Role::FORWARD {
                return too_big_inner(frame, tables, hook, way.mtu);
            }
            deliver_reply::<FRAGMENTS, F, T>(frame, tables, config, flow, &way)
        }
    };
    counted(frame, tables, hook, done)
}

/// What is left for the hook, a drop being counted.
#[inline(always)]
pub fn counted<F: ReadFrame, T: Tables>(
    frame: &F,
    tables: &T,
    hook: Hook,
    done: Result<Action, DropReason>,
) -> Action {
    match done {
        Ok(action) => action,
        Err(reason) => {
            observe::dropped(frame, tables, hook, reason);
            Action::Drop
        }
    }
}

#[inline(always)]
fn too_big<F: Frame, T: Tables>(frame: &mut F, tables: &T, hook: Hook, mtu: u16) -> Action {
    if fragment::may_be_split(frame) {
        return Action::Split { mtu };
    }
    observe::refused(frame, tables, hook, DropReason::TooBig);
    if !tables.may_answer() {
        return Action::Drop;
    }
    answer(errors::too_big(frame, mtu))
}

/// Answers a remote backend's reply. The error arrives at this hook as a router's would: it goes back to the
/// backend. (What may be split gets one, too: the container's kernel learns to split it.)
#[inline(always)]
fn too_big_inner<F: Frame, T: Tables>(frame: &mut F, tables: &T, hook: Hook, mtu: u16) -> Action {
    observe::refused(frame, tables, hook, DropReason::TooBig);
    if tables.may_answer() && errors::too_big_inner(frame, mtu).is_ok() {
        Action::Again
    } else {
        Action::Drop
    }
}

#[inline(always)]
fn answer(written: Result<(), Refused>) -> Action {
    match written {
        Ok(()) => Action::Answer,
        Err(Refused) => Action::Drop,
    }
}

impl From<Refused> for DropReason {
    #[inline(always)]
    fn from(_: Refused) -> Self {
        Self::RewriteFailed
    }
}

#[inline(always)]
fn deliver<const FRAGMENTS: bool, F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    hook: Hook,
    flow: FlowEntry,
    backend: &Backend,
    decapsulate: bool,
) -> Result<Action, DropReason> {
    if decapsulate {
        encapsulation::decapsulate(frame)?;
    }
    if !flow.origin().is_tunnel() {
        tables.count_in(flow.backend(), frame.segments(), l3_bytes(frame));
    }
    let presented = flow.presented();
    let container = Endpoint::new(backend.address, backend.target_port);
    translate::<true, FRAGMENTS, F>(frame, presented, container)?;
    Ok(into_container(frame, hook, backend)?)
}

/// The last step to a container.
#[inline(always)]
pub fn into_container<F: Frame>(frame: &mut F, hook: Hook, backend: &Backend) -> Result<Action, Refused> {
    address_frame(frame, backend.gateway_mac, backend.mac)?;
    Ok(match hook {
        // Past the host's receive queue, which only an ingress hook can do.
        Hook::Xdp | Hook::TcUplink | Hook::TcContainer => Action::IntoContainer {
            interface: backend.interface,
        },
        Hook::TcMesh0 => Action::Transmit {
            interface: backend.interface,
        },
    })
}

/// The next hop to a remote backend's node; `None` if that node has left.
#[inline(always)]
pub fn way_to_peer<'a, T: Tables>(tables: &'a T, backend: &Backend) -> Option<&'a NextHop> {
    tables
        .next_hop(backend.peer)
        .filter(|next_hop| !next_hop.address.is_zero())
}

#[inline(always)]
fn forward<const FRAGMENTS: bool, F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    config: &Config,
    next_hop: &NextHop,
    flow: FlowEntry,
    backend: &Backend,
    kind: GeneveKind,
) -> Result<(), DropReason> {
    tables.count_in(flow.backend(), frame.segments(), l3_bytes(frame));
    let (presented, frontend) = (flow.presented(), flow.frontend());
    let source_translated = presented != flow.client();
    let ip = *frame.at::<Ipv4>(ETHERNET_LENGTH).ok_or(DropReason::Truncated)?;
    if source_translated {
        translate::<false, FRAGMENTS, F>(frame, presented, frontend)?;
    }
    if is_syn(frame, &ip)? {
        mss::clamp(frame, encapsulation::inner_mtu(config, next_hop))?;
    }
    let inner = FlowKey::between(presented, frontend, u32::from(ip.protocol));
    encapsulate(
        frame,
        config,
        next_hop,
        encapsulation::key_for(tables, next_hop),
        backend,
        kind,
        &inner,
        &ip,
    )?;
    Ok(())
}

/// The same with a packet that a peer has sent back: the outer headers get another receiver and backend, and
/// the inner packet stays as it is. (Without its outer headers, an skb does not always get new ones.)
#[inline(always)]
fn forward_returned<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    config: &Config,
    next_hop: &NextHop,
    flow: FlowEntry,
    backend: &Backend,
    kind: GeneveKind,
) -> Result<(), DropReason> {
    tables.count_in(
        flow.backend(),
        frame.segments(),
        l3_bytes(frame).wrapping_sub(encapsulation::outer_length(frame) as u32),
    );
    let key = encapsulation::key_for(tables, next_hop);
    encapsulation::readdress(frame, config, next_hop, key, kind, Some(backend))?;
    Ok(())
}

#[inline(always)]
fn reply<const FRAGMENTS: bool, F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    config: &Config,
    flow: FlowEntry,
    way: &Way,
) -> Result<Action, DropReason> {
    let (frontend, origin) = (flow.frontend(), flow.origin());
    if !origin.is_tunnel() {
        tables.count_out(flow.backend(), frame.segments(), l3_bytes(frame));
    }
    let ip = *frame.at::<Ipv4>(ETHERNET_LENGTH).ok_or(DropReason::Truncated)?;
    // A source that the entry node translated is restored there.
    let client = flow.client();
    translate::<true, FRAGMENTS, F>(frame, frontend, client)?;
    if origin.is_tunnel() && is_syn(frame, &ip)? {
        mss::clamp(frame, way::mtu_to_entry_node(tables, config, flow))?;
    }
    if origin == Origin::MESH0 {
        return to_local_process(frame, config);
    }
    // Direct return falls back to the entry node: routing does not lead to a client that is this very node,
    // but the entry node can send to it.
    if origin != Origin::TUNNEL && (origin != Origin::TUNNEL_DIRECT || way.reach != Reach::Nowhere) {
        return to_client(frame, way);
    }
    let inner = FlowKey::between(frontend, client, u32::from(ip.protocol));
    let backend = tables.backend(flow.backend()).ok_or(DropReason::UnknownBackend)?;
    to_entry_node(frame, tables, config, flow, backend, &inner, &ip)
}

/// The last step to a flow's entry node. `inner` is the tuple that spreads flows, `ip` the packet's header.
///
/// # Errors
/// The reason to drop the packet.
#[inline(always)]
pub fn to_entry_node<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    config: &Config,
    flow: FlowEntry,
    backend: &Backend,
    inner: &FlowKey,
    ip: &Ipv4,
) -> Result<Action, DropReason> {
    let next_hop = tables
        .next_hop(flow.peer())
        .filter(|next_hop| next_hop.address == flow.peer_address())
        .ok_or(DropReason::NoRoute)?;
    encapsulate(
        frame,
        config,
        next_hop,
        encapsulation::key_for(tables, next_hop),
        backend,
        GeneveKind::Reply,
        inner,
        ip,
    )?;
    to_peer(frame, config, next_hop)
}

#[inline(always)]
fn refuse_returned<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    config: &Config,
    hook: Hook,
    flow: FlowEntry,
    reason: DropReason,
) -> Result<Action, DropReason> {
    let way = way::to_client(frame, tables, flow);
    if !tables.may_answer() || errors::refuse_inner(frame, flow.client()).is_err() {
        return Err(reason);
    }
    observe::refused(frame, tables, hook, reason);
    if flow.origin() == Origin::MESH0 {
        to_local_process(frame, config)
    } else {
        to_client(frame, &way)
    }
}

#[inline(always)]
fn send_back<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    config: &Config,
    hook: Hook,
    peer: u32,
    reason: DropReason,
) -> Result<Action, DropReason> {
    let next_hop = tables
        .next_hop(peer)
        .filter(|next_hop| !next_hop.address.is_zero())
        .ok_or(DropReason::NoRoute)?;
    let key = encapsulation::key_for(tables, next_hop);
    encapsulation::readdress(frame, config, next_hop, key, GeneveKind::Undeliverable, None)?;
    tables.count_drop(hook, reason);
    tables.count_event(Event::SentBack);
    to_peer(frame, config, next_hop)
}

#[inline(always)]
fn deliver_reply<const FRAGMENTS: bool, F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    config: &Config,
    flow: FlowEntry,
    way: &Way,
) -> Result<Action, DropReason> {
    tables.count_out(
        flow.backend(),
        frame.segments(),
        l3_bytes(frame).wrapping_sub(encapsulation::outer_length(frame) as u32),
    );
    encapsulation::decapsulate(frame)?;
    if flow.role() == Role::ALIAS {
        translate::<false, FRAGMENTS, F>(frame, flow.frontend(), flow.client())?;
    }
    if flow.origin() == Origin::MESH0 {
        to_local_process(frame, config)
    } else {
        to_client(frame, way)
    }
}

/// The last step to a process of this node.
#[inline(always)]
pub fn to_local_process<F: Frame>(frame: &mut F, config: &Config) -> Result<Action, DropReason> {
    address_frame(frame, config.mesh0_mac, config.mesh0_mac)?;
    Ok(Action::IntoHost {
        interface: config.mesh0,
    })
}

/// The last step to a client on the network or on one of this node's bridges.
#[inline(always)]
pub fn to_client<F: Frame>(frame: &mut F, way: &Way) -> Result<Action, DropReason> {
    let interface = way.interface;
    match way.reach {
        Reach::Resolved => {
            address_frame(frame, way.source_mac, way.destination_mac)?;
            Ok(Action::Transmit { interface })
        }
        Reach::Unresolved => Ok(Action::Route { interface }),
        Reach::Nowhere => Err(DropReason::NoRoute),
        Reach::TooBig => Err(DropReason::TooBig),
    }
}

/// The last step to a peer. The agent keeps the way to it in a map; until it has resolved the way, the
/// kernel does.
#[inline(always)]
pub fn to_peer<F: Frame>(frame: &F, config: &Config, next_hop: &NextHop) -> Result<Action, DropReason> {
    if next_hop.interface != 0 {
        return Ok(Action::Transmit {
            interface: next_hop.interface,
        });
    }
    match frame.route(config.node_address, next_hop.address, 0) {
        Route::Resolved(NextHop { interface, .. }) | Route::Unresolved { interface } => {
            Ok(Action::Route { interface })
        }
        // Its size was not asked about.
        Route::Unreachable | Route::TooBig { .. } => Err(DropReason::NoRoute),
    }
}

#[inline(always)]
fn l3_bytes<F: Frame>(frame: &F) -> u32 {
    frame.length().wrapping_sub(ETHERNET_LENGTH as u32)
}

#[inline(always)]
fn is_syn<F: Frame>(frame: &F, ip: &Ipv4) -> Result<bool, Refused> {
    if ip.protocol != PROTOCOL_TCP {
        return Ok(false);
    }
    let tcp = frame.at::<Tcp>(L4_OFFSET).ok_or(Refused)?;
    Ok(tcp.flags & TCP_SYN != 0)
}

/// Rewrites addresses and ports, and the checksums with them. A fragment other than the first has neither
/// ports nor a checksum; the first one's checksum is that of the whole packet. Between client and container a
/// packet takes one `HOP`, as through a router. One that has none left goes on: its sender has reached the
/// address it sent to.
#[inline(always)]
pub fn translate<const HOP: bool, const FRAGMENTS: bool, F: Frame>(
    frame: &mut F,
    source: Endpoint,
    destination: Endpoint,
) -> Result<(), Refused> {
    let ip = *frame.at::<Ipv4>(ETHERNET_LENGTH).ok_or(Refused)?;
    let pseudo = Difference::NONE
        .replace32(ip.source, source.address)
        .replace32(ip.destination, destination.address);
    if !FRAGMENTS || ip.fragment.raw() & IPV4_FRAGMENT_OFFSET_MASK.raw() == 0 {
        translate_ports(frame, &ip, pseudo, source.port, destination.port)?;
    }
    let header = frame.at_mut::<Ipv4>(ETHERNET_LENGTH).ok_or(Refused)?;
    header.source = source.address;
    header.destination = destination.address;
    let hops = if HOP && ip.time_to_live > 1 {
        header.time_to_live = ip.time_to_live - 1;
        let word = |hops| Be16::from_raw(u16::from_ne_bytes([hops, ip.protocol]));
        Difference::NONE.replace16(word(ip.time_to_live), word(ip.time_to_live - 1))
    } else {
        Difference::NONE
    };
    header.checksum = checksum::updated(ip.checksum, pseudo.and(hops));
    Ok(())
}

#[inline(always)]
fn translate_ports<F: Frame>(
    frame: &mut F,
    ip: &Ipv4,
    pseudo: Difference,
    source: Be16,
    destination: Be16,
) -> Result<(), Refused> {
    let ports = *frame.at::<Ports>(L4_OFFSET).ok_or(Refused)?;
    let body = Difference::NONE
        .replace16(ports.source, source)
        .replace16(ports.destination, destination);
    let udp = ip.protocol != PROTOCOL_TCP;
    let field = if udp {
        UDP_CHECKSUM_OFFSET
    } else {
        TCP_CHECKSUM_OFFSET
    };
    let same_ports = { ports.source } == source && { ports.destination } == destination;
    frame.change_checksum(ChecksumChange {
        offset: L4_OFFSET + field,
        udp,
        pseudo,
        body: if same_ports { Difference::NONE } else { body },
    })?;
    *frame.at_mut::<Ports>(L4_OFFSET).ok_or(Refused)? = Ports { source, destination };
    Ok(())
}

const _: () = assert!(L4_OFFSET == ETHERNET_LENGTH + IPV4_LENGTH);

#[cfg(test)]
mod tests;
