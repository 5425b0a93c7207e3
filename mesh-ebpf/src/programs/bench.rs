//! Wrappers that `cargo xtask bench packet` measures the programs through. Only built with the feature
//! `bench`, into an object of its own.
//!
//! `BPF_PROG_TEST_RUN` does not restore the packet between repetitions. A wrapper therefore restores its
//! size and headers, with the next flow's client, and jumps into the program to measure: one of the
//! product's, or one of the baselines here. What the wrapper around [`bench_empty`] takes is subtracted.

mod restore;

use aya_ebpf::{
    bindings::xdp_action::{XDP_ABORTED, XDP_PASS},
    macros::{classifier, map, xdp},
    maps::{LruHashMap, ProgramArray},
    programs::{TcContext, XdpContext},
};
use mesh_ebpf::{
    abi::{FlowKey, FlowRecord, Hook},
    frame::Frame,
    headers::{ETHERNET_LENGTH, ETHERTYPE_IPV4, ETHERTYPE_IPV6, OUTER_LENGTH},
    parse::parse,
    tables::Tables,
};

use self::restore::{INNER, IPV6, PLAIN, restore};
use crate::{
    flow_maps::{staged, update},
    maps::KernelTables,
    tc::Skb,
    xdp::XdpFrame,
};

const TC_FAILED: i32 = 2;

/// The XDP program to measure.
#[map]
static BENCH_XDP: ProgramArray = ProgramArray::with_max_entries(1, 0);
/// The tc program to measure.
#[map]
static BENCH_TC: ProgramArray = ProgramArray::with_max_entries(1, 0);
/// As large as the flow table, to measure an insertion alone.
#[map]
static BENCH_INSERTS: LruHashMap<FlowKey, FlowRecord> = LruHashMap::with_max_entries(262_144, 0);

/// Restores a plain packet and jumps.
#[xdp]
pub(crate) fn bench_plain(context: XdpContext) -> u32 {
    wrap::<PLAIN>(&context)
}

/// Restores an encapsulated packet and jumps.
#[xdp]
pub(crate) fn bench_inner(context: XdpContext) -> u32 {
    wrap::<INNER>(&context)
}

/// Puts a plain packet back and jumps, in tc.
#[classifier]
pub(crate) fn bench_tc(context: TcContext) -> i32 {
    let mut skb = Skb::new(&context, Hook::TcUplink);
    if restore::<PLAIN, _>(&mut skb).is_some() {
        // SAFETY: the map holds programs of this type.
        unsafe { BENCH_TC.tail_call(&context, 0) };
    }
    TC_FAILED
}

/// Makes the packet IPv6 again, puts it back and jumps, in tc.
#[classifier]
pub(crate) fn bench_ipv6(context: TcContext) -> i32 {
    let mut skb = Skb::new(&context, Hook::TcUplink);
    let is_ipv6 = skb.protocol() == ETHERTYPE_IPV6;
    if (is_ipv6 || skb.change_protocol(ETHERTYPE_IPV6).is_ok()) && restore::<IPV6, _>(&mut skb).is_some() {
        // SAFETY: the map holds programs of this type.
        unsafe { BENCH_TC.tail_call(&context, 0) };
    }
    TC_FAILED
}

/// Makes the packet IPv4: half of this is the wrapper's share where the version has changed.
#[classifier]
pub(crate) fn bench_change_version(context: TcContext) -> i32 {
    let mut skb = Skb::new(&context, Hook::TcUplink);
    match skb.change_protocol(ETHERTYPE_IPV4) {
        Ok(()) => 0,
        Err(_) => TC_FAILED,
    }
}

/// Does nothing.
#[xdp]
pub(crate) fn bench_empty(_: XdpContext) -> u32 {
    XDP_PASS
}

/// Does nothing, in tc.
#[classifier]
pub(crate) fn bench_tc_empty(_: TcContext) -> i32 {
    0
}

/// Makes the packet larger and smaller again: half of this is the wrapper's share where the size has changed.
#[xdp]
pub(crate) fn bench_resize(context: XdpContext) -> u32 {
    let mut frame = XdpFrame { context: context.ctx };
    if frame.insert_outer(OUTER_LENGTH).is_err() || frame.remove_outer(OUTER_LENGTH).is_err() {
        return XDP_ABORTED;
    }
    XDP_PASS
}

/// Parses.
#[xdp]
pub(crate) fn bench_parse(context: XdpContext) -> u32 {
    match key(&context) {
        Some(key) if key.source_port == key.destination_port => XDP_ABORTED,
        Some(_) => XDP_PASS,
        None => XDP_ABORTED,
    }
}

/// Parses, and looks the flow up.
#[xdp]
pub(crate) fn bench_look_up(context: XdpContext) -> u32 {
    match key(&context).and_then(|key| KernelTables.flow(&key)) {
        Some(_) => XDP_PASS,
        None => XDP_ABORTED,
    }
}

/// Parses, and inserts a flow.
#[xdp]
pub(crate) fn bench_insert(context: XdpContext) -> u32 {
    let Some(key) = key(&context) else {
        return XDP_ABORTED;
    };
    // SAFETY: a map like the flow tables, and a record in a map.
    match staged().map(|record| unsafe { update(&raw const BENCH_INSERTS, &key, record, 0) }) {
        Some(0) => XDP_PASS,
        Some(_) | None => XDP_ABORTED,
    }
}

#[inline(always)]
fn wrap<const CLIENT: usize>(context: &XdpContext) -> u32 {
    let mut frame = XdpFrame { context: context.ctx };
    if restore::<CLIENT, _>(&mut frame).is_some() {
        // SAFETY: the map holds programs of this type.
        unsafe { BENCH_XDP.tail_call(context, 0) };
    }
    XDP_ABORTED
}

#[inline(always)]
fn key(context: &XdpContext) -> Option<FlowKey> {
    let frame = XdpFrame { context: context.ctx };
    match parse(&frame, ETHERNET_LENGTH) {
        Ok(packet) => Some(packet.key),
        Err(_) => None,
    }
}
