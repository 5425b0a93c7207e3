//! Reads the packet in a frame: its tuple, its length, its TCP flags.

use crate::{
    abi::{DropReason, FlowKey, Progress},
    frame::ReadFrame,
    headers::{
        IPV4_FRAGMENT_OFFSET_MASK, IPV4_LENGTH, IPV4_MORE_FRAGMENTS, Ipv4, PROTOCOL_ICMP, PROTOCOL_TCP,
        PROTOCOL_UDP, Ports, TCP_ACK, TCP_FIN, TCP_LENGTH, TCP_RST, TCP_SYN, Tcp, UDP_LENGTH,
    },
    ipv4,
};

/// A TCP or UDP packet over IPv4, or the first fragment of one, its lengths consistent, without IP options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Its five-tuple.
    pub key: FlowKey,
    /// Bytes of IP header and payload: as the header says, or of an aggregated packet as the frame says.
    pub total_length: u32,
    /// TCP's flags; 0 for UDP.
    pub tcp_flags: u8,
    /// TCP's sequence number; 0 for UDP.
    pub sequence: u32,
    /// How much TCP's sequence number advances with this packet; 0 for UDP.
    pub advance: u32,
    /// The sequence number that its sender expects; 0 for UDP.
    pub acknowledged: u32,
    /// Whether this is the first of several fragments.
    pub is_first_fragment: bool,
}

impl Packet {
    /// Whether this may open a flow: a TCP SYN, or any UDP packet.
    #[inline(always)]
    pub fn may_open_flow(&self) -> bool {
        self.key.protocol != u32::from(PROTOCOL_TCP) || self.is_syn()
    }

    /// Whether this opens a TCP connection. A SYN with ACK, FIN or RST set does not.
    #[inline(always)]
    pub fn is_syn(&self) -> bool {
        self.tcp_flags & (TCP_SYN | TCP_ACK | TCP_FIN | TCP_RST) == TCP_SYN
    }

    /// The sequence number of the sender's next packet.
    #[inline(always)]
    pub fn next_sequence(&self) -> u32 {
        self.sequence.wrapping_add(self.advance)
    }

    /// Whether this is of a TCP connection that goes on: neither opens nor resets it.
    #[inline(always)]
    pub fn continues(&self) -> bool {
        self.key.protocol == u32::from(PROTOCOL_TCP) && self.tcp_flags & (TCP_SYN | TCP_RST) == 0
    }

    /// How far the packet's direction of its flow has come, if the packet changes that.
    #[inline(always)]
    pub fn progress(&self) -> Option<Progress> {
        if self.tcp_flags & TCP_RST != 0 {
            Some(Progress::RESET)
        } else if self.tcp_flags & TCP_FIN != 0 {
            Some(Progress::FINISHED)
        } else {
            None
        }
    }
}

/// Why there is no [`Packet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unparsed {
    /// Nothing that the mesh can judge: another protocol, or without the ports that would say whose it is.
    Other,
    /// An ICMP message or a later fragment: for [`crate::exceptional`].
    Exceptional,
    /// A packet that the mesh does not balance: dropped if it is for a frontend, else passed.
    Unsupported(DropReason, FlowKey),
}

/// Reads the IPv4 packet at `offset` of the frame.
///
/// # Errors
/// [`Unparsed`] says what to do with a frame that holds no balanceable packet.
#[inline(always)]
pub fn parse<F: ReadFrame>(frame: &F, offset: usize) -> Result<Packet, Unparsed> {
    let ip = *frame.at::<Ipv4>(offset).ok_or(Unparsed::Other)?;
    if ip.version_and_length != 0x45 {
        return Err(unusual_header(frame, offset, &ip));
    }
    if ip.protocol != PROTOCOL_TCP && ip.protocol != PROTOCOL_UDP {
        return Err(if ip.protocol == PROTOCOL_ICMP {
            Unparsed::Exceptional
        } else {
            Unparsed::Other
        });
    }
    if ip.fragment.raw() & IPV4_FRAGMENT_OFFSET_MASK.raw() != 0 {
        return Err(Unparsed::Exceptional);
    }
    let ports_offset = offset + IPV4_LENGTH;
    let ports = *frame.at::<Ports>(ports_offset).ok_or(Unparsed::Other)?;
    let key = key(&ip, &ports);
    let total_length = ipv4::length(frame, offset, &ip);
    if total_length + offset as u32 > frame.length() {
        return Err(Unparsed::Unsupported(DropReason::BadLength, key));
    }
    let tcp = if ip.protocol == PROTOCOL_TCP {
        let truncated = Unparsed::Unsupported(DropReason::Truncated, key);
        if total_length < (IPV4_LENGTH + TCP_LENGTH) as u32 {
            return Err(truncated);
        }
        let tcp = frame.at::<Tcp>(ports_offset).ok_or(truncated)?;
        let header = u32::from(tcp.data_offset >> 4) * 4;
        if header < TCP_LENGTH as u32 || IPV4_LENGTH as u32 + header > total_length {
            return Err(Unparsed::Unsupported(DropReason::BadLength, key));
        }
        TcpState {
            flags: tcp.flags,
            sequence: tcp.sequence.get(),
            // SYN and FIN have a number of their own (RFC 9293, 3.4).
            advance: total_length - (IPV4_LENGTH as u32 + header)
                + u32::from(tcp.flags & (TCP_SYN | TCP_FIN) != 0),
            acknowledged: tcp.acknowledgement.get(),
        }
    } else {
        if total_length < (IPV4_LENGTH + UDP_LENGTH) as u32 {
            return Err(Unparsed::Unsupported(DropReason::Truncated, key));
        }
        TcpState::default()
    };
    Ok(Packet {
        key,
        total_length,
        tcp_flags: tcp.flags,
        sequence: tcp.sequence,
        advance: tcp.advance,
        acknowledged: tcp.acknowledged,
        is_first_fragment: ip.fragment.raw() & IPV4_MORE_FRAGMENTS.raw() != 0,
    })
}

/// What a TCP header says about its connection.
#[derive(Default)]
struct TcpState {
    flags: u8,
    sequence: u32,
    advance: u32,
    acknowledged: u32,
}

#[inline(always)]
fn key(ip: &Ipv4, ports: &Ports) -> FlowKey {
    FlowKey {
        source: ip.source,
        destination: ip.destination,
        source_port: ports.source,
        destination_port: ports.destination,
        protocol: u32::from(ip.protocol),
    }
}

/// A header that is not the plain 20 bytes: it has options, or is malformed.
#[inline(always)]
fn unusual_header<F: ReadFrame>(frame: &F, offset: usize, ip: &Ipv4) -> Unparsed {
    let words = usize::from(ip.version_and_length & 0x0f);
    if ip.version_and_length >> 4 != 4
        || words < 5
        || (ip.protocol != PROTOCOL_TCP && ip.protocol != PROTOCOL_UDP)
        || ip.fragment.raw() & IPV4_FRAGMENT_OFFSET_MASK.raw() != 0
    {
        return Unparsed::Other;
    }
    match frame.at::<Ports>(offset + words * 4) {
        Some(ports) => Unparsed::Unsupported(DropReason::IpOptions, key(ip, ports)),
        None => Unparsed::Other,
    }
}

#[cfg(test)]
mod tests;
