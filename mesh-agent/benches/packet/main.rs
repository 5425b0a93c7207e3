//! Nanoseconds per packet of each path of the eBPF programs, by `BPF_PROG_TEST_RUN`. Run it by
//! `cargo xtask bench packet`.
//!
//! A test run does not restore the packet between repetitions, so every program is measured behind a wrapper
//! that does (mesh-ebpf, `bench`). The wrapper around an empty program is measured in the same run and
//! subtracted; the time of an empty program by itself stays in every row. Where a program changes the
//! packet's size, the wrapper has to undo that: half the time of a change and its reverse is subtracted.

mod rows;

use std::{
    env, fs,
    net::{Ipv4Addr, Ipv6Addr, SocketAddrV4},
    time::Duration,
};

use anyhow::{Context, Result};
use aya::{
    maps::{Array, HashMap, Map, MapData, ProgramArray},
    programs::{ProgramFd, SchedClassifier, Xdp},
};
use clap::Parser;
use etherparse::{PacketBuilder, TcpHeader};
use mesh_agent::{
    datapath::{Datapath as _, Traffic},
    model::{Limits, Location},
};
use mesh_agent_testing::{
    cluster::{
        NODE, OWN_IPV6, PEER, WEB, arriving, backend_key, from_peer, frontend, out_of_container, serve_ipv6,
    },
    frames::{ACK, Packet, REPLY, SYN},
    node::{Node, on_a_node_with},
    run::{TC_REDIRECT, TC_UNSPEC, XDP_PASS, XDP_TX},
};
use mesh_ebpf::abi::{FlowKey, FlowRecord, MAX_NEW_CLIENTS, Opening, VERSION, is_mapped_client};

use crate::rows::{Sample, print_table, rows};

/// Flows of the rows with many.
const MANY: u32 = 65_536;
/// Entries of the flow table: the agent's default.
const FLOW_CAPACITY: u32 = 262_144;
/// The inverse, modulo [`MANY`], of the factor by which the wrapper makes a flow's number of its counter.
const WRAPPER_INVERSE: u32 = 0x2f51;
/// Parts in which they are opened, each less than the table of half-open flows holds.
const PARTS: u32 = 8;
/// The row of how many open flows survive the row of new ones.
const SURVIVORS: &str = "survivors of the new flows, percent";
/// Past it at once: flows get no entries.
const FLOODED: Limits = Limits {
    max_new: None,
    max_new_per_source: None,
    flood: Some(1),
};
/// A mask of the wrapper's counter under which no flow number repeats.
const NEVER_AGAIN: u32 = 0x7fff_ffff;
/// Repetitions of a measurement.
const REPEAT: u32 = 400_000;
/// The clients' first address; the wrapper changes its last two bytes, and the port.
const CLIENT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(100, 64, 0, 0), 1024);
/// The same for the rows of new flows.
const NEW_CLIENT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(100, 65, 0, 0), 1024);

/// Measures the packet path.
#[derive(Parser)]
struct Arguments {
    /// `table` or `json`.
    #[arg(long, default_value = "table", value_parser = ["table", "json"])]
    format: String,
    /// Runs that the medians are over.
    #[arg(long, default_value_t = 7)]
    runs: u32,
    /// Passed by `cargo bench`; ignored.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let path = env::var_os("MESH_BENCH_OBJECT")
        .context("MESH_BENCH_OBJECT is not set: run this by `cargo xtask bench packet`")?;
    let object = fs::read(&path).with_context(|| format!("could not read {}", path.display()))?;
    let mut samples = Vec::new();
    for backend in [Backend::Remote, Backend::Local] {
        on_a_node_with(Some(&object), FLOW_CAPACITY, |node| {
            let mut bench = Bench::new(node, backend);
            for _ in 0..arguments.runs {
                samples.append(&mut bench.run(backend));
            }
        });
    }
    let rows = rows(&samples)?;
    if arguments.format == "json" {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        print_table(&rows);
    }
    Ok(())
}

/// The node that the backend is on.
#[derive(Clone, Copy)]
enum Backend {
    Remote,
    Local,
}

/// What a measured path must do with its packets.
enum Claim {
    /// Count each as from a client.
    In,
    /// Count each as to a client.
    Out,
    /// Open a flow for each.
    New,
    /// The same, without entries but for the first of a second.
    Untracked,
    /// Leave the counters alone.
    Nothing,
}

struct Bench<'a> {
    node: &'a mut Node,
    settings: Array<MapData, [u32; 2]>,
    frame: Array<MapData, [u8; 112]>,
    xdp: ProgramArray<MapData>,
    tc: ProgramArray<MapData>,
}

impl<'a> Bench<'a> {
    fn new(node: &'a mut Node, backend: Backend) -> Self {
        let cpu = nix::sched::sched_getcpu().expect("Linux tells the CPU");
        let mut cpus = nix::sched::CpuSet::new();
        cpus.set(cpu).expect("a CPU there is");
        // The wrapper's counter is per CPU.
        nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &cpus).expect("this CPU may be used");
        let state = match backend {
            Backend::Remote => node.serving(Location::Remote(PEER)),
            Backend::Local => {
                let mut state = node.serving(node.local());
                serve_ipv6(&mut state, WEB);
                state
            }
        };
        node.apply(&Node::without_flood_limit(&state));
        let mut take = |name: &str| {
            let map = node.datapath().object().take_map(name);
            map.unwrap_or_else(|| panic!("the object has no map {name}: was it built for this?"))
        };
        Self {
            settings: take("BENCH_SETTINGS").try_into().expect("an array"),
            frame: take("BENCH_FRAME").try_into().expect("an array"),
            xdp: take("BENCH_XDP").try_into().expect("a program array"),
            tc: take("BENCH_TC").try_into().expect("a program array"),
            node,
        }
    }

    fn run(&mut self, backend: Backend) -> Vec<Sample> {
        let ack = Packet::tcp(arriving(), CLIENT, frontend(WEB), ACK)
            .with_payload(60)
            .frame();
        let syn = Packet::tcp(arriving(), CLIENT, frontend(WEB), SYN)
            .with_payload(60)
            .frame();
        let foreign = Packet::tcp(arriving(), CLIENT, SocketAddrV4::new(NODE, 22), ACK)
            .with_payload(60)
            .frame();
        let answer = Packet::tcp(out_of_container(), frontend(WEB), CLIENT, ACK).with_payload(60);
        let encapsulated = from_peer(WEB, REPLY).around(&answer);

        let (_, empty) = self.node.run_xdp("bench_empty", &ack, REPEAT);
        let empty = empty as f64;
        let mut samples = Vec::new();
        match backend {
            Backend::Remote => {
                for _ in 0..PARTS {
                    self.xdp("bench_plain", "mesh_xdp", &syn, MANY - 1, MANY / PARTS, XDP_TX);
                    self.open_asked();
                }
                samples.push(Sample {
                    name: "floor: empty program",
                    flows: 1,
                    ns: empty,
                });
                for flows in [1, MANY] {
                    let mut add = |name, ns: f64| {
                        samples.push(Sample {
                            name,
                            flows,
                            ns: ns + empty,
                        });
                    };
                    let mask = flows - 1;
                    let base = self.xdp("bench_plain", "bench_empty", &ack, mask, REPEAT, XDP_PASS);
                    let resize =
                        (self.xdp("bench_plain", "bench_resize", &ack, mask, REPEAT, XDP_PASS) - base) / 2.0;
                    let base_inner = self.xdp(
                        "bench_inner",
                        "bench_empty",
                        &encapsulated,
                        mask,
                        REPEAT,
                        XDP_PASS,
                    );
                    if flows == 1 {
                        add(
                            "floor: parse",
                            self.xdp("bench_plain", "bench_parse", &ack, mask, REPEAT, XDP_PASS) - base,
                        );
                    }
                    add(
                        "floor: hash look-up",
                        self.xdp("bench_plain", "bench_look_up", &ack, mask, REPEAT, XDP_PASS) - base,
                    );
                    let ns = self.claim(Claim::In, |bench| {
                        bench.xdp("bench_plain", "mesh_xdp", &ack, mask, REPEAT, XDP_TX)
                    });
                    add("established remote", ns - base - resize);
                    let ns = self.claim(Claim::Out, |bench| {
                        bench.xdp("bench_inner", "mesh_xdp", &encapsulated, mask, REPEAT, XDP_TX)
                    });
                    add("decapsulation", ns - base_inner - resize);
                    let ns = self.claim(Claim::Nothing, |bench| {
                        bench.xdp("bench_plain", "mesh_xdp", &foreign, mask, REPEAT, XDP_PASS)
                    });
                    add("not the mesh's", ns - base);
                }
                // From other clients, so that none is established.
                let syn = Packet::tcp(arriving(), NEW_CLIENT, frontend(WEB), SYN)
                    .with_payload(60)
                    .frame();
                let base = self.xdp("bench_plain", "bench_empty", &syn, NEVER_AGAIN, REPEAT, XDP_PASS);
                let resize = (self.xdp("bench_plain", "bench_resize", &syn, NEVER_AGAIN, REPEAT, XDP_PASS)
                    - base)
                    / 2.0;
                let insert = self.xdp("bench_plain", "bench_insert", &syn, NEVER_AGAIN, REPEAT, XDP_PASS);
                samples.push(Sample {
                    name: "floor: LRU insert",
                    flows: 0,
                    ns: insert - base + empty,
                });
                let ns = self.claim(Claim::New, |bench| {
                    bench.xdp("bench_plain", "mesh_xdp", &syn, NEVER_AGAIN, REPEAT, XDP_TX)
                });
                samples.push(Sample {
                    name: "new flow",
                    flows: 0,
                    ns: ns - base - resize + empty,
                });
                samples.push(Sample {
                    name: SURVIVORS,
                    flows: MANY,
                    ns: f64::from(self.survivors()) * 100.0 / f64::from(MANY),
                });
                // From now on someone watches, for longer than the row takes.
                self.node.datapath().observe(None).expect("reports can be made");
                let ns = self.claim(Claim::New, |bench| {
                    bench.xdp("bench_plain", "mesh_xdp", &syn, NEVER_AGAIN, REPEAT, XDP_TX)
                });
                samples.push(Sample {
                    name: "new flow, while `monitor` watches",
                    flows: 0,
                    ns: ns - base - resize + empty,
                });
                let state = self.node.state().clone();
                self.node.apply(&Node::limited(&state, FLOODED));
                // An answer: otherwise each new flow looks for another backend.
                self.node.connect(WEB, CLIENT);
                let ns = self.claim(Claim::Untracked, |bench| {
                    bench.xdp("bench_plain", "mesh_xdp", &syn, NEVER_AGAIN, REPEAT, XDP_TX)
                });
                self.node.apply(&state);
                samples.push(Sample {
                    name: "new flow past the flood limit",
                    flows: 0,
                    ns: ns - base - resize + empty,
                });
            }
            Backend::Local => {
                for _ in 0..PARTS {
                    self.tc("mesh_uplink", &syn, MANY - 1, MANY / PARTS, TC_REDIRECT);
                    self.open_asked();
                }
                let (_, tc_empty) = self
                    .node
                    .run_tc("bench_tc_empty", self.node.uplink, &ack, 0, REPEAT);
                // As a container answers and asks, with the client where the wrapper changes it.
                let own = Packet::tcp(out_of_container(), CLIENT, SocketAddrV4::new(NODE, 22), ACK)
                    .with_payload(60)
                    .frame();
                let base = self.tc("bench_tc_empty", &own, MANY - 1, REPEAT, 0);
                let ns = self.claim(Claim::Nothing, |bench| {
                    bench.tc("mesh_container", &own, MANY - 1, REPEAT, TC_UNSPEC)
                });
                samples.push(Sample {
                    name: "not the mesh's (container)",
                    flows: MANY,
                    ns: ns - base + tc_empty as f64,
                });
                self.open_ipv6();
                for flows in [1, MANY] {
                    let (mask, ack) = (flows - 1, from_ipv6_client(ACK));
                    let base = self.ipv6("bench_tc_empty", &ack, mask, REPEAT, 0);
                    let change = (self.ipv6("bench_change_version", &ack, mask, REPEAT, 0) - base) / 2.0;
                    let ns = self.claim(Claim::In, |bench| {
                        bench.ipv6("mesh_uplink", &ack, mask, REPEAT, TC_REDIRECT)
                    });
                    samples.push(Sample {
                        name: "established local, IPv6 (tc)",
                        flows,
                        ns: ns - base - change + tc_empty as f64,
                    });
                }
                for flows in [1, MANY] {
                    let mask = flows - 1;
                    let base = self.tc("bench_tc_empty", &ack, mask, REPEAT, 0);
                    let ns = self.claim(Claim::In, |bench| {
                        bench.tc("mesh_uplink", &ack, mask, REPEAT, TC_REDIRECT)
                    });
                    samples.push(Sample {
                        name: "established local (tc)",
                        flows,
                        ns: ns - base + tc_empty as f64,
                    });
                    let base = self.xdp("bench_plain", "bench_empty", &ack, mask, REPEAT, XDP_PASS);
                    let ns = self.claim(Claim::Nothing, |bench| {
                        bench.xdp("bench_plain", "mesh_xdp", &ack, mask, REPEAT, XDP_PASS)
                    });
                    samples.push(Sample {
                        name: "established local (XDP before tc)",
                        flows,
                        ns: ns - base + empty,
                    });
                }
            }
        }
        samples
    }

    /// How many of the open flows are still known.
    fn survivors(&self) -> u32 {
        let folder = self.node.pins().join(format!("v{VERSION}"));
        let data = MapData::from_pin(folder.join("FLOWS")).expect("the map is pinned");
        let map: HashMap<MapData, FlowKey, FlowRecord> = Map::from_map_data(data)
            .and_then(TryInto::try_into)
            .expect("a hash map of flows");
        map.keys().filter(Result::is_ok).count() as u32
    }

    /// Makes the half-open flows open ones, as if they had been answered.
    fn open_asked(&mut self) {
        let folder = self.node.pins().join(format!("v{VERSION}"));
        let map = |name: &str| -> HashMap<MapData, FlowKey, FlowRecord> {
            let data = MapData::from_pin(folder.join(name)).expect("the map is pinned");
            let map = Map::from_map_data(data).expect("a map of a known type");
            map.try_into().expect("a hash map of flows")
        };
        let (mut half_open, mut open) = (map("HALF_OPEN"), map("FLOWS"));
        let mut asked: Vec<_> = half_open.iter().map(|entry| entry.expect("an entry")).collect();
        // In the order in which the wrapper comes by them. Otherwise neighbours in time are none in memory,
        // and a look-up takes twice as long: as in a table that has been filled and emptied several times.
        asked.sort_by_key(|(key, _)| key.source.get().wrapping_mul(WRAPPER_INVERSE) & (MANY - 1));
        for (key, mut record) in asked {
            // Not those that the row of new flows has left.
            let client = record.flow.client.address;
            let is_many = Ipv4Addr::from(client).octets()[..2] == CLIENT.ip().octets()[..2];
            if is_many || is_mapped_client(client) {
                record.flow.opening = Opening::OPEN;
                open.insert(key, record, 0).expect("room");
            }
            half_open.remove(&key).expect("it is there");
        }
    }

    /// Measures, and checks that the path's counters have moved by exactly the number of packets.
    fn claim(&mut self, claim: Claim, measure: impl FnOnce(&mut Self) -> f64) -> f64 {
        let before = self.node.traffic(backend_key(WEB, 5));
        let ns = measure(self);
        let after = self.node.traffic(backend_key(WEB, 5));
        let packets = u64::from(REPEAT);
        let mut expected = Traffic {
            bytes_in: after.bytes_in,
            bytes_out: after.bytes_out,
            ..before
        };
        match claim {
            Claim::In => expected.packets_in += packets,
            Claim::Out => expected.packets_out += packets,
            Claim::New => {
                expected.packets_in += packets;
                expected.connections_total += packets;
            }
            Claim::Untracked => {
                let tracked = after.connections_total - before.connections_total;
                assert!(tracked < 5, "{tracked} flows have got entries");
                expected.packets_in += packets;
                expected.connections_total += tracked;
            }
            Claim::Nothing => {}
        }
        assert_eq!(after, expected, "the measured path did something else");
        assert!(self.node.drops().is_empty(), "packets were dropped");
        ns
    }

    /// Measures an XDP program behind a wrapper.
    fn xdp(
        &mut self,
        wrapper: &str,
        program: &str,
        frame: &[u8],
        mask: u32,
        repeat: u32,
        verdict: u32,
    ) -> f64 {
        let target: &mut Xdp = self
            .node
            .datapath()
            .program(program)
            .expect("the program can be loaded")
            .try_into()
            .expect("an XDP program");
        let target = descriptor(target.fd().expect("it is loaded"));
        self.xdp.set(0, &target, 0).expect("the wrapper can jump there");
        self.prepare(frame, mask);
        let (output, ns) = self.node.run_xdp(wrapper, frame, repeat);
        assert_eq!(
            output.verdict, verdict,
            "the verdict of {program} behind {wrapper}"
        );
        ns as f64
    }

    /// Opens the flows of IPv6 clients, no more new ones in a second than the node takes.
    fn open_ipv6(&mut self) {
        let known = |bench: &mut Self| bench.node.datapath().mapped_clients(None);
        let is_new = known(self).expect("the clients can be read").len() < MANY as usize;
        for _ in 0..PARTS {
            let syn = from_ipv6_client(SYN);
            self.ipv6("mesh_uplink", &syn, MANY - 1, MANY / PARTS, TC_REDIRECT);
            self.open_asked();
            if is_new {
                let part = u64::from(MANY / PARTS) * 1500 / MAX_NEW_CLIENTS;
                std::thread::sleep(Duration::from_millis(part));
            }
        }
    }

    /// Measures a tc program behind its wrapper.
    fn tc(&mut self, program: &str, frame: &[u8], mask: u32, repeat: u32, verdict: u32) -> f64 {
        self.tc_behind("bench_tc", program, frame, mask, repeat, verdict)
    }

    /// The same with packets of IPv6 clients.
    fn ipv6(&mut self, program: &str, frame: &[u8], mask: u32, repeat: u32, verdict: u32) -> f64 {
        self.tc_behind("bench_ipv6", program, frame, mask, repeat, verdict)
    }

    fn tc_behind(
        &mut self,
        wrapper: &str,
        program: &str,
        frame: &[u8],
        mask: u32,
        repeat: u32,
        verdict: u32,
    ) -> f64 {
        let target: &mut SchedClassifier = self
            .node
            .datapath()
            .program(program)
            .expect("the program can be loaded")
            .try_into()
            .expect("a tc program");
        let target = descriptor(target.fd().expect("it is loaded"));
        self.tc.set(0, &target, 0).expect("the wrapper can jump there");
        self.prepare(frame, mask);
        let uplink = self.node.uplink;
        let (output, ns) = self.node.run_tc(wrapper, uplink, frame, 0, repeat);
        assert_eq!(output.verdict, verdict, "the verdict of {program}");
        ns as f64
    }

    fn prepare(&mut self, frame: &[u8], mask: u32) {
        let headers: [u8; 112] = frame[..112].try_into().expect("112 bytes");
        self.frame.set(0, headers, 0).expect("the map can be written");
        self.settings
            .set(0, [frame.len() as u32, mask], 0)
            .expect("the map can be written");
    }
}

/// A packet of the first IPv6 client, of which the wrapper changes the last two bytes of the address, and the
/// port.
fn from_ipv6_client(flags: u8) -> Vec<u8> {
    let client = Ipv6Addr::new(0x2001, 0xdb8, 0x64, 0x40, 0, 0, 0, 0);
    let header = TcpHeader {
        syn: flags == SYN,
        ack: flags == ACK,
        ..TcpHeader::new(CLIENT.port(), WEB.port, 1, 4096)
    };
    let mut frame = Vec::new();
    let macs = arriving();
    PacketBuilder::ethernet2(macs.source, macs.destination)
        .ipv6(client.octets(), OWN_IPV6.octets(), 64)
        .tcp_header(header)
        .write(&mut frame, &[0; 60])
        .expect("it fits");
    frame
}

fn descriptor(fd: &ProgramFd) -> ProgramFd {
    fd.try_clone().expect("one more file descriptor")
}
