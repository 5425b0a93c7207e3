//! Where every hook begins: whose is the packet, and what shall become of it? Imports the modules that
//! decide.

use crate::{
    abi::{BACKEND_LOCAL, Backend, Config, DropReason, FrontendKey, Hook, Origin, Progress, Role},
    frame::Frame,
    headers::{
        ETHERNET_LENGTH, ETHERTYPE_IPV4, Ethernet, IPV4_LENGTH, PROTOCOL_TCP, PROTOCOL_UDP, TCP_ACK, TCP_FIN,
        TCP_LENGTH, TCP_RST, TCP_SYN,
    },
    open,
    parse::{Packet, Unparsed, parse},
    reply,
    tables::{FlowEntry, Tables},
    tunnel,
    verdict::Decision,
};

/// Decides about a frame that arrived at a hook.
#[inline(always)]
pub fn decide<'a, F: Frame, T: Tables>(frame: &F, tables: &'a T, hook: Hook) -> Decision<'a> {
    match frame.at::<Ethernet>(0) {
        Some(ethernet) if { ethernet.ethertype } == ETHERTYPE_IPV4 => {}
        _ => return leave(hook),
    }
    let Some(config) = tables.config() else {
        return leave(hook);
    };
    let packet = match parse(frame, ETHERNET_LENGTH) {
        Ok(packet) => packet,
        Err(Unparsed::Other) => return leave(hook),
        Err(Unparsed::Invalid(reason)) => return Decision::drop(reason),
        Err(Unparsed::Unsupported(reason, key)) => {
            let protocol = key.protocol as u8;
            if !tables.is_published(protocol, key.destination_port.get()) {
                return leave(hook);
            }
            let frontend = FrontendKey {
                address: key.destination,
                port: key.destination_port,
                protocol: u16::from(protocol),
            };
            return match tables.frontend(&frontend) {
                Some(_) => Decision::drop(reason),
                None => leave(hook),
            };
        }
    };
    match hook {
        Hook::Xdp | Hook::TcUplink => {
            if packet.key.destination_port == config.geneve_port
                && packet.key.protocol == u32::from(PROTOCOL_UDP)
                && packet.key.destination == config.node_address
            {
                return tunnel::decide(frame, tables, config, hook, &packet);
            }
            client(frame, tables, config, &packet, hook, Origin::UPLINK)
        }
        Hook::TcContainer => match reply::decide(frame, tables, config, &packet) {
            Some(decision) => decision,
            None => client(frame, tables, config, &packet, hook, Origin::CONTAINER),
        },
        Hook::TcMesh0 => client(frame, tables, config, &packet, hook, Origin::MESH0),
    }
}

/// What becomes of a packet that is not the mesh's. Nothing but the mesh's own traffic may leave by
/// mesh0, which leads nowhere.
#[inline(always)]
fn leave<'a>(hook: Hook) -> Decision<'a> {
    match hook {
        Hook::Xdp | Hook::TcUplink | Hook::TcContainer => Decision::PASS,
        Hook::TcMesh0 => Decision::drop(DropReason::NotAFrontend),
    }
}

/// A client's packet: on its way to a frontend, or nothing of ours.
#[inline(always)]
fn client<'a, F: Frame, T: Tables>(
    frame: &F,
    tables: &'a T,
    config: &Config,
    packet: &Packet,
    hook: Hook,
    origin: Origin,
) -> Decision<'a> {
    let key = &packet.key;
    let protocol = key.protocol as u8;
    if !tables.is_published(protocol, key.destination_port.get()) {
        return leave(hook);
    }
    // The service address is for this node's own processes only, and they use nothing else here.
    if (key.destination == config.service_address) != (origin == Origin::MESH0) {
        return leave(hook);
    }
    let tcp = protocol == PROTOCOL_TCP;
    let opens = !tcp || is_syn(packet);
    if let Some(flow) = tables.flow(key) {
        if flow.role() != Role::FORWARD || flow.origin().is_tunnel() {
            if !opens {
                return leave(hook);
            }
        } else {
            let backend = tables
                .backend(flow.backend())
                .filter(|backend| backend.generation == flow.generation());
            match backend {
                // A SYN on a flow that is being closed is the port's next user.
                Some(backend) if !(tcp && opens && flow.is_closing()) => {
                    seen(flow, config, packet);
                    return hand_over(frame, config, packet, flow, backend);
                }
                Some(_) => {}
                None if !opens => return Decision::refuse(DropReason::BackendGone),
                None => {}
            }
        }
    } else if !opens {
        // Not ours to judge: a connection older than the mesh, or none. The kernel answers.
        return match hook {
            Hook::TcMesh0 => Decision::refuse(DropReason::UnknownFlow),
            Hook::Xdp | Hook::TcUplink | Hook::TcContainer => Decision::PASS,
        };
    }
    let frontend = FrontendKey {
        address: key.destination,
        port: key.destination_port,
        protocol: u16::from(protocol),
    };
    let Some(service) = tables.frontend(&frontend) else {
        return leave(hook);
    };
    match open::at_entry(tables, config, packet, service, origin) {
        Ok((flow, backend)) => hand_over(frame, config, packet, flow, backend),
        Err(DropReason::NoBackend) => Decision::refuse(DropReason::NoBackend),
        Err(reason) => Decision::drop(reason),
    }
}

/// Whether a packet begins a TCP connection. A SYN that also closes is nobody's way to begin.
#[inline(always)]
pub(crate) fn is_syn(packet: &Packet) -> bool {
    packet.tcp_flags & (TCP_SYN | TCP_ACK | TCP_FIN | TCP_RST) == TCP_SYN
}

/// Notes what a client's packet tells about its flow.
#[inline(always)]
pub(crate) fn seen(flow: FlowEntry, config: &Config, packet: &Packet) {
    flow.touch(config.now);
    if let Some(progress) = progress(packet) {
        flow.client_is(progress);
    }
}

/// How far a packet's direction has come, if the packet says anything about it.
#[inline(always)]
pub(crate) fn progress(packet: &Packet) -> Option<Progress> {
    if packet.tcp_flags & TCP_RST != 0 {
        Some(Progress::RESET)
    } else if packet.tcp_flags & TCP_FIN != 0 {
        Some(Progress::FINISHED)
    } else {
        None
    }
}

#[inline(always)]
fn hand_over<'a, F: Frame>(
    frame: &F,
    config: &Config,
    packet: &Packet,
    flow: FlowEntry,
    backend: &'a Backend,
) -> Decision<'a> {
    if backend.location == BACKEND_LOCAL {
        return Decision::deliver(flow, backend, false);
    }
    if exceeds(frame, packet, config.inner_mtu) {
        return Decision::TOO_BIG;
    }
    Decision::forward(flow, backend)
}

/// Whether a packet, or each segment of what GRO put together, is larger than `mtu`.
#[inline(always)]
pub(crate) fn exceeds<F: Frame>(frame: &F, packet: &Packet, mtu: u16) -> bool {
    if packet.total_length <= mtu {
        return false;
    }
    let size = frame.segment_size();
    // 12 bytes of TCP options (timestamps) are on nearly every segment.
    size == 0 || size + (IPV4_LENGTH + TCP_LENGTH + 12) as u32 > u32::from(mtu)
}

#[cfg(test)]
mod tests;
