//! Nanoseconds per packet of each path of the eBPF programs, by `BPF_PROG_TEST_RUN`. Run it by
//! `cargo xtask bench packet`.
//!
//! A test run does not restore the packet between repetitions, so every program is measured behind a
//! wrapper that does (mesh-ebpf, `bench`). The wrapper around an empty program is measured as well, in the
//! same run, and subtracted; what an empty program takes by itself is left in, as in every row. Where the
//! program changes the packet's size, so does the wrapper: half of what a change and its reverse take is
//! subtracted for that.

#[path = "../tests/programs/frames.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
mod frames;
#[path = "../tests/programs/space.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
mod space;

use std::{
    env, fs,
    net::{Ipv4Addr, SocketAddrV4},
};

use anyhow::{Context, Result, ensure};
use aya::{
    maps::{Array, MapData, ProgramArray},
    programs::{ProgramFd, SchedClassifier, Xdp},
};
use clap::Parser;
use mesh_agent::{datapath::Traffic, model::Location};
use serde::Serialize;

use crate::{
    frames::{ACK, Packet, REPLY, SYN},
    space::{
        NODE, PEER, Space, TC_REDIRECT, WEB, XDP_PASS, XDP_TX, arriving, backend_key, from_peer, frontend,
        in_space_with, out_of_container,
    },
};

/// Flows of the rows with many.
const MANY: u32 = 65_536;
/// Entries of the flow table: the agent's default.
const FLOW_CAPACITY: u32 = 262_144;
/// Cuts the wrapper's counter to flow numbers that do not come again.
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
    /// Given by `cargo bench`; means nothing here.
    #[arg(long, hide = true)]
    bench: bool,
}

/// One line of the result.
#[derive(Serialize)]
struct Row {
    name: &'static str,
    /// Flows that the packets belong to; 0 where each packet is a new one's.
    flows: u32,
    /// Nanoseconds per packet: the median.
    ns: f64,
    /// Nanoseconds that the dearest single step of the path takes alone.
    floor_ns: f64,
    /// Between the fastest and the slowest run, nanoseconds.
    spread: f64,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let path = env::var_os("MESH_BENCH_OBJECT")
        .context("MESH_BENCH_OBJECT is not set: run this by `cargo xtask bench packet`")?;
    let object = fs::read(&path).with_context(|| format!("could not read {}", path.display()))?;
    let mut samples = Vec::new();
    for location in [Place::Remote, Place::Local] {
        in_space_with(Some(&object), FLOW_CAPACITY, |space| {
            let mut bench = Bench::new(space, location);
            for _ in 0..arguments.runs {
                samples.append(&mut bench.run(location));
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

/// Where the backend is.
#[derive(Clone, Copy)]
enum Place {
    Remote,
    Local,
}

/// One measurement of one run.
struct Sample {
    name: &'static str,
    flows: u32,
    ns: f64,
}

/// What a measured path must have done with its packets.
enum Claim {
    /// Counted each as from a client.
    In,
    /// Counted each as to a client.
    Out,
    /// Opened a flow for each.
    New,
    /// Left the counters alone.
    Nothing,
}

struct Bench<'a> {
    space: &'a mut Space,
    settings: Array<MapData, [u32; 2]>,
    frame: Array<MapData, [u8; 112]>,
    xdp: ProgramArray<MapData>,
    tc: ProgramArray<MapData>,
}

impl<'a> Bench<'a> {
    fn new(space: &'a mut Space, place: Place) -> Self {
        let cpu = nix::sched::sched_getcpu().expect("Linux tells the CPU");
        let mut cpus = nix::sched::CpuSet::new();
        cpus.set(cpu).expect("a CPU there is");
        // The wrapper's counter is the CPU's own.
        nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &cpus).expect("this CPU may be used");
        let state = match place {
            Place::Remote => space.serving(Location::Remote(PEER)),
            Place::Local => space.serving(space.local()),
        };
        space.apply(&state);
        let mut take = |name: &str| {
            let map = space.datapath().programs().take_map(name);
            map.unwrap_or_else(|| panic!("the object has no map {name}: was it built for this?"))
        };
        Self {
            settings: take("BENCH_SETTINGS").try_into().expect("an array"),
            frame: take("BENCH_FRAME").try_into().expect("an array"),
            xdp: take("BENCH_XDP").try_into().expect("a program array"),
            tc: take("BENCH_TC").try_into().expect("a program array"),
            space,
        }
    }

    fn run(&mut self, place: Place) -> Vec<Sample> {
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

        let (_, empty) = self.space.run_xdp("bench_empty", &ack, REPEAT);
        let empty = empty as f64;
        let mut samples = Vec::new();
        match place {
            Place::Remote => {
                // Every flow there is from now on.
                self.xdp("bench_plain", "mesh_xdp", &syn, MANY - 1, MANY, XDP_TX);
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
                        "floor: LRU look-up",
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
                // Of other clients, so that none is among the established.
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
            }
            Place::Local => {
                self.tc("mesh_uplink", &syn, MANY - 1, MANY, TC_REDIRECT);
                let (_, tc_empty) = self
                    .space
                    .run_tc("bench_tc_empty", self.space.uplink, &ack, 0, REPEAT);
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

    /// Measures, and checks that the path's counters have moved by exactly the number of packets.
    fn claim(&mut self, claim: Claim, measure: impl FnOnce(&mut Self) -> f64) -> f64 {
        let before = self.space.traffic(backend_key(WEB, 5));
        let ns = measure(self);
        let after = self.space.traffic(backend_key(WEB, 5));
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
            Claim::Nothing => {}
        }
        assert_eq!(after, expected, "the path has not done what it was measured for");
        assert!(self.space.drops().is_empty(), "packets were dropped");
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
        let target: &Xdp = self
            .space
            .datapath()
            .programs()
            .program(program)
            .expect("the object has it")
            .try_into()
            .expect("an XDP program");
        let target = descriptor(target.fd().expect("it is loaded"));
        self.xdp.set(0, &target, 0).expect("the wrapper can jump there");
        self.prepare(frame, mask);
        let (output, ns) = self.space.run_xdp(wrapper, frame, repeat);
        assert_eq!(
            output.verdict, verdict,
            "the verdict of {program} behind {wrapper}"
        );
        ns as f64
    }

    /// Measures a tc program behind its wrapper.
    fn tc(&mut self, program: &str, frame: &[u8], mask: u32, repeat: u32, verdict: u32) -> f64 {
        let target: &SchedClassifier = self
            .space
            .datapath()
            .programs()
            .program(program)
            .expect("the object has it")
            .try_into()
            .expect("a tc program");
        let target = descriptor(target.fd().expect("it is loaded"));
        self.tc.set(0, &target, 0).expect("the wrapper can jump there");
        self.prepare(frame, mask);
        let uplink = self.space.uplink;
        let (output, ns) = self.space.run_tc("bench_tc", uplink, frame, 0, repeat);
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

fn descriptor(fd: &ProgramFd) -> ProgramFd {
    fd.try_clone().expect("one more file descriptor")
}

/// Medians and spreads, in the order of first appearance.
fn rows(samples: &[Sample]) -> Result<Vec<Row>> {
    let mut rows: Vec<Row> = Vec::new();
    for sample in samples {
        if rows
            .iter()
            .any(|row| row.name == sample.name && row.flows == sample.flows)
        {
            continue;
        }
        let values = values_of(samples, sample.name, sample.flows);
        let floor = match sample.name {
            "established remote"
            | "established local (tc)"
            | "established local (XDP before tc)"
            | "decapsulation" => values_of(samples, "floor: LRU look-up", sample.flows),
            "not the mesh's" => values_of(samples, "floor: parse", 1),
            "new flow" => values_of(samples, "floor: LRU insert", 0),
            _ => values_of(samples, "floor: empty program", 1),
        };
        rows.push(Row {
            name: sample.name,
            flows: sample.flows,
            ns: median(&values),
            floor_ns: median(&floor),
            spread: values.last().copied().unwrap_or_default() - values.first().copied().unwrap_or_default(),
        });
    }
    ensure!(!rows.is_empty(), "nothing was measured");
    Ok(rows)
}

/// The measurements of a row, smallest first.
fn values_of(samples: &[Sample], name: &str, flows: u32) -> Vec<f64> {
    let mut values: Vec<f64> = samples
        .iter()
        .filter(|sample| sample.name == name && sample.flows == flows)
        .map(|sample| sample.ns)
        .collect();
    values.sort_by(f64::total_cmp);
    values
}

fn median(sorted: &[f64]) -> f64 {
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

fn print_table(rows: &[Row]) {
    println!(
        "{:<36} {:>8} {:>9} {:>9} {:>9}",
        "name", "flows", "ns", "floor_ns", "spread"
    );
    for row in rows {
        let flows = if row.flows == 0 {
            "each new".to_owned()
        } else {
            row.flows.to_string()
        };
        println!(
            "{:<36} {:>8} {:>9.1} {:>9.1} {:>9.1}",
            row.name, flows, row.ns, row.floor_ns, row.spread
        );
    }
}
