//! Packets that the pipeline leaves to a program of its own behind each tc hook, so that they cost it
//! nothing: ICMP errors about its flows. The hook's program calls that one with the packet as it came.

use crate::{
    abi::{Config, Hook},
    frame::{Frame, ReadFrame},
    headers::{ETHERNET_LENGTH, Ipv4, PROTOCOL_ICMP},
    icmp,
    layer3::{Layer3Frame, WithoutEthernet},
    parse::parse,
    tables::Tables,
    tunnel,
    verdict::Action,
};

/// Runs an exceptional packet through; what it returns is left for the hook to do.
#[inline(always)]
pub fn run<F: Frame, T: Tables>(frame: &mut F, tables: &T, hook: Hook) -> Action {
    let Some(config) = tables.config() else {
        return Action::Pass;
    };
    let decision = decide(frame, tables, config, hook);
    icmp::execute(frame, tables, config, hook, decision)
}

/// The same with an IPv4 packet that begins with its IP header. It gets an Ethernet header unless it passes.
#[inline(always)]
pub fn run_layer3<F: Layer3Frame, T: Tables>(packet: &mut F, tables: &T, hook: Hook) -> Action {
    let Some(config) = tables.config() else {
        return Action::Pass;
    };
    let decision = decide(&WithoutEthernet(packet), tables, config, hook);
    if decision.leaves_packet() {
        return Action::Pass;
    }
    if packet.insert_ethernet().is_err() {
        return Action::Pass;
    }
    icmp::execute(packet, tables, config, hook, decision)
}

#[inline(always)]
fn decide<'a, F: ReadFrame, T: Tables>(
    frame: &F,
    tables: &'a T,
    config: &Config,
    hook: Hook,
) -> icmp::Decision<'a> {
    let is_icmp = frame
        .at::<Ipv4>(ETHERNET_LENGTH)
        .is_some_and(|ip| ip.protocol == PROTOCOL_ICMP);
    if is_icmp {
        return icmp::decide(frame, tables, hook);
    }
    match parse(frame, ETHERNET_LENGTH) {
        Ok(packet) if tunnel::is_encapsulated(config, &packet) => {
            match tunnel::open_envelope(frame, tables, config, &packet) {
                Ok(envelope) => icmp::decide_encapsulated(frame, tables, &envelope),
                // The pipeline has opened it just now.
                Err(_) => icmp::Decision::PASS,
            }
        }
        _ => icmp::Decision::PASS,
    }
}
