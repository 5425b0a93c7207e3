//! Frames as they go in and as they must come out, every checksum computed anew by etherparse.

use std::net::{Ipv4Addr, SocketAddrV4};

use etherparse::{
    EtherType, Ethernet2Header, IpNumber, Ipv4Header, PacketBuilder, TcpHeader, TcpOptionElement, UdpHeader,
};

/// Bytes between the Ethernet header and an encapsulated packet.
pub(crate) const OUTER: usize = 48;
/// TCP's flags, as in the header.
pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const ACK: u8 = 16;

/// Source and destination MAC address of a frame.
#[derive(Clone, Copy)]
pub(crate) struct Macs {
    pub(crate) source: [u8; 6],
    pub(crate) destination: [u8; 6],
}

/// A TCP or UDP packet to build.
#[derive(Clone)]
pub(crate) struct Packet {
    pub(crate) macs: Macs,
    pub(crate) source: SocketAddrV4,
    pub(crate) destination: SocketAddrV4,
    pub(crate) transport: Transport,
    pub(crate) payload: Vec<u8>,
}

/// What is above IP.
#[derive(Clone)]
pub(crate) enum Transport {
    Tcp {
        flags: u8,
        sequence: u32,
        acknowledgement: u32,
        window: u16,
        mss: Option<u16>,
    },
    Udp,
}

impl Packet {
    pub(crate) fn tcp(macs: Macs, source: SocketAddrV4, destination: SocketAddrV4, flags: u8) -> Self {
        let transport = Transport::Tcp {
            flags,
            sequence: 0x0102_0304,
            acknowledgement: if flags & ACK == 0 { 0 } else { 0x0506_0708 },
            window: 0x7210,
            mss: (flags & SYN != 0).then_some(1460),
        };
        let payload = if flags & (SYN | RST) == 0 {
            b"an odd payload!".to_vec()
        } else {
            Vec::new()
        };
        Self {
            macs,
            source,
            destination,
            transport,
            payload,
        }
    }

    pub(crate) fn udp(macs: Macs, source: SocketAddrV4, destination: SocketAddrV4) -> Self {
        Self {
            macs,
            source,
            destination,
            transport: Transport::Udp,
            payload: b"a datagram".to_vec(),
        }
    }

    pub(crate) fn with_mss(mut self, value: u16) -> Self {
        if let Transport::Tcp { mss, .. } = &mut self.transport {
            *mss = Some(value);
        }
        self
    }

    pub(crate) fn with_payload(mut self, length: usize) -> Self {
        self.payload = (0..length).map(|index| index as u8).collect();
        self
    }

    /// The same packet as it leaves the rewriting: other MAC addresses, other endpoints.
    pub(crate) fn rewritten(&self, macs: Macs, source: SocketAddrV4, destination: SocketAddrV4) -> Self {
        Self {
            macs,
            source,
            destination,
            ..self.clone()
        }
    }

    /// The whole frame.
    pub(crate) fn frame(&self) -> Vec<u8> {
        let mut ip = Ipv4Header::new(
            0,
            64,
            IpNumber::TCP,
            self.source.ip().octets(),
            self.destination.ip().octets(),
        )
        .expect("a payload that fits");
        ip.dont_fragment = true;
        ip.identification = 0x4d53;
        let builder = PacketBuilder::ethernet2(self.macs.source, self.macs.destination)
            .ip(etherparse::IpHeaders::Ipv4(ip, Default::default()));
        let mut frame = Vec::new();
        match self.transport {
            Transport::Tcp {
                flags,
                sequence,
                acknowledgement,
                window,
                mss,
            } => {
                let mut header =
                    TcpHeader::new(self.source.port(), self.destination.port(), sequence, window);
                header.acknowledgment_number = acknowledgement;
                header.fin = flags & FIN != 0;
                header.syn = flags & SYN != 0;
                header.rst = flags & RST != 0;
                header.ack = flags & ACK != 0;
                if let Some(mss) = mss {
                    let options = [
                        TcpOptionElement::MaximumSegmentSize(mss),
                        TcpOptionElement::Noop,
                        TcpOptionElement::WindowScale(7),
                    ];
                    header.set_options(&options).expect("options that fit");
                }
                builder
                    .tcp_header(header)
                    .write(&mut frame, &self.payload)
                    .expect("a vector takes it");
            }
            Transport::Udp => builder
                .udp(self.source.port(), self.destination.port())
                .write(&mut frame, &self.payload)
                .expect("a vector takes it"),
        }
        frame
    }
}

/// What a Geneve packet between nodes says.
#[derive(Clone, Copy)]
pub(crate) struct Tunnel {
    pub(crate) macs: Macs,
    pub(crate) from: Ipv4Addr,
    pub(crate) to: Ipv4Addr,
    /// UDP source port.
    pub(crate) source_port: u16,
    /// Option type: 0x81 forward, 0x82 forward with direct return, 0x83 reply.
    pub(crate) kind: u8,
    pub(crate) vni: u32,
    pub(crate) backend: SocketAddrV4,
    pub(crate) tag: u16,
}

pub(crate) const FORWARD: u8 = 0x81;
pub(crate) const FORWARD_DIRECT: u8 = 0x82;
pub(crate) const REPLY: u8 = 0x83;

impl Tunnel {
    /// A frame that carries the IP packet of another.
    pub(crate) fn around(&self, inner: &Packet) -> Vec<u8> {
        self.around_ip(&inner.frame()[14..])
    }

    /// A frame that carries bytes as an IP packet.
    pub(crate) fn around_ip(&self, inner: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        Ethernet2Header {
            source: self.macs.source,
            destination: self.macs.destination,
            ether_type: EtherType::IPV4,
        }
        .write(&mut frame)
        .expect("a vector takes it");
        let udp_length = (inner.len() + OUTER - 20) as u16;
        let mut ip = Ipv4Header::new(
            udp_length,
            64,
            IpNumber::UDP,
            self.from.octets(),
            self.to.octets(),
        )
        .expect("a payload that fits");
        ip.dont_fragment = true;
        ip.header_checksum = ip.calc_header_checksum();
        ip.write_raw(&mut frame).expect("a vector takes it");
        UdpHeader {
            source_port: self.source_port,
            destination_port: 6081,
            length: udp_length,
            checksum: 0,
        }
        .write(&mut frame)
        .expect("a vector takes it");
        frame.extend([3, 0x40, 0x08, 0x00]);
        frame.extend((self.vni << 8).to_be_bytes());
        frame.extend([0xff, 0x5a, self.kind, 2]);
        frame.extend(self.backend.ip().octets());
        frame.extend(self.backend.port().to_be_bytes());
        frame.extend(self.tag.to_be_bytes());
        frame.extend(inner);
        frame
    }
}

/// The outer UDP source port of an encapsulated frame; RFC 8926 wants it from the dynamic range.
pub(crate) fn outer_port(frame: &[u8]) -> u16 {
    let port = u16::from_be_bytes([frame[34], frame[35]]);
    assert!(
        port >= 0xc000,
        "the outer source port {port} is not from the dynamic range"
    );
    port
}

/// Compares frames byte by byte, and shows the first difference.
#[track_caller]
pub(crate) fn check_frame(actual: &[u8], expected: &[u8]) {
    if actual == expected {
        return;
    }
    let place = actual
        .iter()
        .zip(expected)
        .position(|(one, other)| one != other)
        .unwrap_or(actual.len().min(expected.len()));
    panic!(
        "the frames differ from byte {place} on\n  actual ({:>4}): {}\nexpected ({:>4}): {}",
        actual.len(),
        hex(actual),
        expected.len(),
        hex(expected)
    );
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
