//! ICMP errors of one IP version made errors of the other (RFC 7915, 4.2 to 4.5 and 5.2 to 5.5): only those
//! about packets of frontends. Each becomes a message of one length, which quotes the IP header and 8 bytes.

use crate::{
    abi::{DropReason, Ipv6Address},
    bytes::{Be16, Be32, Plain},
    checksum,
    frame::{Refused, TranslateFrame},
    headers::{
        ETHERNET_LENGTH, ETHERTYPE_IPV4, Ethernet, IPV4_FRAGMENT_MASK, IPV4_FRAGMENT_OFFSET_MASK,
        IPV4_LENGTH, IPV6_FRAGMENT, IPV6_L4_OFFSET, IPV6_LENGTH, Icmp, Ipv4, Ipv6, Ipv6Fragment, L4_OFFSET,
        PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP,
    },
    ipv6::{self, Header},
    mapped,
    mapped_tables::MappedTables,
};

const UNREACHABLE: u8 = 3;
const TIME_EXCEEDED: u8 = 11;
const FRAGMENTATION_NEEDED: u8 = 4;
const UNREACHABLE_V6: u8 = 1;
const TOO_BIG_V6: u8 = 2;
const TIME_EXCEEDED_V6: u8 = 3;
const PARAMETER_PROBLEM_V6: u8 = 4;
/// The smallest MTU of an IPv6 link (RFC 8200, 5).
const SMALLEST_MTU: u32 = 1280;
/// By how much an IPv6 header is longer.
const LONGER: u32 = (IPV6_LENGTH - IPV4_LENGTH) as u32;
/// And by how much that of a fragment.
const FRAGMENT_LONGER: u32 = LONGER + size_of::<Ipv6Fragment>() as u32;
/// Who seems to have sent the error of a router that has no IPv4 address (RFC 7600, 4.8).
const SOME_ROUTER: Be32 = Be32::new(0xc000_0008);
/// What is quoted behind an IP header: ports, and TCP's sequence number.
type Rest = [Be32; 2];

/// Behind the IP header of an error.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Error<Ip: Copy> {
    icmp: Icmp,
    quote: Ip,
    rest: Rest,
}

/// Behind the quoted IP header of a fragment.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Fragment {
    header: Ipv6Fragment,
    rest: Rest,
}

// SAFETY: packed, no padding, integers only.
unsafe impl Plain for Fragment {}
// SAFETY: as above.
unsafe impl Plain for Error<Ipv4> {}
// SAFETY: as above.
unsafe impl Plain for Error<Ipv6> {}

/// Offset of the quote of an error in an IPv6 packet.
const QUOTE_V6: usize = IPV6_L4_OFFSET + size_of::<Icmp>();
const ERROR_V4: usize = size_of::<Error<Ipv4>>();
const ERROR_V6: usize = size_of::<Error<Ipv6>>();
/// Bytes of an IPv4 packet with such an error.
const RENEWED_V4: usize = IPV4_LENGTH + ERROR_V4;
/// Of an IPv4 packet that becomes an IPv6 one with such an error.
const RENEWED_V6: usize = IPV4_LENGTH + ERROR_V6;

/// An error about what a frontend has sent to an IPv6 client. Returns false, and leaves the packet as it is,
/// where it is about something else.
#[inline(always)]
pub fn to_ipv4<F: TranslateFrame, T: MappedTables>(
    frame: &mut F,
    tables: &T,
    ip: &Header,
    own: Be32,
) -> Result<bool, DropReason> {
    let Some(error) = frame.at::<Error<Ipv6>>(IPV6_L4_OFFSET) else {
        return Ok(false);
    };
    let (icmp, mut rest) = (error.icmp, error.rest);
    let Some(quote) = Header::read(frame, QUOTE_V6) else {
        return Ok(false);
    };
    let (mut protocol, mut payload) = (quote.next_header, u32::from(quote.payload_length.get()));
    if protocol == IPV6_FRAGMENT {
        // Later ones do not say whose they are, but each of them has a first one.
        let Some(fragment) = frame.at::<Fragment>(QUOTE_V6 + IPV6_LENGTH) else {
            return Ok(false);
        };
        let header = fragment.header;
        if header.fragment.get() >> 3 != 0 {
            return Ok(false);
        }
        (protocol, rest) = (header.next_header, fragment.rest);
        payload = payload.saturating_sub(size_of::<Ipv6Fragment>() as u32);
    }
    // A datagram that is split comes in fragments, and TCP's segments never do.
    let longer = match protocol {
        PROTOCOL_TCP => LONGER,
        PROTOCOL_UDP => FRAGMENT_LONGER,
        _ => return Ok(false),
    };
    let meaning = Meaning::in_ipv4(&icmp, longer);
    if meaning.is_none() {
        return Ok(false);
    }
    let port = Be16::new((rest[0].get() >> 16) as u16);
    let is_ours =
        tables.own_mapped(&quote.source) == Some(own) && mapped::is_frontend(tables, protocol, own, port);
    if !is_ours {
        return Ok(false);
    }
    let Some((client, _)) = mapped::known(tables, &quote.destination) else {
        return Ok(false);
    };
    let quoted = ipv6::to_ipv4(&quote, protocol, payload, own, client);
    let mut icmp = meaning.header();
    // The quoted header's sum is zero in one's complement, as its checksum is right.
    icmp.checksum = checksum::finish(meaning.sum() + 0xffff + sum_of_rest(rest));
    let header = ipv6::to_ipv4(ip, PROTOCOL_ICMP, ERROR_V4 as u32, SOME_ROUTER, own);
    let ethernet = *frame.at::<Ethernet>(0).ok_or(Refused)?;
    frame.put_ipv4(&header)?;
    frame.renew::<RENEWED_V4>(0)?;
    *frame.at_mut::<Ethernet>(0).ok_or(Refused)? = Ethernet {
        ethertype: ETHERTYPE_IPV4,
        ..ethernet
    };
    *frame.at_mut::<Ipv4>(ETHERNET_LENGTH).ok_or(Refused)? = header;
    *frame.at_mut::<Error<Ipv4>>(L4_OFFSET).ok_or(Refused)? = Error {
        icmp,
        quote: quoted,
        rest,
    };
    Ok(true)
}

/// An error about what an IPv6 client has sent. Its Ethernet header is yet to be written.
#[inline(always)]
pub fn to_ipv6<F: TranslateFrame, T: MappedTables>(
    frame: &mut F,
    tables: &T,
    ip: &Ipv4,
    own: &Ipv6Address,
    client: &Ipv6Address,
) -> Result<(), DropReason> {
    if ip.fragment.raw() & IPV4_FRAGMENT_MASK.raw() != 0 {
        return Err(DropReason::Fragment);
    }
    let error = frame.at::<Error<Ipv4>>(L4_OFFSET).ok_or(DropReason::Truncated)?;
    let (quote, rest) = (error.quote, error.rest);
    let meaning = Meaning::in_ipv6(&error.icmp);
    if meaning.is_none() {
        return Err(DropReason::NotAFrontend);
    }
    if quote.version_and_length != 0x45 || quote.fragment.raw() & IPV4_FRAGMENT_OFFSET_MASK.raw() != 0 {
        return Err(DropReason::IpOptions);
    }
    // It went the other way: from the client to the frontend.
    let is_of_client = { quote.source } == { ip.destination };
    let dialled = tables.own_ipv6(quote.destination).filter(|_| is_of_client);
    let dialled = dialled.ok_or(DropReason::NotAFrontend)?;
    let payload = u32::from(quote.total_length.get()).saturating_sub(IPV4_LENGTH as u32);
    let quoted = ipv6::of_ipv4(&quote, quote.protocol, payload, client, &dialled);
    let mut icmp = meaning.header();
    icmp.checksum = checksum::finish(
        meaning.sum()
            + sum_of(own)
            + sum_of(client)
            + u32::from(Be16::new(ERROR_V6 as u16).raw())
            + u32::from(Be16::new(u16::from(PROTOCOL_ICMPV6)).raw())
            + sum_of_header(&quoted, client, &dialled)
            + sum_of_rest(rest),
    );
    // What a peer has sent does not always change its length at its end. What is left behind the message is
    // no part of it.
    if frame.renew::<RENEWED_V6>(0).is_err() {
        frame.lengthen(ETHERNET_LENGTH + RENEWED_V6)?;
    }
    frame.put_ipv6(&ipv6::of_ipv4(ip, PROTOCOL_ICMPV6, ERROR_V6 as u32, own, client))?;
    *frame.at_mut::<Error<Ipv6>>(IPV6_L4_OFFSET).ok_or(Refused)? = Error {
        icmp,
        quote: quoted,
        rest,
    };
    Ok(())
}

#[inline(always)]
fn sum_of_rest(rest: Rest) -> u32 {
    checksum::sum32(rest[0]) + checksum::sum32(rest[1])
}

#[inline(always)]
fn sum_of(address: &Ipv6Address) -> u32 {
    let [first, second, third, fourth] = address.0;
    checksum::sum32(first) + checksum::sum32(second) + checksum::sum32(third) + checksum::sum32(fourth)
}

#[inline(always)]
fn sum_of_header(header: &Ipv6, source: &Ipv6Address, destination: &Ipv6Address) -> u32 {
    let (first, length) = (header.version_class_label, header.payload_length);
    checksum::sum32(first)
        + u32::from(length.raw())
        + u32::from(u16::from_ne_bytes([header.next_header, header.hop_limit]))
        + sum_of(source)
        + sum_of(destination)
}

/// What an error says, in the terms of one version. Not an `Option` of it: of what is undefined in a `None`,
/// the verifier refuses a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Meaning {
    kind: u8,
    code: u8,
    /// The MTU of "too big", or the pointer of "parameter problem", which is where an MTU is.
    mtu: u16,
}

impl Meaning {
    /// Nothing that the other version can say, or that is of use.
    const NONE: Self = Self::new(0xff, 0, 0);

    const fn new(kind: u8, code: u8, mtu: u16) -> Self {
        Self { kind, code, mtu }
    }

    const fn is_none(self) -> bool {
        self.kind == Self::NONE.kind
    }

    /// What an error of ICMPv6 says, in ICMP's terms. The headers of IPv6 are longer by so much.
    #[inline(always)]
    const fn in_ipv4(icmp: &Icmp, longer: u32) -> Self {
        match (icmp.kind, icmp.code) {
            (UNREACHABLE_V6, 1) => Self::new(UNREACHABLE, 10, 0),
            (UNREACHABLE_V6, 4) => Self::new(UNREACHABLE, 3, 0),
            (UNREACHABLE_V6, _) => Self::new(UNREACHABLE, 1, 0),
            (TOO_BIG_V6, _) => {
                let (high, low) = (icmp.unused, icmp.next_hop_mtu);
                let mtu = (high.get() as u32) << 16 | low.get() as u32;
                if mtu < SMALLEST_MTU {
                    // No router may ask for less (RFC 8201, 4).
                    return Self::NONE;
                }
                Self::new(UNREACHABLE, FRAGMENTATION_NEEDED, within_16_bits(mtu - longer))
            }
            (TIME_EXCEEDED_V6, code) => Self::new(TIME_EXCEEDED, code, 0),
            _ => Self::NONE,
        }
    }

    /// What an error of ICMP says, in ICMPv6's terms.
    #[inline(always)]
    const fn in_ipv6(icmp: &Icmp) -> Self {
        match (icmp.kind, icmp.code) {
            // The protocol: ICMPv6 points to the next header.
            (UNREACHABLE, 2) => Self::new(PARAMETER_PROBLEM_V6, 1, 6),
            (UNREACHABLE, 3) => Self::new(UNREACHABLE_V6, 4, 0),
            (UNREACHABLE, FRAGMENTATION_NEEDED) => {
                let mtu = icmp.next_hop_mtu;
                let mtu = mtu.get() as u32 + LONGER;
                let mtu = if mtu < SMALLEST_MTU { SMALLEST_MTU } else { mtu };
                Self::new(TOO_BIG_V6, 0, within_16_bits(mtu))
            }
            (UNREACHABLE, 9 | 10 | 13) => Self::new(UNREACHABLE_V6, 1, 0),
            (UNREACHABLE, _) => Self::new(UNREACHABLE_V6, 0, 0),
            (TIME_EXCEEDED, code) => Self::new(TIME_EXCEEDED_V6, code, 0),
            _ => Self::NONE,
        }
    }

    /// The header of such an error, its checksum yet to be set.
    #[inline(always)]
    const fn header(self) -> Icmp {
        Icmp {
            kind: self.kind,
            code: self.code,
            checksum: Be16::new(0),
            unused: Be16::new(0),
            next_hop_mtu: Be16::new(self.mtu),
        }
    }

    /// The sum of that header.
    #[inline(always)]
    fn sum(self) -> u32 {
        u32::from(u16::from_ne_bytes([self.kind, self.code])) + u32::from(Be16::new(self.mtu).raw())
    }
}

const fn within_16_bits(mtu: u32) -> u16 {
    if mtu > 0xffff { 0xffff } else { mtu as u16 }
}

#[cfg(test)]
mod tests;
