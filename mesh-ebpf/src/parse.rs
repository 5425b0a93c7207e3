//! Reads the packet in a frame: its tuple, its length, its TCP flags.

use crate::{
    abi::{DropReason, FlowKey, Progress},
    frame::ReadFrame,
    headers::{
        IPV4_FRAGMENT_MASK, IPV4_FRAGMENT_OFFSET_MASK, IPV4_LENGTH, Ipv4, PROTOCOL_TCP, PROTOCOL_UDP, Ports,
        TCP_ACK, TCP_FIN, TCP_LENGTH, TCP_RST, TCP_SYN, Tcp, UDP_LENGTH,
    },
};

/// A TCP or UDP packet over IPv4, its lengths consistent, not a fragment, without IP options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Its five-tuple.
    pub key: FlowKey,
    /// Bytes of IP header and payload, as the header says.
    pub total_length: u16,
    /// TCP's flags; 0 for UDP.
    pub tcp_flags: u8,
    /// TCP's sequence number; 0 for UDP.
    pub sequence: u32,
    /// How much TCP's sequence number advances with this packet; 0 for UDP.
    pub advance: u16,
    /// The sequence number that its sender expects; 0 for UDP.
    pub acknowledged: u32,
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
        self.sequence.wrapping_add(u32::from(self.advance))
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
    /// Neither TCP nor UDP over IPv4, or a fragment other than the first.
    Other,
    /// Malformed.
    Invalid(DropReason),
    /// Valid, but the mesh does not balance it: dropped if it is for a frontend, else passed.
    Unsupported(DropReason, FlowKey),
}

/// Reads the IPv4 packet at `offset` of the frame.
///
/// # Errors
/// [`Unparsed`] says what to do with a frame that holds no balanceable packet.
#[inline(always)]
pub fn parse<F: ReadFrame>(frame: &F, offset: usize) -> Result<Packet, Unparsed> {
    let truncated = Unparsed::Invalid(DropReason::Truncated);
    let ip = *frame.at::<Ipv4>(offset).ok_or(truncated)?;
    if ip.version_and_length != 0x45 {
        return Err(unusual_header(frame, offset, &ip));
    }
    if ip.protocol != PROTOCOL_TCP && ip.protocol != PROTOCOL_UDP {
        return Err(Unparsed::Other);
    }
    let total_length = ip.total_length.get();
    let fragment = ip.fragment.raw();
    if fragment & IPV4_FRAGMENT_MASK.raw() != 0 {
        return Err(fragment_of(frame, offset, &ip));
    }
    // Packets that GRO or TSO aggregated need not carry the length of the whole.
    if frame.segments() <= 1 && u32::from(total_length) + offset as u32 > frame.length() {
        return Err(Unparsed::Invalid(DropReason::BadLength));
    }
    let ports_offset = offset + IPV4_LENGTH;
    let (ports, tcp) = if ip.protocol == PROTOCOL_TCP {
        if usize::from(total_length) < IPV4_LENGTH + TCP_LENGTH {
            return Err(truncated);
        }
        let tcp = frame.at::<Tcp>(ports_offset).ok_or(truncated)?;
        let header = usize::from(tcp.data_offset >> 4) * 4;
        if header < TCP_LENGTH || IPV4_LENGTH + header > usize::from(total_length) {
            return Err(Unparsed::Invalid(DropReason::BadLength));
        }
        let payload = total_length - (IPV4_LENGTH + header) as u16;
        (
            Ports {
                source: tcp.source,
                destination: tcp.destination,
            },
            TcpState {
                flags: tcp.flags,
                sequence: tcp.sequence.get(),
                // SYN and FIN have a number of their own (RFC 9293, 3.4).
                advance: payload + u16::from(tcp.flags & (TCP_SYN | TCP_FIN) != 0),
                acknowledged: tcp.acknowledgement.get(),
            },
        )
    } else {
        if usize::from(total_length) < IPV4_LENGTH + UDP_LENGTH {
            return Err(truncated);
        }
        (
            *frame.at::<Ports>(ports_offset).ok_or(truncated)?,
            TcpState::default(),
        )
    };
    Ok(Packet {
        key: key(&ip, &ports),
        total_length,
        tcp_flags: tcp.flags,
        sequence: tcp.sequence,
        advance: tcp.advance,
        acknowledged: tcp.acknowledged,
    })
}

/// What a TCP header says about its connection.
#[derive(Default)]
struct TcpState {
    flags: u8,
    sequence: u32,
    advance: u16,
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
    if ip.version_and_length >> 4 != 4 {
        return Unparsed::Invalid(DropReason::BadVersion);
    }
    let words = usize::from(ip.version_and_length & 0x0f);
    if words < 5 {
        return Unparsed::Invalid(DropReason::BadLength);
    }
    if ip.protocol != PROTOCOL_TCP && ip.protocol != PROTOCOL_UDP {
        return Unparsed::Other;
    }
    if ip.fragment.raw() & IPV4_FRAGMENT_OFFSET_MASK.raw() != 0 {
        return Unparsed::Other;
    }
    match frame.at::<Ports>(offset + words * 4) {
        Some(ports) => Unparsed::Unsupported(DropReason::IpOptions, key(ip, ports)),
        None => Unparsed::Invalid(DropReason::Truncated),
    }
}

#[inline(always)]
fn fragment_of<F: ReadFrame>(frame: &F, offset: usize, ip: &Ipv4) -> Unparsed {
    if ip.fragment.raw() & IPV4_FRAGMENT_OFFSET_MASK.raw() != 0 {
        // Only the first fragment has ports. Without that one, the kernel drops the others after a timeout.
        return Unparsed::Other;
    }
    match frame.at::<Ports>(offset + IPV4_LENGTH) {
        Some(ports) => Unparsed::Unsupported(DropReason::Fragment, key(ip, ports)),
        None => Unparsed::Invalid(DropReason::Truncated),
    }
}

#[cfg(test)]
mod tests;
