//! Decides about a packet that was never sent, with the packet logic that the programs have and the maps that
//! they read, and reports what was decided by what. Nothing is written to a map.

mod tables;

use std::{collections::BTreeMap, net::SocketAddrV4};

use aya::Ebpf;
use mesh_ebpf::{
    abi::{self, Choice, Config, DropReason, Endpoint, FlowKey, Hook},
    bytes::Be16,
    encapsulation::inner_mtu,
    entry,
    frame::ReadFrame as _,
    headers::{GeneveKind, TCP_ACK, TCP_SYN},
    tables::{FlowEntry, Tables as _},
    verdict::Verdict,
};

use self::tables::{LiveTables, Noted};
use super::{
    super::{
        DatapathError,
        explain::{Chosen, Explanation, KnownFlow, Outcome, PacketIngress, Question, Tunnelled},
        flow_list::FlowState,
    },
    clock::kernel_clock,
    dump::choice_name,
    failed, flow_list,
    frame::StoredFrame,
    mapped::socket,
    maps::Maps,
    tables::{CLOSED, service_key},
};
use crate::model::{BackendKey, Protocol, SourceVerdict};

/// Explains what becomes of a packet; `now` is the time on the flows' clock.
pub(super) fn explain(
    programs: &Ebpf,
    maps: &Maps,
    now: u32,
    question: &Question,
) -> Result<Explanation, DatapathError> {
    let tables = LiveTables::new(programs, maps, kernel_clock(), question.ipv6_client)?;
    let config = Config {
        now,
        ..maps.config()?
    };
    let key = key(question, &config);
    let flow = tables.flow(&key).filter(|flow| flow.role() == abi::Role::FORWARD);
    let known = flow.map(|flow| known_flow(maps, flow, now));
    // A packet that opens a connection or, where there is one, its next.
    let goes_on = |flow: &KnownFlow| flow.backend.is_some() && flow.state != FlowState::Closed;
    let flags = if known.as_ref().is_some_and(goes_on) {
        TCP_ACK
    } else {
        TCP_SYN
    };
    let (hooks, interface): (&[Hook], u32) = match question.ingress {
        PacketIngress::Uplink {
            interface,
            has_xdp: true,
        } => (&[Hook::Xdp, Hook::TcUplink], interface),
        PacketIngress::Uplink {
            interface,
            has_xdp: false,
        } => (&[Hook::TcUplink], interface),
        PacketIngress::Container { interface } => (&[Hook::TcContainer], interface),
        PacketIngress::Host => (&[Hook::TcMesh0], config.mesh0),
    };
    let frame = StoredFrame::imagined(&key, flags, interface);
    // XDP leaves IPv6 to tc.
    let hooks = if frame.was_ipv6() {
        &[Hook::TcUplink]
    } else {
        hooks
    };
    let mut passed = Vec::new();
    let mut last = Outcome::Passed;
    let mut chosen = None;
    for hook in hooks {
        let decision = entry::decide(&frame, &tables, &config, *hook);
        let verdict = decision.verdict();
        passed.push((hook.name().to_owned(), name(&verdict).to_owned()));
        last = outcome(&tables, &config, &verdict)?;
        chosen = match verdict {
            Verdict::Deliver { flow, backend, .. } | Verdict::Forward { flow, backend, .. } => {
                Some((backend_key(backend), presented(flow)))
            }
            _ => None,
        };
        if !decision.leaves_packet() {
            break;
        }
    }
    let noted = tables.finish()?;
    let (backend, presented) = chosen.unzip();
    let service = match noted.service {
        Some(index) => maps.services.get(&index, 0).ok(),
        None => None,
    };
    let named = service.and_then(|service| service_key(service.protocol, service.port));
    Ok(Explanation {
        hooks: passed,
        is_published: noted.is_published,
        service: named.filter(|key| *key != CLOSED),
        is_closed: named == Some(CLOSED),
        is_answer: noted.is_answer,
        rules: rules(&noted, question.protocol == Protocol::Udp || flags == TCP_SYN),
        choice: match service {
            Some(service) if noted.has_affinity || !noted.slots.is_empty() => {
                Some(choice(maps, &noted, &service)?)
            }
            Some(_) | None => None,
        },
        unanswered: unanswered(maps, &noted)?,
        flow: known,
        backend: backend.flatten(),
        presented: presented.flatten(),
        outcome: last,
    })
}

/// The packet's tuple where the mesh sees it.
fn key(question: &Question, config: &Config) -> FlowKey {
    let endpoint = |address: &SocketAddrV4| Endpoint::new((*address.ip()).into(), Be16::new(address.port()));
    let source = endpoint(&question.source);
    let mut destination = endpoint(&question.destination);
    if question.ingress == PacketIngress::Host {
        destination.address = config.service_address;
    }
    FlowKey::between(source, destination, question.protocol.number().into())
}

fn known_flow(maps: &Maps, flow: FlowEntry, now: u32) -> KnownFlow {
    let backend = maps.backends.get(&flow.backend(), 0).ok();
    let current = backend.filter(|backend| backend.generation == flow.generation());
    KnownFlow {
        backend: current.as_ref().and_then(backend_key),
        state: flow_list::state(flow.from_client(), flow.from_backend(), flow.opening()),
        idle_seconds: now.saturating_sub(flow.seen()),
    }
}

fn backend_key(backend: &abi::Backend) -> Option<BackendKey> {
    Some(BackendKey {
        service: service_key(backend.key.protocol, backend.key.port)?,
        address: backend.key.address.into(),
    })
}

fn presented(flow: FlowEntry) -> Option<SocketAddrV4> {
    let presented = flow.presented();
    (presented != flow.client()).then(|| socket(presented))
}

/// What the rules say of the packet, if they were asked.
fn rules(noted: &Noted, may_open: bool) -> Option<SourceVerdict> {
    let verdicts = noted.verdicts?;
    let verdict = if may_open {
        verdicts.opening()
    } else {
        verdicts.open()
    };
    Some(match verdict {
        abi::SourceVerdict::ACCEPT => SourceVerdict::Accept,
        abi::SourceVerdict::REJECT => SourceVerdict::Reject,
        _ => SourceVerdict::Drop,
    })
}

fn choice(maps: &Maps, noted: &Noted, service: &abi::Service) -> Result<Chosen, DatapathError> {
    // What follows the ring has the backends that other nodes prefer, and how many those are.
    let slots = noted
        .slots
        .iter()
        .map(|(slot, index)| (slot.wrapping_sub(service.ring_offset), index));
    let slots = slots
        .filter(|(slot, _)| *slot < service.ring_length)
        .map(|(slot, index)| {
            let backend = read_backend(maps, *index)?;
            Ok((slot, backend_key(&backend)))
        });
    Ok(Chosen {
        how: choice_name(service.choice).to_owned(),
        slots: slots.collect::<Result<_, DatapathError>>()?,
        ring_length: service.ring_length,
        has_affinity: noted.has_affinity,
        is_forecast: noted.has_taken_turn
            || noted.is_by_chance
            || service.choice.within_ring() == Choice::LEAST,
        is_flooded: noted.is_past_limit,
    })
}

fn unanswered(maps: &Maps, noted: &Noted) -> Result<BTreeMap<BackendKey, u64>, DatapathError> {
    let mut unanswered = BTreeMap::new();
    for (index, breaker) in noted
        .breakers
        .iter()
        .filter(|(_, breaker)| breaker.unanswered > 0)
    {
        if let Some(key) = backend_key(&read_backend(maps, *index)?) {
            unanswered.insert(key, breaker.unanswered);
        }
    }
    Ok(unanswered)
}

fn read_backend(maps: &Maps, index: u32) -> Result<abi::Backend, DatapathError> {
    let backend = maps.backends.get(&index, 0);
    backend.map_err(|error| failed("read BACKENDS", error))
}

fn outcome(
    tables: &LiveTables<'_>,
    config: &Config,
    verdict: &Verdict<'_>,
) -> Result<Outcome, DatapathError> {
    let named = |reason: &DropReason| reason.name().to_owned();
    Ok(match verdict {
        Verdict::Pass | Verdict::Exceptional | Verdict::AnswerProbe => Outcome::Passed,
        Verdict::Drop(reason) | Verdict::SendBack { reason, .. } => Outcome::Dropped {
            reason: named(reason),
        },
        Verdict::Refuse(reason) | Verdict::RefuseReturned { reason, .. } => Outcome::Refused {
            reason: named(reason),
        },
        Verdict::Deliver { backend, .. } => Outcome::Delivered {
            interface: backend.interface,
        },
        Verdict::Forward { backend, kind, .. } => {
            let next_hop = tables
                .next_hop(backend.peer)
                .ok_or_else(|| failed("read NEXT_HOPS", "the backend's node has none"))?;
            Outcome::Forwarded(Tunnelled {
                peer: next_hop.address.into(),
                interface: (next_hop.interface != 0).then_some(next_hop.interface),
                mtu: inner_mtu(config, next_hop),
                has_key: next_hop.key != 0,
                is_direct: *kind == GeneveKind::ForwardDirect,
            })
        }
        Verdict::Reply { .. } | Verdict::DeliverReply { .. } => Outcome::Reply,
    })
}

fn name(verdict: &Verdict<'_>) -> &'static str {
    match verdict {
        Verdict::Pass | Verdict::AnswerProbe => "pass",
        Verdict::Exceptional => "exceptional",
        Verdict::Drop(_) => "drop",
        Verdict::Refuse(_) | Verdict::RefuseReturned { .. } => "refuse",
        Verdict::SendBack { .. } => "send back",
        Verdict::Deliver { .. } => "deliver",
        Verdict::Forward { .. } => "forward",
        Verdict::Reply { .. } | Verdict::DeliverReply { .. } => "reply",
    }
}
