//! From a frame to the tuple of its flow. Imports `abi`, `frame` and `headers`.

use crate::{
    abi::{DropReason, FlowKey},
    frame::Frame,
    headers::{
        IPV4_FRAGMENT_MASK, IPV4_FRAGMENT_OFFSET_MASK, IPV4_LENGTH, Ipv4, PROTOCOL_TCP, PROTOCOL_UDP, Ports,
        TCP_LENGTH, Tcp, UDP_LENGTH,
    },
};

/// A TCP or UDP packet over IPv4, of sound lengths, not a fragment, without IP options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Its five-tuple.
    pub key: FlowKey,
    /// Bytes of IP header and payload, as the header says.
    pub total_length: u16,
    /// TCP's flags; 0 for UDP.
    pub tcp_flags: u8,
}

/// Why there is no [`Packet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unparsed {
    /// Neither TCP nor UDP over IPv4, or a later fragment: nothing to say about it.
    Other,
    /// No receiver could make sense of it.
    Invalid(DropReason),
    /// Sound, but not balanced: to be dropped if it is for a frontend, the kernel's otherwise.
    Unsupported(DropReason, FlowKey),
}

/// Reads the IPv4 packet at `offset` of the frame.
///
/// # Errors
/// [`Unparsed`] says what to do with a frame that holds no balanceable packet.
#[inline(always)]
pub fn parse<F: Frame>(frame: &F, offset: usize) -> Result<Packet, Unparsed> {
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
    // What GRO or TSO put together carries the lengths of the whole only by courtesy.
    if frame.segments() <= 1 && u32::from(total_length) + offset as u32 > frame.length() {
        return Err(Unparsed::Invalid(DropReason::BadLength));
    }
    let ports_offset = offset + IPV4_LENGTH;
    let (ports, tcp_flags) = if ip.protocol == PROTOCOL_TCP {
        if usize::from(total_length) < IPV4_LENGTH + TCP_LENGTH {
            return Err(truncated);
        }
        let tcp = frame.at::<Tcp>(ports_offset).ok_or(truncated)?;
        let header = usize::from(tcp.data_offset >> 4) * 4;
        if header < TCP_LENGTH || IPV4_LENGTH + header > usize::from(total_length) {
            return Err(Unparsed::Invalid(DropReason::BadLength));
        }
        (
            Ports {
                source: tcp.source,
                destination: tcp.destination,
            },
            tcp.flags,
        )
    } else {
        if usize::from(total_length) < IPV4_LENGTH + UDP_LENGTH {
            return Err(truncated);
        }
        (*frame.at::<Ports>(ports_offset).ok_or(truncated)?, 0)
    };
    Ok(Packet {
        key: key(&ip, &ports),
        total_length,
        tcp_flags,
    })
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

/// A header that is not the plain 20 bytes: with options, or nonsense.
#[inline(always)]
fn unusual_header<F: Frame>(frame: &F, offset: usize, ip: &Ipv4) -> Unparsed {
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
fn fragment_of<F: Frame>(frame: &F, offset: usize, ip: &Ipv4) -> Unparsed {
    if ip.fragment.raw() & IPV4_FRAGMENT_OFFSET_MASK.raw() != 0 {
        // Only the first fragment has ports. Without it, the kernel drops the others in time.
        return Unparsed::Other;
    }
    match frame.at::<Ports>(offset + IPV4_LENGTH) {
        Some(ports) => Unparsed::Unsupported(DropReason::Fragment, key(ip, ports)),
        None => Unparsed::Invalid(DropReason::Truncated),
    }
}

#[cfg(test)]
mod tests;
