//! Makes frames from a seed: packets that clients, containers, peers and routers send, half of them spoilt.

use std::net::{Ipv4Addr, SocketAddrV4};

use fastrand::Rng;

use super::{
    Input, ipv6,
    oracle::{ETHERNET, GENEVE, number, sum},
};
use crate::{
    cluster::{
        DNS, MESH0_MAC, NODE, OWN_MAPPED, PEER, SERVICE_ADDRESS, STRANGER, WEB, arriving, from_peer,
        from_peer_about, frontend, out_of_container, target,
    },
    frames::{
        ACK, FIN, FORWARD, FORWARD_DIRECT, Macs, PROBE, PROBE_ANSWER, Packet, REPLY, RST, SYN, Transport,
        UNDELIVERABLE,
    },
    run::Entry,
};

/// The kernel takes no shorter frame for a test run with an IP packet.
const SHORTEST: usize = ETHERNET + 40;
/// Bytes of headers, where changes are the most interesting.
const HEADERS: usize = 130;
/// The largest payload: the frame must fit into a page.
const PAYLOAD: usize = 3000;
const KINDS: [u8; 6] = [FORWARD, FORWARD_DIRECT, REPLY, UNDELIVERABLE, PROBE, PROBE_ANSWER];

/// Makes frames; the same ones from the same seed.
pub struct Generator {
    rng: Rng,
    /// The addresses that stand for IPv6 clients.
    mapped: Vec<Ipv4Addr>,
}

impl Generator {
    /// A generator that begins at a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            rng: Rng::with_seed(seed),
            mapped: Vec::new(),
        }
    }

    /// From now on, replies go to these addresses, too, which stand for IPv6 clients.
    pub(super) fn learn(&mut self, mapped: Vec<Ipv4Addr>) {
        self.mapped = mapped;
    }

    /// The next frame.
    pub fn input(&mut self) -> Input {
        let (entry, mut frame) = match self.rng.u8(..20) {
            0..7 => self.sent_by_client(),
            7..10 => self.sent_by_container(),
            10..15 => self.sent_by_peer(),
            15..17 => self.sent_by_process(),
            17..19 => self.sent_by_router(),
            _ => self.noise(),
        };
        let is_ipv6 = entry == Entry::Uplink && self.rng.bool();
        if let Some(of_ipv6) = ipv6::frame(&frame).filter(|_| is_ipv6) {
            frame = of_ipv6;
            if self.rng.u8(..12) == 0 {
                let kind = self.one_of(&ipv6::EXTENSIONS);
                ipv6::extend(&mut frame, kind, std::array::from_fn(|_| self.rng.u8(..4)));
            }
        }
        if self.rng.u8(..8) == 0 {
            self.add_options(&mut frame);
        }
        if self.rng.u8(..12) == 0 {
            self.make_fragment(&mut frame);
        }
        if self.rng.u8(..32) == 0 {
            let tag = self.rng.u16(..).to_be_bytes();
            frame.splice(12..12, [0x81, 0, tag[0], tag[1]]);
        }
        if self.rng.bool() {
            self.spoil(&mut frame);
        }
        let entry = if self.rng.u8(..16) == 0 {
            self.one_of(&Entry::ALL)
        } else {
            entry
        };
        let keeps_ethernet = entry != Entry::Layer3 || frame.len() < SHORTEST + ETHERNET;
        let mut frame = if keeps_ethernet {
            frame
        } else {
            frame.split_off(ETHERNET)
        };
        if frame.len() < SHORTEST {
            frame.resize(SHORTEST, 0);
        }
        Input { entry, frame }
    }

    fn one_of<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.rng.usize(..of.len())]
    }

    /// At an uplink. Addresses of 8.0.0.0/16 make a test run take a packet without Ethernet header for one of
    /// IPv4: their bytes are where the header would have the protocol.
    fn uplink(&mut self) -> Entry {
        self.one_of(&[
            Entry::Xdp,
            Entry::Xdp,
            Entry::Uplink,
            Entry::Uplink,
            Entry::Layer3,
        ])
    }

    fn client(&mut self) -> SocketAddrV4 {
        let address = Ipv4Addr::new(8, 0, 2, self.rng.u8(1..9));
        SocketAddrV4::new(address, 40_000 + self.rng.u16(..8))
    }

    /// Who gets a reply.
    fn client_known(&mut self) -> SocketAddrV4 {
        let client = self.client();
        if self.mapped.is_empty() || self.rng.u8(..4) != 0 {
            return client;
        }
        let mapped = self.mapped[self.rng.usize(..self.mapped.len())];
        SocketAddrV4::new(mapped, client.port())
    }

    fn destination(&mut self, address: Ipv4Addr) -> SocketAddrV4 {
        let port = match self.rng.u8(..8) {
            0 => self.rng.u16(..),
            1 => GENEVE,
            2..4 => DNS.port,
            _ => WEB.port,
        };
        SocketAddrV4::new(address, port)
    }

    fn packet(&mut self, macs: Macs, source: SocketAddrV4, destination: SocketAddrV4) -> Packet {
        let is_udp = [destination.port(), source.port()].contains(&DNS.port)
            || source.port() == target(DNS).port()
            || self.rng.u8(..16) == 0;
        let mut packet = if is_udp {
            Packet::udp(macs, source, destination)
        } else {
            let flags = match self.rng.u8(..8) {
                0..3 => SYN,
                3..6 => ACK,
                6 => self.one_of(&[SYN | ACK, FIN | ACK, RST, RST | ACK]),
                _ => self.rng.u8(..),
            };
            let mut packet = Packet::tcp(macs, source, destination, flags);
            if let Transport::Tcp { sequence, window, .. } = &mut packet.transport {
                *sequence = sequence.wrapping_add(self.rng.u32(..0x2_0000));
                *window = self.rng.u16(..);
            }
            packet
        };
        packet.hops = self.one_of(&[64, 64, 64, 2, 1, 0]);
        if self.rng.u8(..4) == 0 {
            let length = match self.rng.u8(..4) {
                0 => self.rng.usize(..PAYLOAD),
                _ => self.rng.usize(..1500),
            };
            packet = packet.with_payload(length);
        }
        packet
    }

    fn sent_by_client(&mut self) -> (Entry, Vec<u8>) {
        let source = self.client();
        let address = self.one_of(&[NODE, NODE, NODE, NODE, NODE, NODE, SERVICE_ADDRESS, STRANGER]);
        let destination = self.destination(address);
        let packet = self.packet(arriving(), source, destination);
        (self.uplink(), packet.frame())
    }

    fn sent_by_container(&mut self) -> (Entry, Vec<u8>) {
        let service = self.one_of(&[WEB, DNS]);
        let packet = if self.rng.u8(..4) == 0 {
            let source = SocketAddrV4::new(*target(WEB).ip(), self.rng.u16(1024..));
            let destination = self.destination(NODE);
            self.packet(out_of_container(), source, destination)
        } else {
            let client = self.client_known();
            self.packet(out_of_container(), target(service), client)
        };
        (Entry::Container, packet.frame())
    }

    fn sent_by_process(&mut self) -> (Entry, Vec<u8>) {
        let macs = Macs {
            source: MESH0_MAC,
            destination: MESH0_MAC,
        };
        let (source, destination) = if self.rng.bool() {
            // What the pipeline sends to an IPv6 client.
            let service = self.one_of(&[WEB, DNS]);
            (SocketAddrV4::new(OWN_MAPPED, service.port), self.client_known())
        } else {
            let source = SocketAddrV4::new(NODE, 40_000 + self.rng.u16(..16));
            (source, self.destination(SERVICE_ADDRESS))
        };
        (Entry::Local, self.packet(macs, source, destination).frame())
    }

    fn sent_by_peer(&mut self) -> (Entry, Vec<u8>) {
        let service = self.one_of(&[WEB, DNS]);
        let kind = match self.rng.u8(..16) {
            0 => self.rng.u8(..),
            _ => self.one_of(&KINDS),
        };
        let mut tunnel = match self.rng.u8(..8) {
            0 => from_peer_about(self.rng.u8(..), service, kind),
            1..4 => from_peer_about(6, service, kind),
            _ => from_peer(service, kind),
        };
        match self.rng.u8(..16) {
            0 => tunnel.from = self.one_of(&[STRANGER, NODE, PEER]),
            1 => tunnel.vni ^= 1 << self.rng.u8(..24),
            2 => tunnel.key = Some(self.rng.u64(..).to_be_bytes()),
            _ => {}
        }
        let client = self.client();
        let (source, destination) = match kind {
            REPLY => (frontend(service), client),
            _ => (client, frontend(service)),
        };
        let inner = self.packet(arriving(), source, destination);
        let frame = match self.rng.u8(..8) {
            0 => tunnel.around_ip(&[]),
            _ => tunnel.around(&inner),
        };
        (self.uplink(), frame)
    }

    /// An ICMP message: an error about a packet of a flow, or an echo request.
    fn sent_by_router(&mut self) -> (Entry, Vec<u8>) {
        let client = self.client();
        let (entry, inner, macs) = if self.rng.bool() {
            let inner = self.packet(arriving(), frontend(WEB), client);
            (self.uplink(), inner, arriving())
        } else {
            let inner = self.packet(arriving(), client, target(WEB));
            (Entry::Container, inner, out_of_container())
        };
        let inner = &inner.frame()[ETHERNET..];
        let cut = self.one_of(&[28, 28, 40, 128, 548]).min(inner.len());
        let (kind, code) = self.one_of(&[
            (3, 0),
            (3, 1),
            (3, 3),
            (3, 4),
            (4, 0),
            (5, 1),
            (11, 0),
            (12, 0),
            (8, 0),
        ]);
        let mut message = vec![kind, code, 0, 0, 0, 0];
        message.extend(self.one_of(&[0_u16, 68, 576, 1300, 1500]).to_be_bytes());
        message.extend(&inner[..cut]);
        let checksum = !sum(&message, 0);
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
        let router = Ipv4Addr::new(8, 0, 3, self.rng.u8(1..4));
        let to = if entry == Entry::Container {
            SocketAddrV4::new(*client.ip(), 1)
        } else {
            SocketAddrV4::new(NODE, 1)
        };
        let mut packet = Packet::udp(macs, SocketAddrV4::new(router, 1), to);
        packet.payload = Vec::new();
        let mut frame = packet.frame();
        frame.truncate(ETHERNET + 20);
        frame[ETHERNET + 9] = 1;
        frame.extend(message);
        fix_lengths(&mut frame);
        (entry, frame)
    }

    fn noise(&mut self) -> (Entry, Vec<u8>) {
        let mut frame: Vec<u8> = (0..self.rng.usize(SHORTEST..400))
            .map(|_| self.rng.u8(..))
            .collect();
        if self.rng.u8(..4) != 0 {
            frame[12..15].copy_from_slice(&[8, 0, 0x45]);
        }
        (self.one_of(&Entry::ALL), frame)
    }

    /// Puts options into the IP header.
    fn add_options(&mut self, frame: &mut Vec<u8>) {
        if frame.get(ETHERNET) != Some(&0x45) {
            return;
        }
        let units = self.rng.usize(1..=10);
        let mut options = vec![1_u8; units * 4];
        match self.rng.u8(..4) {
            0 => options[0] = 0,
            1 => options[..3].copy_from_slice(&[7, (units * 4) as u8, 4]),
            2 => options.iter_mut().for_each(|byte| *byte = self.rng.u8(..)),
            _ => {}
        }
        frame.splice(ETHERNET + 20..ETHERNET + 20, options);
        frame[ETHERNET] = 0x45 + units as u8;
        fix_lengths(frame);
    }

    fn make_fragment(&mut self, frame: &mut [u8]) {
        if frame.get(12..ETHERNET) != Some(&[8, 0]) {
            return;
        }
        let offset = self.one_of(&[0_u16, 0, 1, 185, 8000, 0x1fff]);
        let more = self.one_of(&[0x2000_u16, 0]);
        if let Some(field) = frame.get_mut(ETHERNET + 6..ETHERNET + 8) {
            field.copy_from_slice(&(offset | more).to_be_bytes());
            fix_checksum(frame);
        }
    }

    fn spoil(&mut self, frame: &mut Vec<u8>) {
        for _ in 0..self.rng.u8(1..5) {
            let at = self.rng.usize(..frame.len().min(HEADERS));
            match self.rng.u8(..6) {
                0 => frame[at] = self.rng.u8(..),
                1 => frame[at] ^= 1 << self.rng.u8(..8),
                2 => frame.truncate(self.rng.usize(SHORTEST.min(frame.len())..=frame.len())),
                3 => frame.extend((0..self.rng.usize(1..64)).map(|_| 0)),
                // A length, a little off or not at all possible.
                4 => {
                    let at = self.one_of(&[ETHERNET + 2, ETHERNET + 4, ETHERNET + 24, 66, 86]);
                    if frame.len() >= at + 2 {
                        let near = number(&frame[at..])
                            .wrapping_add(self.rng.u16(..9))
                            .wrapping_sub(4);
                        let value = self.one_of(&[0, 1, 19, 20, 0xffff, near, near]);
                        frame[at..at + 2].copy_from_slice(&value.to_be_bytes());
                    }
                }
                _ => {
                    let at = self.one_of(&[ETHERNET, ETHERNET + 6, ETHERNET + 9, ETHERNET + 32, 42]);
                    if let Some(byte) = frame.get_mut(at) {
                        *byte = self.rng.u8(..);
                    }
                }
            }
        }
        if self.rng.bool() {
            fix_checksum(frame);
        }
    }
}

/// Makes the IP header's length the frame's, and its checksum right.
fn fix_lengths(frame: &mut [u8]) {
    let length = (frame.len() - ETHERNET) as u16;
    frame[ETHERNET + 2..ETHERNET + 4].copy_from_slice(&length.to_be_bytes());
    fix_checksum(frame);
}

fn fix_checksum(frame: &mut [u8]) {
    let Some(first) = frame.get(ETHERNET) else { return };
    let end = ETHERNET + usize::from(first & 15) * 4;
    if end < ETHERNET + 20 || frame.len() < end {
        return;
    }
    frame[ETHERNET + 10..ETHERNET + 12].fill(0);
    let checksum = !sum(&frame[ETHERNET..end], 0);
    frame[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&checksum.to_be_bytes());
}
