//! Frames as they go in and as they must come out, every checksum computed by etherparse.

use std::net::{Ipv4Addr, SocketAddrV4};

use etherparse::{
    EtherType, Ethernet2Header, IpNumber, Ipv4Header, PacketBuilder, TcpHeader, TcpOptionElement, UdpHeader,
};

/// Bytes between the Ethernet header and an encapsulated packet.
pub const OUTER: usize = 48;
/// TCP's flags, as in the header.
pub const FIN: u8 = 1;
/// The same.
pub const SYN: u8 = 2;
/// The same.
pub const RST: u8 = 4;
/// The same.
pub const ACK: u8 = 16;

/// Source and destination MAC address of a frame.
#[derive(Clone, Copy)]
pub struct Macs {
    /// The sender.
    pub source: [u8; 6],
    /// The receiver.
    pub destination: [u8; 6],
}

/// A TCP or UDP packet to build.
#[derive(Clone)]
pub struct Packet {
    /// The Ethernet header.
    pub macs: Macs,
    /// Source address and port.
    pub source: SocketAddrV4,
    /// Destination address and port.
    pub destination: SocketAddrV4,
    /// The rest of the header.
    pub transport: Transport,
    /// The bytes after the headers.
    pub payload: Vec<u8>,
    /// The time to live.
    pub hops: u8,
}

/// The transport header.
#[derive(Clone)]
pub enum Transport {
    /// TCP, with these fields of its header.
    Tcp {
        /// [`FIN`], [`SYN`], [`RST`], [`ACK`].
        flags: u8,
        /// Sequence number.
        sequence: u32,
        /// Acknowledgement number.
        acknowledgement: u32,
        /// Receive window, as in the header.
        window: u16,
        /// The option of this name; others come with it.
        mss: Option<u16>,
    },
    /// UDP.
    Udp,
}

impl Packet {
    /// A TCP segment with these flags; data unless it opens or resets.
    #[must_use]
    pub fn tcp(macs: Macs, source: SocketAddrV4, destination: SocketAddrV4, flags: u8) -> Self {
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
            hops: 64,
        }
    }

    /// A UDP datagram.
    #[must_use]
    pub fn udp(macs: Macs, source: SocketAddrV4, destination: SocketAddrV4) -> Self {
        Self {
            macs,
            source,
            destination,
            transport: Transport::Udp,
            payload: b"a datagram".to_vec(),
            hops: 64,
        }
    }

    /// The same with another maximum segment size.
    #[must_use]
    pub fn with_mss(mut self, value: u16) -> Self {
        if let Transport::Tcp { mss, .. } = &mut self.transport {
            *mss = Some(value);
        }
        self
    }

    /// The same with as many bytes of payload.
    #[must_use]
    pub fn with_payload(mut self, length: usize) -> Self {
        self.payload = (0..length).map(|index| index as u8).collect();
        self
    }

    /// The same packet as it leaves the rewriting: other MAC addresses, other endpoints.
    #[must_use]
    pub fn rewritten(&self, macs: Macs, source: SocketAddrV4, destination: SocketAddrV4) -> Self {
        Self {
            macs,
            source,
            destination,
            ..self.clone()
        }
    }

    /// The same packet one hop further: between client and container.
    #[must_use]
    pub fn routed(&self, macs: Macs, source: SocketAddrV4, destination: SocketAddrV4) -> Self {
        Self {
            hops: self.hops - 1,
            ..self.rewritten(macs, source, destination)
        }
    }

    /// The whole frame.
    #[must_use]
    pub fn frame(&self) -> Vec<u8> {
        let mut ip = Ipv4Header::new(
            0,
            self.hops,
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

/// The headers of a Geneve packet between nodes.
#[derive(Clone, Copy)]
pub struct Tunnel {
    /// The outer Ethernet header.
    pub macs: Macs,
    /// The sending node.
    pub from: Ipv4Addr,
    /// The receiving node.
    pub to: Ipv4Addr,
    /// UDP source port.
    pub source_port: u16,
    /// Option type: [`FORWARD`], [`FORWARD_DIRECT`], [`REPLY`] or [`UNDELIVERABLE`].
    pub kind: u8,
    /// The cluster's network identifier.
    pub vni: u32,
    /// The backend's ingress address and port.
    pub backend: SocketAddrV4,
    /// The tag of the backend's task.
    pub tag: u16,
    /// The cluster's key, if the packet carries one.
    pub key: Option<[u8; 8]>,
}

/// From the entry node to a backend.
pub const FORWARD: u8 = 0x81;
/// The same, to be answered to the client directly.
pub const FORWARD_DIRECT: u8 = 0x82;
/// From a backend to the entry node.
pub const REPLY: u8 = 0x83;
/// From an agent to a peer's data path; nothing is encapsulated.
pub const PROBE: u8 = 0x88;
/// The same packet on its way back.
pub const PROBE_ANSWER: u8 = 0x89;
/// From the backend's node back to the entry node.
pub const UNDELIVERABLE: u8 = 0x84;

impl Tunnel {
    /// A frame that carries the IP packet of another.
    #[must_use]
    pub fn around(&self, inner: &Packet) -> Vec<u8> {
        self.around_ip(&inner.frame()[14..])
    }

    /// A frame that carries bytes as an IP packet.
    #[must_use]
    pub fn around_ip(&self, inner: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        Ethernet2Header {
            source: self.macs.source,
            destination: self.macs.destination,
            ether_type: EtherType::IPV4,
        }
        .write(&mut frame)
        .expect("a vector takes it");
        let key = self.key.unwrap_or_default();
        let key = &key[..if self.key.is_some() { key.len() } else { 0 }];
        let key_length = (key.len() / 4) as u8;
        let udp_length = (inner.len() + OUTER + key.len() - 20) as u16;
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
        frame.extend([3 + key_length, 0x40, 0x08, 0x00]);
        frame.extend((self.vni << 8).to_be_bytes());
        frame.extend([0xff, 0x5a, self.kind, 2 + key_length]);
        frame.extend(self.backend.ip().octets());
        frame.extend(self.backend.port().to_be_bytes());
        frame.extend(self.tag.to_be_bytes());
        frame.extend(key);
        frame.extend(inner);
        frame
    }
}

/// The outer UDP source port of an encapsulated frame; RFC 8926 wants it from the dynamic range.
#[must_use]
pub fn outer_port(frame: &[u8]) -> u16 {
    let port = u16::from_be_bytes([frame[34], frame[35]]);
    assert!(
        port >= 0xc000,
        "the outer source port {port} is not from the dynamic range"
    );
    port
}

/// Compares frames byte by byte, and shows the first difference.
#[track_caller]
pub fn check_frame(actual: &[u8], expected: &[u8]) {
    if actual == expected {
        return;
    }
    let offset = actual
        .iter()
        .zip(expected)
        .position(|(one, other)| one != other)
        .unwrap_or(actual.len().min(expected.len()));
    panic!(
        "the frames differ from byte {offset} on\n  actual ({:>4}): {}\nexpected ({:>4}): {}",
        actual.len(),
        hex(actual),
        expected.len(),
        hex(expected)
    );
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
