//! Reads what the programs report of single packets, and has them report only while someone asks.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant, SystemTime},
};

use aya::{
    Ebpf,
    maps::{Array, MapData, PerCpuArray, PerCpuValues, RingBuf},
};
use mesh_ebpf::{
    abi::{Config, DropReason, FlowKey, Observation as Raw, Observed, Reported},
    bytes::Be32,
    encapsulation::outer_length,
    frame::ReadFrame as _,
    headers::{
        ETHERNET_LENGTH, ETHERTYPE_IPV6, Ethernet, IPV4_LENGTH, IPV6_L4_OFFSET, Ipv4, PROTOCOL_TCP,
        PROTOCOL_UDP, Ports, Tcp, UDP_LENGTH,
    },
    ipv6::Header,
    parse::{Unparsed, parse},
    tunnel,
};

use super::{
    super::{
        DatapathError,
        monitor::{EventKind, Observation, Observations, PacketTuple, Recent, WATCH},
    },
    clock::kernel_clock,
    failed,
    flows::ended::{AllEnded, Ended},
    frame::StoredFrame,
    mapped,
    maps::{Maps, take},
};
use crate::{host_facts::interface_name, model::BackendKey};

/// How many reports the processors make in a second, about, all together.
const REPORTS_PER_SECOND: u64 = 2_048;
/// What each of them may make at least.
const LEAST: u64 = 32;

/// The programs' reports.
pub(super) struct Monitor {
    watched: Array<MapData, u64>,
    reported: PerCpuArray<MapData, Reported>,
    ring: RingBuf<MapData>,
    recent: Recent,
    /// When someone last asked.
    asked: Option<Instant>,
    cpus: usize,
}

impl Monitor {
    /// Takes its maps out of the loaded object. No one asks yet, whatever an earlier agent's did.
    pub(super) fn take(programs: &mut Ebpf, cpus: usize) -> Result<Self, DatapathError> {
        let mut monitor = Self {
            watched: take(programs, "WATCHED")?,
            reported: take(programs, "REPORTED")?,
            ring: take(programs, "OBSERVATIONS")?,
            recent: Recent::default(),
            asked: None,
            cpus,
        };
        monitor.set_limit(0)?;
        Ok(monitor)
    }

    /// The reports from a number on. The programs make them for a few seconds from now.
    pub(super) fn observe(
        &mut self,
        since: Option<u64>,
        maps: &Maps,
        config: &Config,
        backends: &BTreeMap<u32, (u32, BackendKey)>,
    ) -> Result<Observations, DatapathError> {
        if self.asked.is_none() {
            self.begin()?;
        }
        self.asked = Some(Instant::now());
        let (now, clock) = (SystemTime::now(), kernel_clock());
        while let Some(item) = self.ring.next() {
            let Some(raw) = read(&item) else {
                continue;
            };
            self.recent.skip(raw.skipped);
            let age = Duration::from_nanos(clock.saturating_sub(raw.clock));
            if let Some(observation) = observation(&raw, now - age, maps, config, backends) {
                self.recent.push(observation);
            }
        }
        Ok(self.recent.since(since))
    }

    /// Adds the flows that have ended without a packet.
    pub(super) fn note_ended(
        &mut self,
        ended: &AllEnded,
        maps: &Maps,
        backends: &BTreeMap<u32, (u32, BackendKey)>,
    ) {
        let at = SystemTime::now();
        for flow in &ended.list {
            self.recent.push(without_packet(flow, at, maps, backends));
        }
        self.recent.skip(ended.skipped);
    }

    /// Whether someone asks.
    pub(super) fn is_asked(&self) -> bool {
        self.asked.is_some()
    }

    /// Ends the reports when no one asks any more.
    pub(super) fn maintain(&mut self) -> Result<(), DatapathError> {
        if self.asked.is_some_and(|asked| asked.elapsed() > WATCH) {
            self.set_limit(0)?;
            self.asked = None;
        }
        Ok(())
    }

    fn begin(&mut self) -> Result<(), DatapathError> {
        // What no one has read is old.
        while self.ring.next().is_some() {}
        let none = vec![Reported::default(); self.cpus];
        let none = PerCpuValues::try_from(none).map_err(|error| failed("write REPORTED", error))?;
        self.reported
            .set(0, none, 0)
            .map_err(|error| failed("write REPORTED", error))?;
        self.set_limit((REPORTS_PER_SECOND / self.cpus as u64).max(LEAST))
    }

    fn set_limit(&mut self, limit: u64) -> Result<(), DatapathError> {
        self.watched
            .set(0, limit, 0)
            .map_err(|error| failed("write WATCHED", error))
    }
}

fn read(item: &[u8]) -> Option<Raw> {
    if item.len() < size_of::<Raw>() {
        return None;
    }
    // SAFETY: long enough, and the fields are integers and bytes, which may have any bits.
    Some(unsafe { item.as_ptr().cast::<Raw>().read_unaligned() })
}

fn observation(
    raw: &Raw,
    at: SystemTime,
    maps: &Maps,
    config: &Config,
    backends: &BTreeMap<u32, (u32, BackendKey)>,
) -> Option<Observation> {
    let drop_reason = || {
        DropReason::ALL
            .get(raw.reason as usize)
            .map(|reason| reason.name())
    };
    let (kind, reason) = match Observed::ALL.get(raw.kind as usize)? {
        Observed::Opened => (EventKind::Opened, None),
        Observed::Closed => (EventKind::Closed, None),
        Observed::ResetByClient => (EventKind::Closed, Some("reset_by_client")),
        Observed::ResetByBackend => (EventKind::Closed, Some("reset_by_backend")),
        Observed::Refused => (EventKind::Refused, drop_reason()),
        Observed::Dropped => (EventKind::Dropped, drop_reason()),
    };
    let captured = usize::try_from(raw.captured).ok()?;
    let head = raw.head.get(..captured)?.to_vec();
    let frame = StoredFrame::captured(head, raw.length, raw.interface);
    let (tuple, headers) = examine(&frame, config);
    let tuple = tuple.map(|tuple| shown(maps, tuple));
    Some(Observation {
        at,
        kind,
        reason,
        tuple,
        backend: backend(backends, raw.backend, raw.generation),
        interface: interface_name(raw.interface).unwrap_or_else(|_| raw.interface.to_string()),
        length: raw.length,
        head: frame.into_bytes(),
        headers: headers.min(captured),
    })
}

/// The end of a flow that no packet has ended.
fn without_packet(
    ended: &Ended,
    at: SystemTime,
    maps: &Maps,
    backends: &BTreeMap<u32, (u32, BackendKey)>,
) -> Observation {
    Observation {
        at,
        kind: EventKind::Closed,
        reason: Some(ended.reason),
        tuple: Some(shown(maps, of_key(&ended.key))),
        backend: backend(backends, ended.backend, ended.generation),
        interface: String::new(),
        length: 0,
        head: Vec::new(),
        headers: 0,
    }
}

/// The backend that has an index, if it is still the one of this generation.
fn backend(backends: &BTreeMap<u32, (u32, BackendKey)>, index: u32, generation: u32) -> Option<BackendKey> {
    let (current, key) = backends.get(&index)?;
    (*current == generation).then_some(*key)
}

/// The same addresses, with IPv6 clients' own.
fn shown(maps: &Maps, tuple: PacketTuple) -> PacketTuple {
    PacketTuple {
        source: mapped::shown(maps, tuple.source),
        destination: mapped::shown(maps, tuple.destination),
        ..tuple
    }
}

/// The addresses of a packet, or of the one that it encapsulates, and the bytes before its payload.
fn examine(frame: &StoredFrame, config: &Config) -> (Option<PacketTuple>, usize) {
    let is_ipv6 = |ethernet: &Ethernet| { ethernet.ethertype } == ETHERTYPE_IPV6;
    if frame.at(0).is_some_and(is_ipv6) {
        return ipv6_packet(frame);
    }
    let offset = match parse(frame, ETHERNET_LENGTH) {
        Ok(outer) if tunnel::is_encapsulated(config, &outer) => ETHERNET_LENGTH + outer_length(frame),
        _ => ETHERNET_LENGTH,
    };
    let tuple = packet(frame, offset);
    let transport = offset + IPV4_LENGTH;
    let length = match tuple {
        Some(PacketTuple {
            ports: Some(_),
            protocol: PROTOCOL_TCP,
            ..
        }) => frame
            .at::<Tcp>(transport)
            .map_or(0, |tcp| usize::from(tcp.data_offset >> 4) * 4),
        Some(PacketTuple { ports: Some(_), .. }) => UDP_LENGTH,
        _ => 0,
    };
    (tuple, transport + length)
}

/// The same of an IPv6 packet. What is behind an extension header counts as payload.
fn ipv6_packet(frame: &StoredFrame) -> (Option<PacketTuple>, usize) {
    let Some(ip) = Header::read(frame, ETHERNET_LENGTH) else {
        return (None, ETHERNET_LENGTH);
    };
    let ports = match ip.next_header {
        PROTOCOL_TCP | PROTOCOL_UDP => frame.at::<Ports>(IPV6_L4_OFFSET),
        _ => None,
    };
    let tuple = PacketTuple {
        protocol: ip.next_header,
        source: Ipv6Addr::from(ip.source).into(),
        destination: Ipv6Addr::from(ip.destination).into(),
        ports: ports.map(|ports| ({ ports.source }.get(), { ports.destination }.get())),
    };
    (Some(tuple), IPV6_L4_OFFSET)
}

fn packet(frame: &StoredFrame, offset: usize) -> Option<PacketTuple> {
    match parse(frame, offset) {
        Ok(packet) => Some(of_key(&packet.key)),
        Err(Unparsed::Unsupported(_, key)) => Some(of_key(&key)),
        Err(Unparsed::Exceptional | Unparsed::Other) => {
            let ip = frame.at::<Ipv4>(offset)?;
            (ip.version_and_length >> 4 == 4).then(|| PacketTuple {
                protocol: ip.protocol,
                source: address(ip.source),
                destination: address(ip.destination),
                ports: None,
            })
        }
    }
}

fn address(address: Be32) -> IpAddr {
    Ipv4Addr::from(address).into()
}

fn of_key(key: &FlowKey) -> PacketTuple {
    PacketTuple {
        protocol: key.protocol as u8,
        source: address(key.source),
        destination: address(key.destination),
        ports: Some((key.source_port.get(), key.destination_port.get())),
    }
}
