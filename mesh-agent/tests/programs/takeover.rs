//! An agent that needs other maps than those it finds: it takes the data path over with its connections.

use std::{collections::BTreeSet, net::SocketAddrV4};

use aya::maps::MapInfo;
use mesh_agent::{
    datapath::{Datapath, ebpf::EbpfOptions, memory::MemoryDatapath},
    model::{Desired, Location},
    plan::plan,
};
use mesh_agent_testing::{
    cluster::{CLIENT, DNS, PEER, WEB, arriving, frontend, serve},
    frames::{ACK, Packet, SYN, check_frame},
    idle::on_a_node,
    node::Node,
    run::{XDP_PASS, XDP_TX},
};
use mesh_ebpf::abi::VERSION;
use mesh_support::bpf;

use crate::crash::next_cut;

/// As when the next release has changed the next hops and the counters of drops.
fn next_version(options: &mut EbpfOptions) {
    options.changed_maps = vec!["NEXT_HOPS", "DROPS", "KEYS"];
}

fn larger_flow_table(options: &mut EbpfOptions) {
    options.flow_capacity *= 2;
}

/// Then the tables of services and backends, which refer to each other, are all new.
fn smaller_backend_table(options: &mut EbpfOptions) {
    options.map_sizes = vec![("BACKENDS", 8192)];
}

fn two_services(node: &Node) -> Desired {
    let mut state = node.without_services();
    let backends: Vec<_> = (1..=5).map(|number| (number, Location::Remote(PEER))).collect();
    serve(&mut state, WEB, &backends);
    serve(&mut state, DNS, &[(5, Location::Remote(PEER))]);
    state
}

fn frame(port: u16, flags: u8) -> Vec<u8> {
    let client = SocketAddrV4::new(*CLIENT.ip(), port);
    Packet::tcp(arriving(), client, frontend(WEB), flags).frame()
}

/// Opens five connections, two of which are answered, and returns what becomes of their next packets.
fn connections(node: &mut Node) -> Vec<(u16, Vec<u8>)> {
    (50_000..50_005)
        .map(|port| {
            if port % 2 == 0 {
                node.xdp(&frame(port, SYN));
            } else {
                node.connect(WEB, SocketAddrV4::new(*CLIENT.ip(), port));
            }
            (port, node.xdp(&frame(port, ACK)).frame)
        })
        .collect()
}

fn folders(node: &Node) -> BTreeSet<String> {
    let entries = std::fs::read_dir(node.pins()).expect("the folder of the pins");
    entries
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("ASCII"))
        .collect()
}

/// The map of a pin, and the interface of the link of XDP beside it.
fn identities(node: &Node, version: u32, map: &str) -> (u32, u32) {
    let folder = node.pins().join(format!("v{version}"));
    let link = folder.join(format!("links/mesh_xdp_native_{}", node.uplink));
    (
        MapInfo::from_pin(folder.join(map))
            .expect("the map is pinned")
            .id(),
        bpf::pinned_link_interface(&link).expect("the link is pinned"),
    )
}

fn check(change: fn(&mut EbpfOptions), version: u32) {
    on_a_node(|node| {
        let state = two_services(node);
        node.apply(&state);
        let before = connections(node);
        node.crash();

        change(node.options());
        node.load();
        node.apply(&state);
        for (port, frame_before) in &before {
            check_frame(&node.xdp(&frame(*port, ACK)).frame, frame_before);
        }
        node.datapath()
            .prune(&state)
            .expect("what is replaced can be removed");
        assert_eq!(folders(node), [format!("v{version}")].into());
        assert_eq!(identities(node, version, "FLOWS").1, node.uplink);
        for (port, frame_before) in &before {
            check_frame(&node.xdp(&frame(*port, ACK)).frame, frame_before);
        }
        assert_eq!(node.xdp(&frame(50_005, SYN)).verdict, XDP_TX);
    });
}

#[test]
fn connections_survive_a_new_version_of_some_maps() {
    check(next_version, VERSION + 1);
}

#[test]
fn connections_survive_another_size_of_the_flow_table() {
    check(larger_flow_table, VERSION);
}

#[test]
fn connections_survive_another_size_of_the_backend_table() {
    check(smaller_backend_table, VERSION);
}

#[test]
fn an_unchanged_map_is_used_by_both_versions() {
    on_a_node(|node| {
        let state = two_services(node);
        node.apply(&state);
        let before = identities(node, VERSION, "FLOWS");
        node.crash();
        next_version(node.options());
        node.load();
        assert_eq!(folders(node).len(), 2);
        assert_eq!(identities(node, VERSION, "FLOWS"), before);
        node.apply(&state);
        assert_eq!(identities(node, VERSION + 1, "FLOWS"), before);
    });
}

#[test]
fn a_release_before_takes_over_again() {
    on_a_node(|node| {
        let state = two_services(node);
        next_version(node.options());
        node.load();
        node.apply(&state);
        node.datapath()
            .prune(&state)
            .expect("what is replaced can be removed");
        assert_eq!(folders(node), [format!("v{}", VERSION + 1)].into());
        let before = connections(node);
        node.crash();
        node.options().changed_maps.clear();
        node.load();
        node.apply(&state);
        node.datapath()
            .prune(&state)
            .expect("what is replaced can be removed");
        assert_eq!(folders(node), [format!("v{VERSION}")].into());
        for (port, frame_before) in &before {
            check_frame(&node.xdp(&frame(*port, ACK)).frame, frame_before);
        }
    });
}

#[test]
fn flows_of_an_unknown_layout_are_not_misread() {
    on_a_node(|node| {
        let state = two_services(node);
        node.apply(&state);
        connections(node);
        node.crash();
        node.options().changed_maps = vec!["FLOWS", "HALF_OPEN"];
        node.load();
        node.apply(&state);
        node.datapath()
            .prune(&state)
            .expect("what is replaced can be removed");
        assert_eq!(node.xdp(&frame(50_000, ACK)).verdict, XDP_PASS);
        assert_eq!(node.xdp(&frame(50_000, SYN)).verdict, XDP_TX);
    });
}

#[test]
fn what_cannot_be_replaced_stays_as_it_is() {
    on_a_node(|node| {
        let state = two_services(node);
        node.apply(&state);
        let before = connections(node);
        let identities_before = identities(node, VERSION, "FLOWS");
        for changed_maps in [vec!["NEXT_HOPS"], vec![]] {
            node.crash();
            // The kernel makes no map without entries.
            let good = node.options().clone();
            node.options().map_sizes = vec![("LOADS", 0)];
            node.options().changed_maps = changed_maps;
            let error = node.try_load().expect_err("a map is refused");
            assert!(error.leaves_earlier_serving(), "{error:?}");
            assert_eq!(folders(node), [format!("v{VERSION}")].into());
            assert_eq!(identities(node, VERSION, "FLOWS"), identities_before);
            *node.options() = good;
            node.load();
            node.apply(&state);
            for (port, frame_before) in &before {
                check_frame(&node.xdp(&frame(*port, ACK)).frame, frame_before);
            }
        }
    });
}

/// Kills an agent after so many changes of the plan by which it takes over; returns after how many to kill
/// the next one.
fn killed_after(steps: usize, node: &mut Node) -> Option<usize> {
    let state = node.serving(Location::Remote(PEER));
    node.apply(&state);
    let before = connections(node);
    node.crash();
    next_version(node.options());
    larger_flow_table(node.options());
    node.load();
    let changes = plan(&Desired::default(), &state);
    let done = &changes[..steps.min(changes.len())];
    assert!(node.datapath().apply(done).is_empty());
    node.crash();

    node.load();
    node.apply(&state);
    node.datapath()
        .prune(&state)
        .expect("what is left over can be removed");
    let mut found = node.datapath().dump(0).expect("the tables can be read");
    found.flows.clear();
    let mut memory = MemoryDatapath { state: state.clone() };
    let expected = memory.dump(0).expect("it is in memory");
    assert!(
        found == expected,
        "killed after {steps} of {} changes: the tables are\n{found}\nbut should be\n{expected}",
        changes.len()
    );
    assert_eq!(folders(node).len(), 1, "killed after {steps} changes");
    for (port, frame_before) in &before {
        check_frame(&node.xdp(&frame(*port, ACK)).frame, frame_before);
    }
    next_cut(&changes, steps)
}

#[test]
fn an_agent_killed_at_any_step_of_a_takeover_is_repaired_by_the_next() {
    let mut cut = Some(0);
    while let Some(steps) = cut {
        on_a_node(|node| cut = killed_after(steps, node));
    }
}
