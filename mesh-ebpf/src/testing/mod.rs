//! Fixtures of the packet path's tests: a frame, the tables of a node, and packets that etherparse makes and
//! checks.

use std::collections::VecDeque;

mod affinity;
mod flood;
mod frame;
mod mapped;
mod memory;
mod packets;
mod packets_v6;
mod signals;
mod source_rules;
mod tables;

pub(crate) use frame::TestFrame;
pub(crate) use packets::{
    ACK, ErrorView, FIN, PSH, RST, SYN, Segment, View, at, fix_ip_checksum, icmp, ip_at,
    ip_checksum_is_right, reply_to, segment, tcp, udp, view, view_error, view_inner,
};
pub(crate) use packets_v6::{at_v6, icmp_v6, tcp_v6, udp_v6, view_error_v6, view_v6};
pub(crate) use source_rules::network;
pub(crate) use tables::{
    CLIENT_ROUTE, GENEVE_PORT, INNER_MTU, MESH0, Replica, SERVICE_ADDRESS, TestTables, VNI, node_address,
};

use crate::{
    abi::Hook,
    entry, exceptional, pipeline,
    verdict::{Action, Decision},
};

/// Does with a frame what a hook does.
pub(crate) fn run(tables: &TestTables, hook: Hook, frame: &mut TestFrame) -> Action {
    let before = frame.bytes.clone();
    match pipeline::run(frame, tables, hook) {
        Action::Exceptional => {
            assert_eq!(
                frame.bytes, before,
                "the program that is called gets it as it came"
            );
            exceptional::run(frame, tables, hook)
        }
        Action::Split { .. } => exceptional::run(frame, tables, hook),
        action => action,
    }
}

/// Does with a frame, and with what becomes of it, what a hook does, until all of that has left the hook.
pub(crate) fn run_until_gone(tables: &TestTables, hook: Hook, frame: TestFrame) -> Vec<(Action, TestFrame)> {
    let mut arriving = VecDeque::from([frame]);
    let mut left = Vec::new();
    while let Some(mut frame) = arriving.pop_front() {
        let action = run(tables, hook, &mut frame);
        arriving.extend(frame.again.drain(..));
        match action {
            Action::Again => arriving.push_back(frame),
            action => left.push((action, frame)),
        }
    }
    left
}

/// The same with a packet of a layer 3 device.
pub(crate) fn run_layer3(tables: &TestTables, hook: Hook, packet: &mut TestFrame) -> Action {
    match pipeline::run_layer3(packet, tables, hook) {
        Action::Exceptional => exceptional::run_layer3(packet, tables, hook),
        // With its Ethernet header.
        Action::Split { .. } => exceptional::run(packet, tables, hook),
        action => action,
    }
}

/// Decides about a frame at a node that has its settings.
pub(crate) fn decide<'a>(frame: &TestFrame, tables: &'a TestTables, hook: Hook) -> Decision<'a> {
    let config = tables.config.as_ref().expect("settings");
    entry::decide(frame, tables, config, hook)
}
