//! Extensions of xtables (`-m`, `-j`) as bytes: iptables-legacy has nothing else, and iptables-nft takes them
//! along where nf_tables has no expression of its own. Layouts are those of `linux/netfilter/xt_*.h`. Pure.

use std::net::Ipv4Addr;

use super::ruleset::{Action, Condition, Ports, States, Subject};
use crate::model::Subnet;

/// The bits of `XT_CONNTRACK_*` whose meaning is known here.
mod conntrack {
    pub(super) const STATE: u16 = 1;
    pub(super) const ORIGINAL_SOURCE: u16 = 1 << 2;
    pub(super) const ORIGINAL_DESTINATION_PORT: u16 = 1 << 9;
    pub(super) const DIRECTION: u16 = 1 << 12;
    /// Only says by which name the user asked.
    pub(super) const STATE_ALIAS: u16 = 1 << 13;
}

/// FIN, SYN, RST and ACK; and SYN.
pub(super) const OPENING_MASK: u8 = 0x17;
pub(super) const OPENING_FLAGS: u8 = 0x02;

/// The conditions of a match. An unknown one, or a part of one that is unknown, is a condition by its name.
pub(super) fn conditions(name: &str, revision: u8, data: &[u8]) -> Vec<Condition> {
    known(name, revision, data)
        .unwrap_or_else(|| vec![Condition::new(Subject::Other(name.to_owned()), false)])
}

fn known(name: &str, revision: u8, data: &[u8]) -> Option<Vec<Condition>> {
    Some(match (name, revision) {
        ("comment", _) => Vec::new(),
        ("tcp", 0) => tcp(data)?,
        ("udp", 0) => udp(data)?,
        ("multiport", 0 | 1) => vec![multiport(revision, data)?],
        ("conntrack", 1..=3) => self::conntrack(revision, data)?,
        ("state", _) => {
            let bits = u32::from_ne_bytes(array(data, 0)?);
            vec![Condition::new(Subject::State(states(bits, 1 << 6)), false)]
        }
        ("iprange", 1) => iprange(data)?,
        _ => return None,
    })
}

fn tcp(data: &[u8]) -> Option<Vec<Condition>> {
    let [option, mask, flags, inverted] = array(data, 8)?;
    let mut conditions = ports(data, inverted)?;
    if mask == OPENING_MASK && flags == OPENING_FLAGS {
        conditions.push(Condition::new(Subject::Syn, inverted & 4 != 0));
    } else if mask != 0 {
        conditions.push(Condition::new(
            Subject::Other("tcp --tcp-flags".to_owned()),
            false,
        ));
    }
    if option != 0 {
        conditions.push(Condition::new(
            Subject::Other("tcp --tcp-option".to_owned()),
            false,
        ));
    }
    Some(conditions)
}

fn udp(data: &[u8]) -> Option<Vec<Condition>> {
    ports(data, *data.get(8)?)
}

/// Two ranges of ports, for source and destination, and which of them are inverted.
fn ports(data: &[u8], inverted: u8) -> Option<Vec<Condition>> {
    let number = |offset| Some(u16::from_ne_bytes(array(data, offset)?));
    let source = vec![number(0)?..=number(2)?];
    let destination = vec![number(4)?..=number(6)?];
    let all = |ports: &Ports| {
        ports
            .iter()
            .any(|range| *range.start() == 0 && *range.end() == u16::MAX)
    };
    let mut conditions = Vec::new();
    if !all(&source) || inverted & 1 != 0 {
        conditions.push(Condition::new(Subject::SourcePorts(source), inverted & 1 != 0));
    }
    if !all(&destination) || inverted & 2 != 0 {
        conditions.push(Condition::new(
            Subject::DestinationPorts(destination),
            inverted & 2 != 0,
        ));
    }
    Some(conditions)
}

fn multiport(revision: u8, data: &[u8]) -> Option<Condition> {
    let [kind, count] = array(data, 0)?;
    let port = |index: usize| Some(u16::from_ne_bytes(array(data, 2 + 2 * index)?));
    let mut ports = Ports::new();
    let mut index = 0;
    while index < usize::from(count) {
        let first = port(index)?;
        let is_range = revision > 0 && *data.get(32 + index)? != 0;
        index += 1;
        let last = if is_range { port(index)? } else { first };
        index += usize::from(is_range);
        ports.push(first..=last);
    }
    let inverted = revision > 0 && *data.get(47)? != 0;
    let subject = match kind {
        0 => Subject::SourcePorts(ports),
        1 => Subject::DestinationPorts(ports),
        _ => Subject::EitherPort(ports),
    };
    Some(Condition::new(subject, inverted))
}

fn conntrack(revision: u8, data: &[u8]) -> Option<Vec<Condition>> {
    let short = |offset| Some(u16::from_ne_bytes(array(data, offset)?));
    let (asked, inverted) = (short(146)?, short(148)?);
    let state_bits = if revision == 1 {
        u32::from(*data.get(150)?)
    } else {
        u32::from(short(150)?)
    };
    let mut conditions = Vec::new();
    let mut rest = asked & !conntrack::STATE_ALIAS;
    let mut take = |flag: u16, subject: Subject| {
        if asked & flag != 0 {
            conditions.push(Condition::new(subject, inverted & flag != 0));
            rest &= !flag;
        }
    };
    take(conntrack::STATE, Subject::State(states(state_bits, 1 << 8)));
    if let Some(subnet) = subnet(array(data, 0)?, array(data, 16)?) {
        take(conntrack::ORIGINAL_SOURCE, Subject::OriginalSource(subnet));
    }
    let first = array(data, 140)?;
    let ports = if revision == 3 {
        u16::from_ne_bytes(first)..=u16::from_ne_bytes(array(data, 156)?)
    } else {
        u16::from_be_bytes(first)..=u16::from_be_bytes(first)
    };
    take(
        conntrack::ORIGINAL_DESTINATION_PORT,
        Subject::OriginalDestinationPorts(vec![ports]),
    );
    take(conntrack::DIRECTION, Subject::IsOriginal);
    if rest != 0 {
        conditions.push(Condition::new(Subject::Other("conntrack".to_owned()), false));
    }
    Some(conditions)
}

/// The states of a mask (`XT_CONNTRACK_STATE_BIT`); the bit of untracked packets depends on the match.
pub(super) fn states(bits: u32, untracked: u32) -> States {
    let (established, new, translated) = (1 << 1, 1 << 3, if untracked == 1 << 8 { 1 << 7 } else { 0 });
    States {
        new: bits & new != 0,
        established: bits & established != 0,
        translated: bits & translated != 0,
        others: bits & !(new | established | translated) != 0,
    }
}

fn iprange(data: &[u8]) -> Option<Vec<Condition>> {
    let address = |offset| Some(Ipv4Addr::from(array::<4>(data, offset)?));
    let flags = *data.get(64)?;
    let mut conditions = Vec::new();
    if flags & 1 != 0 {
        let range = address(0)?..=address(16)?;
        conditions.push(Condition::new(Subject::SourceRange(range), flags & 16 != 0));
    }
    if flags & 2 != 0 {
        let range = address(32)?..=address(48)?;
        conditions.push(Condition::new(Subject::DestinationRange(range), flags & 32 != 0));
    }
    Some(conditions)
}

/// A network from its address and mask; `None` if the mask is no prefix.
pub(super) fn subnet(address: [u8; 4], mask: [u8; 4]) -> Option<Subnet> {
    let mask = u32::from_be_bytes(mask);
    (mask.leading_ones() + mask.trailing_zeros() >= 32 || mask == 0)
        .then(|| Subnet::of(address.into(), mask.leading_ones() as u8))
}

/// What a target does, by its name. One that only notes something lets the packet go on.
pub(super) fn target(name: &str) -> Action {
    match name {
        "ACCEPT" => Action::Accept,
        "DROP" => Action::Drop,
        "REJECT" => Action::Reject,
        "RETURN" => Action::Return,
        "AUDIT" | "CHECKSUM" | "CLASSIFY" | "CONNMARK" | "CONNSECMARK" | "DSCP" | "LED" | "LOG" | "MARK"
        | "NFLOG" | "RATEEST" | "SECMARK" | "SET" | "TCPMSS" | "TOS" | "TRACE" | "TTL" | "ULOG" => {
            Action::Continue(name.to_owned())
        }
        other => Action::Other(other.to_owned()),
    }
}

/// Bytes from an offset on, if there are so many.
pub(super) fn array<const N: usize>(data: &[u8], offset: usize) -> Option<[u8; N]> {
    data.get(offset..offset + N)?.try_into().ok()
}
