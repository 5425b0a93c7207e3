//! A rule's expressions as nf_tables' attributes, numbered as in `linux/netfilter/nf_tables.h`. Imports the
//! rulesets' types only.

use super::ruleset::{Expression, Family, Meta, Register};
use crate::datapath::netlink::attributes::Attributes;

/// The object type "counter", in objects and in references to them.
pub(super) const COUNTER: u32 = 1;
/// The name of an anonymous map in a request; the kernel puts a number in it.
pub(super) const ANONYMOUS_MAP: &str = "__map%d";

const VERDICT_REGISTER: u32 = 0;
const DROP: i32 = 0;
const ACCEPT: i32 = 1;
pub(super) const VERDICT_GOTO: i32 = -4;
/// `NFT_CT_STATE`, and the bit that it has for `IP_CT_NEW`.
const CONNECTION_STATE: u32 = 0;
const STATE_NEW: u32 = 1 << 3;
const LOOKUP_INVERTED: u32 = 1;
const NAT_SOURCE: u32 = 0;
const NAT_DESTINATION: u32 = 1;
/// `NF_NAT_RANGE_PROTO_SPECIFIED`
const NAT_WITH_PORT: u32 = 2;
const REJECT_ICMP: u32 = 0;
const REJECT_RESET: u32 = 1;
const PORT_UNREACHABLE: u8 = 3;
const OPTION_OF_TCP: u32 = 1;
const SEGMENT_SIZE_OPTION: u8 = 2;

/// The chains that an expression's anonymous map leads to, if it has such a map.
pub(super) fn map(expression: &Expression) -> Option<&[String]> {
    match expression {
        Expression::Rotate(chains) => Some(chains),
        Expression::Meta(..)
        | Expression::Payload { .. }
        | Expression::Mask(..)
        | Expression::Equal(..)
        | Expression::Unequal(..)
        | Expression::In(_)
        | Expression::NotIn(_)
        | Expression::GotoBy(_)
        | Expression::Goto(_)
        | Expression::ConnectionIsNew
        | Expression::Constant(..)
        | Expression::SetMark
        | Expression::Count(_)
        | Expression::DestinationNat { .. }
        | Expression::SourceNat
        | Expression::ClampSegmentSize
        | Expression::Drop
        | Expression::Accept
        | Expression::Reset
        | Expression::PortUnreachable => None,
    }
}

/// Encodes an expression; `map` is the number of its anonymous map, if it has one.
pub(super) fn encode(family: Family, expression: &Expression, map: Option<u32>) -> Vec<Attributes> {
    let new = Attributes::new;
    let first = Register::First as u32;
    let one = match expression {
        Expression::Meta(key, register) => {
            named("meta", new().number(1, *register as u32).number(2, *key as u32))
        }
        Expression::Payload {
            header,
            offset,
            length,
            register,
        } => named(
            "payload",
            new()
                .number(1, *register as u32)
                .number(2, *header as u32)
                .number(3, *offset)
                .number(4, *length),
        ),
        Expression::Mask(register, mask) => named(
            "bitwise",
            new()
                .number(1, *register as u32)
                .number(2, *register as u32)
                .number(3, u32::try_from(mask.len()).unwrap_or(u32::MAX))
                .nested(4, new().bytes(1, mask))
                .nested(5, new().bytes(1, &vec![0; mask.len()])),
        ),
        Expression::Equal(register, value) => compare(*register, 0, value),
        Expression::Unequal(register, value) => compare(*register, 1, value),
        Expression::In(set) => named("lookup", new().text(1, set).number(2, first)),
        Expression::NotIn(set) => named(
            "lookup",
            new().text(1, set).number(2, first).number(5, LOOKUP_INVERTED),
        ),
        Expression::GotoBy(map) => named(
            "lookup",
            new().text(1, map).number(2, first).number(3, VERDICT_REGISTER),
        ),
        Expression::Rotate(chains) => {
            let modulus = u32::try_from(chains.len()).unwrap_or(u32::MAX);
            let count = new()
                .number(1, first)
                .number(2, modulus)
                .number(3, 0)
                .number(4, 0);
            let lookup = new()
                .text(1, ANONYMOUS_MAP)
                .number(2, first)
                .number(3, VERDICT_REGISTER)
                .number(4, map.unwrap_or_default());
            return vec![named("numgen", count), named("lookup", lookup)];
        }
        Expression::Constant(register, value) => named(
            "immediate",
            new().number(1, *register as u32).nested(2, new().bytes(1, value)),
        ),
        Expression::SetMark => named("meta", new().number(2, Meta::Mark as u32).number(3, first)),
        Expression::Count(name) => named("objref", new().number(1, COUNTER).text(2, name)),
        Expression::DestinationNat { address, port } => {
            let nat = nat(family, NAT_DESTINATION).number(3, *address as u32);
            let nat = match port {
                None => nat,
                Some(port) => nat.number(5, *port as u32).number(7, NAT_WITH_PORT),
            };
            named("nat", nat)
        }
        Expression::SourceNat => named("nat", nat(family, NAT_SOURCE).number(3, first)),
        Expression::ClampSegmentSize => named(
            "exthdr",
            new()
                .byte(2, SEGMENT_SIZE_OPTION)
                .number(3, 2)
                .number(4, 2)
                .number(6, OPTION_OF_TCP)
                .number(7, first),
        ),
        Expression::Drop => verdict(DROP, None),
        Expression::Accept => verdict(ACCEPT, None),
        Expression::Goto(chain) => verdict(VERDICT_GOTO, Some(chain)),
        Expression::ConnectionIsNew => {
            let state = new().number(1, first).number(2, CONNECTION_STATE);
            // The state is a number in host byte order.
            let mask = new()
                .number(1, first)
                .number(2, first)
                .number(3, 4)
                .nested(4, new().bytes(1, &STATE_NEW.to_ne_bytes()))
                .nested(5, new().bytes(1, &[0; 4]));
            return vec![
                named("ct", state),
                named("bitwise", mask),
                compare(Register::First, 1, &[0; 4]),
            ];
        }
        Expression::Reset => named("reject", new().number(1, REJECT_RESET).byte(2, 0)),
        Expression::PortUnreachable => {
            named("reject", new().number(1, REJECT_ICMP).byte(2, PORT_UNREACHABLE))
        }
    };
    vec![one]
}

fn named(name: &str, data: Attributes) -> Attributes {
    Attributes::new().text(1, name).nested(2, data)
}

fn compare(register: Register, operator: u32, value: &[u8]) -> Attributes {
    let data = Attributes::new()
        .number(1, register as u32)
        .number(2, operator)
        .nested(3, Attributes::new().bytes(1, value));
    named("cmp", data)
}

fn nat(family: Family, kind: u32) -> Attributes {
    let number = match family {
        Family::Ip | Family::Bridge => libc::NFPROTO_IPV4,
    };
    Attributes::new().number(1, kind).number(2, number as u32)
}

fn verdict(code: i32, chain: Option<&str>) -> Attributes {
    let mut verdict = Attributes::new().bytes(1, &code.to_be_bytes());
    if let Some(chain) = chain {
        verdict = verdict.text(2, chain);
    }
    let data = Attributes::new()
        .number(1, VERDICT_REGISTER)
        .nested(2, Attributes::new().nested(2, verdict));
    named("immediate", data)
}
