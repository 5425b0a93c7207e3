//! The data path's life: loading, adoption by the next agent, detaching.

use std::{
    collections::BTreeMap,
    net::SocketAddrV4,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use aya::{
    maps::{HashMap, Map, MapData},
    programs::Program,
};
use mesh_agent::{
    datapath::{Datapath, Mode},
    model::{BackendKey, HostInterface, Location, MacAddress},
};
use mesh_agent_testing::{
    cluster::{CLIENT, DNS, PEER, WEB, arriving, backend_key, frontend, serve},
    frames::{ACK, Packet, SYN, check_frame},
    idle::on_a_node,
    node::Node,
    run::XDP_TX,
};
use mesh_ebpf::abi::{self, VERSION};
use mesh_support::{bpf, command};
use nix::net::if_::if_nametoindex;

/// Five remote replicas of one service, and another service beside it.
fn two_services(node: &mut Node) {
    let mut state = node.without_services();
    let backends: Vec<_> = (1..=5).map(|number| (number, Location::Remote(PEER))).collect();
    serve(&mut state, WEB, &backends);
    serve(&mut state, DNS, &[(5, Location::Remote(PEER))]);
    node.apply(&state);
}

fn pinned<K: aya::Pod + Ord, V: aya::Pod>(node: &Node, name: &str) -> BTreeMap<K, V> {
    let path = node.pins().join(format!("v{VERSION}")).join(name);
    let map = Map::HashMap(MapData::from_pin(&path).expect("the map is pinned"));
    let map: HashMap<MapData, K, V> = map.try_into().expect("a map of these types");
    map.iter().map(|entry| entry.expect("an entry")).collect()
}

fn backend_indexes(node: &Node) -> BTreeMap<abi::BackendKey, u32> {
    pinned(node, "BACKEND_INDEX")
}

/// The number of the replica that a frame to a peer names.
fn named(frame: &[u8]) -> u8 {
    frame[57]
}

fn syn(port: u16) -> Vec<u8> {
    Packet::tcp(
        arriving(),
        SocketAddrV4::new(*CLIENT.ip(), port),
        frontend(WEB),
        SYN,
    )
    .frame()
}

fn data(port: u16) -> Vec<u8> {
    Packet::tcp(
        arriving(),
        SocketAddrV4::new(*CLIENT.ip(), port),
        frontend(WEB),
        ACK,
    )
    .frame()
}

/// Instructions that the verifier may follow in one program: far from what the kernel allows, as the next
/// kernel may follow more of them.
const MOST_VERIFIED: u32 = 400_000;

#[test]
fn every_program_passes_the_verifier() {
    on_a_node(|node| {
        let object = node.datapath().object();
        let mut names: Vec<String> = object.programs().map(|(name, _)| name.to_owned()).collect();
        println!("{:<20} {:>12} {:>12}", "program", "instructions", "verified");
        for name in &names {
            let program = node.datapath().program(name).expect("the verifier accepts it");
            let known = matches!(
                program,
                Program::Xdp(_) | Program::SchedClassifier(_) | Program::CgroupSockAddr(_)
            );
            assert!(known, "{name} is of a kind that the agent does not load");
            let info = program.info().expect("it is loaded");
            let instructions = info.size_translated().expect("root sees the program") / 8;
            let verified = info.verified_instruction_count().expect("Linux 5.16");
            println!("{name:<20} {instructions:>12} {verified:>12}");
            assert!(
                verified < MOST_VERIFIED,
                "{name}: {verified}; the kernel refuses more than a million"
            );
        }
        names.sort();
        assert_eq!(
            names,
            [
                "exceptional_container",
                "exceptional_layer3",
                "exceptional_local",
                "exceptional_uplink",
                "mesh_connect4",
                "mesh_connect6",
                "mesh_container",
                "mesh_getpeername4",
                "mesh_getpeername6",
                "mesh_layer3",
                "mesh_local",
                "mesh_recvmsg4",
                "mesh_recvmsg6",
                "mesh_sendmsg4",
                "mesh_sendmsg6",
                "mesh_uplink",
                "mesh_xdp",
                "to_ipv4_container",
                "to_ipv4_uplink",
                "to_ipv6",
            ]
        );
    });
}

#[test]
fn the_next_agent_adopts_the_data_path_of_a_crashed_one() {
    on_a_node(|node| {
        two_services(node);
        let before: Vec<Vec<u8>> = (50_000..50_005)
            .map(|port| {
                node.xdp(&syn(port));
                node.xdp(&data(port)).frame
            })
            .collect();
        let replicas: Vec<u8> = before.iter().map(|frame| named(frame)).collect();
        let indexes = backend_indexes(node);
        assert_eq!(indexes.len(), 6);

        node.crash();
        node.load();
        let mut state = node.without_services();
        let backends: Vec<_> = (1..=5).map(|number| (number, Location::Remote(PEER))).collect();
        serve(&mut state, WEB, &backends);
        node.apply(&state);
        node.datapath()
            .prune(&state)
            .expect("what is stale can be removed");

        let kept: BTreeMap<_, _> = indexes
            .into_iter()
            .filter(|(key, _)| key.port.get() == WEB.port)
            .collect();
        assert_eq!(backend_indexes(node), kept);
        for (port, frame) in (50_000..50_005).zip(&before) {
            check_frame(&node.xdp(&data(port)).frame, frame);
        }
        let services: BTreeMap<u32, abi::Service> = pinned(node, "SERVICES");
        assert_eq!(services.len(), 1, "the other service is gone");
        let frontends: BTreeMap<abi::FrontendKey, u32> = pinned(node, "FRONTENDS");
        assert!(frontends.keys().all(|key| key.port.get() == WEB.port));
        // Counters and rotation continue.
        let total: u64 = (1..=5)
            .map(|number| node.traffic(backend_key(WEB, number)).packets_in)
            .sum();
        assert_eq!(total, 15);
        assert_eq!(named(&node.xdp(&syn(50_005)).frame), replicas[0]);
    });
}

#[test]
fn programs_stay_attached_while_there_is_no_agent() {
    on_a_node(|node| {
        two_services(node);
        let pins = node.pins().join(format!("v{VERSION}/links"));
        node.crash();
        let links: Vec<_> = std::fs::read_dir(&pins)
            .expect("the folder of links")
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("ASCII"))
            .collect();
        let xdp = format!("mesh_xdp_native_{}", node.uplink);
        assert!(links.contains(&xdp), "{xdp} is not among {links:?}");
        for (program, direction, interface, name) in [
            ("mesh_uplink", "ingress", node.uplink, "up0"),
            ("mesh_container", "ingress", node.container, "box0"),
            ("mesh_local", "egress", node.mesh0, "mesh0"),
        ] {
            let pin = format!("{program}_{direction}_{interface}");
            // A kernel without tcx has a filter instead, which stays without a pin.
            let filters = filters(name, direction);
            assert!(
                links.contains(&pin) || filters.contains(program),
                "{pin} is not among {links:?}, and the filters of {name} are `{filters}`"
            );
        }
    });
}

/// The classic tc filters of an interface, as `tc` lists them.
fn filters(interface: &str, direction: &str) -> String {
    let output = Command::new("tc")
        .args(["filter", "show", "dev", interface, direction])
        .output()
        .expect("tc, of iproute2");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_flow_of_a_removed_backend_gets_another_with_its_next_syn() {
    on_a_node(|node| {
        two_services(node);
        let first = named(&node.xdp(&syn(50_000)).frame);
        let mut state = node.without_services();
        let others: Vec<_> = (1..=5)
            .filter(|number| *number != first)
            .map(|number| (number, Location::Remote(PEER)))
            .collect();
        serve(&mut state, WEB, &others);
        node.apply(&state);
        let output = node.xdp(&syn(50_000));
        assert_eq!(output.verdict, XDP_TX);
        let second = named(&output.frame);
        assert_ne!(second, first);
        assert_eq!(named(&node.xdp(&data(50_000)).frame), second);
        let key: BackendKey = backend_key(WEB, second);
        assert_eq!(node.traffic(key).connections_total, 1);
    });
}

#[test]
fn xdp_is_off_while_an_uplink_cannot_send_what_it_forwards() {
    on_a_node(|node| {
        two_services(node);
        let modes = |node: &mut Node| -> Vec<(String, Mode, String)> {
            let modes = node.datapath().modes().into_iter();
            modes
                .map(|mode| (mode.interface, mode.mode, mode.reason))
                .collect()
        };
        let alone = modes(node);
        assert_eq!((alone.len(), alone[0].1), (1, Mode::XdpNative), "{alone:?}");

        ip("link add lan0 type bridge");
        let before = node.state().clone();
        let mut state = before.clone();
        let lan0 = HostInterface {
            index: if_nametoindex("lan0").unwrap(),
            mac: Some(MacAddress::default()),
            mtu: 1500,
            has_vlans: false,
        };
        state.uplinks.insert("lan0".to_owned(), lan0);
        node.apply(&state);
        let both = modes(node);
        assert!(both.iter().all(|(_, mode, _)| *mode == Mode::Tc), "{both:?}");
        assert!(both[1].2.contains("lan0 has no native XDP"), "{both:?}");
        // The kernel detaches a program some time after its last reference has gone.
        let begin = Instant::now();
        while ip("link show dev up0").contains("prog/xdp") {
            assert!(begin.elapsed() < Duration::from_secs(10), "XDP is still there");
            thread::sleep(Duration::from_millis(5));
        }

        node.apply(&before);
        assert_eq!(modes(node), alone);
        assert!(ip("link show dev up0").contains("prog/xdp"));
    });
}

#[test]
fn a_renamed_uplink_keeps_its_programs() {
    on_a_node(|node| {
        two_services(node);
        ip("link set up0 down");
        ip("link set up0 name card0");
        let mut state = node.state().clone();
        let uplink = state.uplinks.remove("up0").unwrap();
        state.uplinks.insert("card0".to_owned(), uplink);
        node.apply(&state);
        let modes = node.datapath().modes();
        assert_eq!((modes.len(), modes[0].interface.as_str()), (1, "card0"));
        assert!(ip("link show dev card0").contains("prog/xdp"));
        let links = node.pins().join(format!("v{VERSION}/links"));
        let tc = links.join(format!("mesh_uplink_ingress_{}", node.uplink));
        let filters = filters("card0", "ingress");
        assert!(tc.exists() || filters.contains("mesh_uplink"), "{filters}");
    });
}

#[test]
fn what_something_else_detaches_is_attached_again() {
    on_a_node(|node| {
        two_services(node);
        let links = node.pins().join(format!("v{VERSION}/links"));
        let xdp = links.join(format!("mesh_xdp_native_{}", node.uplink));
        let tcx = links.join(format!("mesh_uplink_ingress_{}", node.uplink));
        let index = node.uplink;
        let interface = move |pin: &Path| bpf::pinned_link_interface(pin).unwrap();
        assert_eq!(interface(&xdp), index);
        let detach = |pin: &Path| {
            let pin = pin.to_str().unwrap();
            command::output("bpftool", &["link", "detach", "pinned", pin], "").unwrap();
        };
        detach(&xdp);
        assert_eq!(interface(&xdp), 0);
        if tcx.exists() {
            detach(&tcx);
        } else {
            command::output("tc", &["qdisc", "del", "dev", "up0", "clsact"], "").unwrap();
        }
        assert!(!ip("link show dev up0").contains("prog/xdp"));
        for _ in 0..3 {
            node.datapath().maintain().unwrap();
        }
        assert!(ip("link show dev up0").contains("prog/xdp"));
        assert_eq!(interface(&xdp), index);
        if tcx.exists() {
            assert_eq!(interface(&tcx), index);
        } else {
            assert!(filters("up0", "ingress").contains("mesh_uplink"));
        }
    });
}

fn ip(arguments: &str) -> String {
    let arguments: Vec<_> = arguments.split_whitespace().collect();
    command::output("ip", &arguments, "").unwrap()
}

#[test]
fn detaching_leaves_nothing_pinned() {
    on_a_node(|node| {
        two_services(node);
        let pins = node.pins().to_owned();
        assert!(pins.exists());
        node.datapath().detach().expect("it can be detached");
        assert!(!Path::new(&pins).exists());
    });
}
