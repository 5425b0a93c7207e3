//! Fixtures of the packet path's tests: a frame, the tables of a node, and packets that etherparse makes and
//! checks.

mod frame;
mod packets;
mod tables;

pub(crate) use frame::TestFrame;
pub(crate) use packets::{
    ACK, FIN, PSH, RST, SYN, Segment, View, at, fix_ip_checksum, ip_at, ip_checksum_is_right, reply_to, tcp,
    udp, view, view_inner,
};
pub(crate) use tables::{
    CLIENT_ROUTE, GENEVE_PORT, INNER_MTU, MESH0, Replica, SERVICE_ADDRESS, TestTables, VNI, node_address,
};

use crate::{
    abi::Hook,
    entry, pipeline,
    verdict::{Action, Decision},
};

/// Does with a frame what a hook does.
pub(crate) fn run(tables: &TestTables, hook: Hook, frame: &mut TestFrame) -> Action {
    pipeline::run(frame, tables, hook)
}

/// Decides about a frame at a node that has its settings.
pub(crate) fn decide<'a>(frame: &TestFrame, tables: &'a TestTables, hook: Hook) -> Decision<'a> {
    let config = tables.config.as_ref().expect("settings");
    entry::decide(frame, tables, config, hook)
}
