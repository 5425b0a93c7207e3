//! Reads the filter table of iptables-nft: rules of nf_tables, some of whose expressions are xtables'
//! extensions. Numbers are those of `linux/netfilter/nf_tables.h`.

use std::{collections::BTreeMap, net::Ipv4Addr};

use nix::errno::Errno;

use super::{
    extensions::{self, OPENING_FLAGS, OPENING_MASK, array},
    ruleset::{Action, Chains, Condition, Rule, Subject},
};
use crate::{
    datapath::netlink::{
        Connection, Message, NetlinkError,
        attributes::{Attributes, all, find, text},
    },
    model::Subnet,
};

const TABLE: &str = "filter";
/// `NFNL_SUBSYS_NFTABLES`, and its request for rules.
pub(super) const GET_RULE: u16 = 10 << 8 | 7;
/// `NFT_REG_VERDICT`
const VERDICT: u32 = 0;
/// Bytes of `nfgenmsg` before the attributes.
pub(super) const HEADER_BYTES: usize = 4;

/// The chains of the table; none where nf_tables or the table is missing.
pub(super) fn read(netfilter: &mut Connection) -> Result<Chains, NetlinkError> {
    let mut payload = vec![libc::NFPROTO_IPV4 as u8, 0, 0, 0];
    payload.extend(Attributes::new().text(1, TABLE).into_bytes());
    let request = Message {
        kind: GET_RULE,
        flags: 0,
        payload,
    };
    let listed = match netfilter.dump(&request) {
        Err(error)
            if matches!(
                error.errno(),
                Some(Errno::ENOENT | Errno::EINVAL | Errno::EOPNOTSUPP)
            ) =>
        {
            return Ok(Chains::new());
        }
        listed => listed?,
    };
    let mut chains = Chains::new();
    for message in listed {
        let attributes = message.payload.get(HEADER_BYTES..).unwrap_or_default();
        if find(attributes, 1).map(text).as_deref() != Some(TABLE) {
            continue;
        }
        if let Some(chain) = find(attributes, 2).map(text) {
            let expressions = find(attributes, 4).unwrap_or_default();
            chains.entry(chain).or_default().push(rule(expressions));
        }
    }
    Ok(chains)
}

/// What a register holds.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Loaded {
    Source,
    Destination,
    SourcePort,
    DestinationPort,
    Protocol,
    TcpFlags,
    In,
    Out,
    State,
    /// One of the above, of which a mask is compared.
    Masked(Box<Loaded>, Vec<u8>),
    Unknown(&'static str),
}

/// A rule from its expressions.
pub(super) fn rule(expressions: &[u8]) -> Rule {
    let mut registers = BTreeMap::<u32, Loaded>::new();
    let mut conditions = Vec::<Condition>::new();
    let mut action = Action::Continue(String::new());
    for expression in all(expressions, 1) {
        let name = find(expression, 1).map(text).unwrap_or_default();
        let data = find(expression, 2).unwrap_or_default();
        match name.as_str() {
            "counter" | "log" => {}
            "payload" => drop(number(data, 1).map(|to| registers.insert(to, payload(data)))),
            "meta" => drop(number(data, 1).map(|to| registers.insert(to, meta(data)))),
            "ct" => drop(number(data, 1).map(|to| registers.insert(to, tracked(data)))),
            "bitwise" => drop(bitwise(data, &mut registers)),
            "cmp" => conditions.push(compared(data, &registers)),
            "range" => conditions.push(ranged(data, &registers)),
            "match" => {
                let name = find(data, 1).map(text).unwrap_or_default();
                let revision = number(data, 2).unwrap_or_default();
                let info = find(data, 3).unwrap_or_default();
                conditions.extend(extensions::conditions(&name, revision as u8, info));
            }
            "target" => action = extensions::target(&find(data, 1).map(text).unwrap_or_default()),
            "reject" => action = Action::Reject,
            "immediate" => match number(data, 1) {
                // A port to translate to, a mark to set.
                Some(register) if register != VERDICT => {
                    drop(registers.insert(register, Loaded::Unknown("immediate")));
                }
                Some(_) | None => action = verdict(data),
            },
            // A map decides about the packet.
            "lookup" if number(data, 3) == Some(VERDICT) => {
                action = Action::Other("a verdict map".to_owned());
            }
            "queue" => action = Action::Other("queue".to_owned()),
            other => conditions.push(unknown(other)),
        }
    }
    Rule {
        conditions: joined(conditions),
        action,
    }
}

fn unknown(name: &str) -> Condition {
    Condition::new(Subject::Other(name.to_owned()), false)
}

/// Two comparisons of one port, with its first and last, are one range.
fn joined(conditions: Vec<Condition>) -> Vec<Condition> {
    let mut kept = Vec::<Condition>::new();
    for condition in conditions {
        if let (Some(last), false) = (kept.last_mut(), condition.inverted)
            && !last.inverted
            && let (Subject::SourcePorts(first), Subject::SourcePorts(second))
            | (Subject::DestinationPorts(first), Subject::DestinationPorts(second)) =
                (&mut last.subject, &condition.subject)
            && let ([one], [other]) = (first.as_mut_slice(), second.as_slice())
        {
            *one = *one.start().max(other.start())..=*one.end().min(other.end());
            continue;
        }
        kept.push(condition);
    }
    kept
}

pub(super) fn number(attributes: &[u8], kind: u16) -> Option<u32> {
    Some(u32::from_be_bytes(array(find(attributes, kind)?, 0)?))
}

fn payload(data: &[u8]) -> Loaded {
    match (number(data, 2), number(data, 3), number(data, 4)) {
        (Some(1), Some(12), Some(1..=4)) => Loaded::Source,
        (Some(1), Some(16), Some(1..=4)) => Loaded::Destination,
        (Some(1), Some(9), Some(1)) => Loaded::Protocol,
        (Some(2), Some(0), Some(2)) => Loaded::SourcePort,
        (Some(2), Some(2), Some(2)) => Loaded::DestinationPort,
        (Some(2), Some(13), Some(1)) => Loaded::TcpFlags,
        _ => Loaded::Unknown("payload"),
    }
}

fn meta(data: &[u8]) -> Loaded {
    match number(data, 2) {
        Some(3) => Loaded::Unknown("mark"),
        Some(6) => Loaded::In,
        Some(7) => Loaded::Out,
        Some(16) => Loaded::Protocol,
        _ => Loaded::Unknown("meta"),
    }
}

fn tracked(data: &[u8]) -> Loaded {
    match number(data, 2) {
        Some(0) => Loaded::State,
        _ => Loaded::Unknown("ct"),
    }
}

fn bitwise(data: &[u8], registers: &mut BTreeMap<u32, Loaded>) -> Option<()> {
    let (from, to) = (number(data, 1)?, number(data, 2)?);
    let mask = find(data, 4).and_then(|value| find(value, 1))?.to_vec();
    let flips = find(data, 5).and_then(|value| find(value, 1)).unwrap_or_default();
    let loaded = registers
        .get(&from)
        .cloned()
        .unwrap_or(Loaded::Unknown("bitwise"));
    let loaded = if flips.iter().any(|byte| *byte != 0) {
        Loaded::Unknown("bitwise")
    } else {
        Loaded::Masked(Box::new(loaded), mask)
    };
    registers.insert(to, loaded);
    Some(())
}

/// A comparison of a register with a value.
fn compared(data: &[u8], registers: &BTreeMap<u32, Loaded>) -> Condition {
    let compare = || {
        let loaded = registers.get(&number(data, 1)?)?;
        let operation = number(data, 2)?;
        let value = find(find(data, 3)?, 1)?;
        if let (Loaded::SourcePort | Loaded::DestinationPort, 2..=5) = (loaded, operation) {
            let port = u16::from_be_bytes(array(value, 0)?);
            let range = match operation {
                2 => 0..=port.checked_sub(1)?,
                3 => 0..=port,
                4 => port.checked_add(1)?..=u16::MAX,
                _ => port..=u16::MAX,
            };
            return Some(Condition::new(ports(loaded, range)?, false));
        }
        let inverted = match operation {
            0 => false,
            1 => true,
            _ => return None,
        };
        if let Loaded::Masked(state, mask) = loaded
            && **state == Loaded::State
        {
            // `ct state established` is "the mask of it is not zero".
            let bits = u32::from_ne_bytes(array(mask, 0)?);
            let is_zero = value.iter().all(|byte| *byte == 0);
            let states = extensions::states(bits, 1 << 6);
            return is_zero.then(|| Condition::new(Subject::State(states), !inverted));
        }
        Some(Condition::new(equal(loaded, value)?, inverted))
    };
    compare().unwrap_or_else(|| {
        let name = match number(data, 1).and_then(|register| registers.get(&register)) {
            Some(Loaded::Unknown(name)) => name,
            _ => "cmp",
        };
        unknown(name)
    })
}

/// What it means that a register has a value.
fn equal(loaded: &Loaded, value: &[u8]) -> Option<Subject> {
    Some(match loaded {
        Loaded::Source => Subject::Source(subnet(value, None)?),
        Loaded::Destination => Subject::Destination(subnet(value, None)?),
        Loaded::Masked(inner, mask) => match **inner {
            Loaded::Source => Subject::Source(subnet(value, Some(mask))?),
            Loaded::Destination => Subject::Destination(subnet(value, Some(mask))?),
            Loaded::TcpFlags if mask == &[OPENING_MASK] && value == [OPENING_FLAGS] => Subject::Syn,
            _ => return None,
        },
        Loaded::SourcePort | Loaded::DestinationPort => {
            let port = u16::from_be_bytes(array(value, 0)?);
            ports(loaded, port..=port)?
        }
        Loaded::Protocol => Subject::Protocol(*value.first()?),
        Loaded::In => Subject::In(interface(value)),
        Loaded::Out => Subject::Out(interface(value)),
        Loaded::State | Loaded::TcpFlags | Loaded::Unknown(_) => return None,
    })
}

fn ports(loaded: &Loaded, range: std::ops::RangeInclusive<u16>) -> Option<Subject> {
    match loaded {
        Loaded::SourcePort => Some(Subject::SourcePorts(vec![range])),
        Loaded::DestinationPort => Some(Subject::DestinationPorts(vec![range])),
        _ => None,
    }
}

/// A comparison of a register with a range.
fn ranged(data: &[u8], registers: &BTreeMap<u32, Loaded>) -> Condition {
    let range = || {
        let loaded = registers.get(&number(data, 1)?)?;
        let inverted = number(data, 2)? == 1;
        let (first, last) = (find(find(data, 3)?, 1)?, find(find(data, 4)?, 1)?);
        let subject = match loaded {
            Loaded::Source => {
                Subject::SourceRange(Ipv4Addr::from(array::<4>(first, 0)?)..=array::<4>(last, 0)?.into())
            }
            Loaded::Destination => {
                Subject::DestinationRange(Ipv4Addr::from(array::<4>(first, 0)?)..=array::<4>(last, 0)?.into())
            }
            _ => ports(
                loaded,
                u16::from_be_bytes(array(first, 0)?)..=u16::from_be_bytes(array(last, 0)?),
            )?,
        };
        Some(Condition::new(subject, inverted))
    };
    range().unwrap_or_else(|| unknown("range"))
}

/// A network: of the bytes that are compared (a prefix of whole bytes is compared without a mask), or of a
/// mask.
fn subnet(value: &[u8], mask: Option<&[u8]>) -> Option<Subnet> {
    let compared = value.len().min(4);
    let mut address = [0; 4];
    address[..compared].copy_from_slice(&value[..compared]);
    match mask {
        None => Some(Subnet::of(address.into(), 8 * compared as u8)),
        Some(mask) => extensions::subnet(address, array(mask, 0)?),
    }
}

/// An interface's name; if its terminating zero is not compared, the beginning of one.
fn interface(value: &[u8]) -> String {
    match value.split(|byte| *byte == 0).next() {
        Some(name) if name.len() < value.len() => String::from_utf8_lossy(name).into_owned(),
        Some(_) | None => format!("{}+", String::from_utf8_lossy(value)),
    }
}

fn verdict(data: &[u8]) -> Action {
    let Some(verdict) = find(data, 2).and_then(|value| find(value, 2)) else {
        return Action::Other("immediate".to_owned());
    };
    let chain = || find(verdict, 2).map(text).unwrap_or_default();
    match number(verdict, 1).map(u32::cast_signed) {
        Some(0) => Action::Drop,
        Some(1) => Action::Accept,
        Some(-1) => Action::Continue(String::new()),
        Some(-3) => Action::Jump(chain()),
        Some(-4) => Action::Goto(chain()),
        Some(-5) => Action::Return,
        _ => Action::Other("immediate".to_owned()),
    }
}
