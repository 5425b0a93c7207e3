//! nf_tables' messages: the steps of a transaction as bytes, and what the kernel lists. Numbers are those of
//! `linux/netfilter/nf_tables.h`, in its order. Knows the rulesets' types, not what they are for.

use super::{
    difference::{Elements, Operation},
    expression::{self, COUNTER},
    ruleset::{Chain, Content, Family, HookKind, Rule, Set, Type},
};
use crate::datapath::netlink::{
    Message,
    attributes::{Attributes, all, find, long, text},
};

/// The name of our tables.
pub(super) const TABLE: &str = "mesh";

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NEW_TABLE: u16 = 0;
const GET_TABLE: u16 = 1;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const DELETE_CHAIN: u16 = 5;
const NEW_RULE: u16 = 6;
const DELETE_RULE: u16 = 8;
const NEW_SET: u16 = 9;
const NEW_ELEMENTS: u16 = 12;
const GET_ELEMENTS: u16 = 13;
const DELETE_ELEMENTS: u16 = 14;
const NEW_OBJECT: u16 = 18;
const GET_OBJECT: u16 = 19;
const DELETE_OBJECT: u16 = 20;

const CREATE: u16 = netlink_packet_core::NLM_F_CREATE;
const APPEND: u16 = netlink_packet_core::NLM_F_APPEND;

/// The attribute that holds an item of any list.
const LIST_ITEM: u16 = 1;

const NO_FAMILY: u8 = 0;
/// Bytes of `nfgenmsg` before the attributes.
const HEADER_BYTES: usize = 4;
/// Elements in one message: their list is one attribute, whose length is a 16-bit number.
const ELEMENTS_AT_ONCE: usize = 500;

const SET_IS_ANONYMOUS: u32 = 0x1;
const SET_IS_CONSTANT: u32 = 0x2;
const SET_IS_MAP: u32 = 0x8;
const VERDICT_TYPE: u32 = 0xffff_ff00;
/// `nft`'s number for a type that is a plain integer.
const INTEGER_TYPE: u32 = 4;
/// `nft`'s mark for a map whose keys are in host byte order.
const HOST_BYTE_ORDER: [u8; 6] = [0, 4, 1, 0, 0, 0];

/// Encodes a transaction; `initial` gives the value that a new counter starts with.
pub(super) fn transaction(operations: &[Operation<'_>], initial: impl Fn(&str) -> u64) -> Vec<Message> {
    // Within a transaction, new sets are referred to by number.
    let mut next_set = 1;
    let mut messages = vec![batch(BATCH_BEGIN)];
    for operation in operations {
        messages.extend(encode(operation, &initial, &mut next_set));
    }
    messages.push(batch(BATCH_END));
    messages
}

/// The operation that a message of the transaction belongs to.
pub(super) fn culprit<'a>(operations: &'a [Operation<'a>], message: usize) -> Option<&'a Operation<'a>> {
    let mut next_set = 1;
    let mut before = 1;
    operations.iter().find(|operation| {
        before += encode(operation, &|_| 0, &mut next_set).len();
        message < before
    })
}

fn encode(operation: &Operation<'_>, initial: &impl Fn(&str) -> u64, next_set: &mut u32) -> Vec<Message> {
    let one = match operation {
        Operation::AddTable(family, comment) => {
            let attributes = Attributes::new()
                .text(1, TABLE)
                .number(2, 0)
                .bytes(6, &comment_data(0, comment));
            message(*family, NEW_TABLE, CREATE, attributes)
        }
        Operation::DeleteTable(family) => message(*family, DELETE_TABLE, 0, Attributes::new().text(1, TABLE)),
        Operation::AddCounter(family, name) => {
            let values = Attributes::new().long(1, 0).long(2, initial(name));
            message(*family, NEW_OBJECT, CREATE, object(name).nested(4, values))
        }
        Operation::DeleteCounter(family, name) => message(*family, DELETE_OBJECT, 0, object(name)),
        Operation::AddSet(family, name, set) => {
            let number = *next_set;
            *next_set += 1;
            message(*family, NEW_SET, CREATE, named_set(name, set, number))
        }
        Operation::AddElements(family, name, list) => {
            return elements(*family, NEW_ELEMENTS, CREATE, name, list).collect();
        }
        Operation::DeleteElements(family, name, list) => {
            return elements(*family, DELETE_ELEMENTS, 0, name, list).collect();
        }
        Operation::AddChain(family, name, new) => {
            message(*family, NEW_CHAIN, CREATE, hooked(chain(3, name), new))
        }
        Operation::DeleteChain(family, name) => message(*family, DELETE_CHAIN, 0, chain(3, name)),
        Operation::AddRule(family, name, new) => return rule(*family, name, new, next_set),
        Operation::Flush(family, name) => message(*family, DELETE_RULE, 0, chain(2, name)),
    };
    vec![one]
}

/// Asks for a table by its name.
pub(super) fn get_table(family: Family) -> Message {
    message(family, GET_TABLE, 0, Attributes::new().text(1, TABLE))
}

/// The kernel's handle of a table; never reused.
pub(super) fn table_handle(message: &Message) -> Option<u64> {
    long(find(attributes(message), 4)?)
}

/// Asks for the elements of a set.
pub(super) fn get_elements(family: Family, set: &str) -> Message {
    let attributes = Attributes::new().text(1, TABLE).text(2, set);
    message(family, GET_ELEMENTS, 0, attributes)
}

/// The keys in one message of a set's elements.
pub(super) fn keys(message: &Message) -> Vec<Vec<u8>> {
    let list = find(attributes(message), 3).unwrap_or_default();
    all(list, LIST_ITEM)
        .filter_map(|element| Some(find(find(element, 1)?, 1)?.to_vec()))
        .collect()
}

/// Asks for all named counters of our table.
pub(super) fn get_counters(family: Family) -> Message {
    let attributes = Attributes::new().text(1, TABLE).number(3, COUNTER);
    message(family, GET_OBJECT, 0, attributes)
}

/// A named counter of our table: its name and the packets it has counted.
pub(super) fn counter(message: &Message) -> Option<(String, u64)> {
    let attributes = attributes(message);
    if text(find(attributes, 1)?) != TABLE || find(attributes, 3)? != COUNTER.to_be_bytes() {
        return None;
    }
    Some((text(find(attributes, 2)?), long(find(find(attributes, 4)?, 2)?)?))
}

fn attributes(message: &Message) -> &[u8] {
    message.payload.get(HEADER_BYTES..).unwrap_or_default()
}

fn message(family: Family, kind: u16, flags: u16, attributes: Attributes) -> Message {
    let number = match family {
        Family::Ip => libc::NFPROTO_IPV4,
        Family::Bridge => libc::NFPROTO_BRIDGE,
    };
    with_header(number as u8, 0, (SUBSYSTEM << 8) | kind, flags, attributes)
}

fn batch(kind: u16) -> Message {
    with_header(NO_FAMILY, SUBSYSTEM, kind, 0, Attributes::new())
}

/// `nfgenmsg`: family, version, and a number that only batches use.
fn with_header(family: u8, resource: u16, kind: u16, flags: u16, attributes: Attributes) -> Message {
    let [high, low] = resource.to_be_bytes();
    let mut payload = vec![family, 0, high, low];
    payload.extend(attributes.into_bytes());
    Message { kind, flags, payload }
}

fn object(name: &str) -> Attributes {
    Attributes::new().text(1, TABLE).text(2, name).number(3, COUNTER)
}

/// Names a chain; the attribute's number depends on the message.
fn chain(kind: u16, name: &str) -> Attributes {
    Attributes::new().text(1, TABLE).text(kind, name)
}

fn hooked(attributes: Attributes, chain: &Chain) -> Attributes {
    let Some(hook) = chain.hook else {
        return attributes;
    };
    let hook_attributes = Attributes::new()
        .number(1, hook.point as u32)
        .bytes(2, &hook.priority.to_be_bytes());
    let kind = match hook.kind {
        HookKind::Filter => "filter",
        HookKind::Nat => "nat",
    };
    attributes.nested(4, hook_attributes).text(7, kind)
}

/// A rule, preceded by its anonymous maps.
fn rule(family: Family, chain_name: &str, rule: &Rule, next_set: &mut u32) -> Vec<Message> {
    let mut messages = Vec::new();
    let mut expressions = Vec::new();
    for step in &rule.expressions {
        let map = expression::map(step).map(|chains| {
            let number = *next_set;
            *next_set += 1;
            messages.extend(anonymous_map(family, number, chains));
            number
        });
        expressions.extend(expression::encode(family, step, map));
    }
    let mut attributes = chain(2, chain_name).nested(4, Attributes::new().list(LIST_ITEM, expressions));
    if !rule.comment.is_empty() {
        attributes = attributes.bytes(7, &comment_data(0, rule.comment));
    }
    messages.push(message(family, NEW_RULE, CREATE | APPEND, attributes));
    messages
}

fn named_set(name: &str, set: &Set, number: u32) -> Attributes {
    let key_type = set
        .key
        .iter()
        .fold(0, |number, part| (number << 6) | type_number(*part));
    let key_bytes = match set.key {
        [single] => type_bytes(*single),
        // Each part takes a register of four bytes.
        parts => 4 * u32::try_from(parts.len()).unwrap_or(u32::MAX),
    };
    let attributes = Attributes::new().text(1, TABLE).text(2, name);
    let attributes = match set.content {
        Content::Keys(_) => attributes.number(3, 0).number(4, key_type).number(5, key_bytes),
        Content::Chains(_) => verdicts(attributes.number(3, SET_IS_MAP), key_type, key_bytes),
    };
    attributes
        .number(10, number)
        .bytes(13, &comment_data(7, set.comment))
}

/// The map of a rule from 0, 1, 2… to chains.
fn anonymous_map(family: Family, number: u32, chains: &[String]) -> Vec<Message> {
    let set = Attributes::new()
        .text(1, TABLE)
        .text(2, expression::ANONYMOUS_MAP);
    let flags = SET_IS_ANONYMOUS | SET_IS_CONSTANT | SET_IS_MAP;
    let attributes = verdicts(set.clone().number(3, flags), INTEGER_TYPE, 4)
        .number(10, number)
        .bytes(13, &HOST_BYTE_ORDER);
    let mut messages = vec![message(family, NEW_SET, CREATE, attributes)];
    // The keys come from the kernel's counter, in host byte order.
    let keys: Vec<[u8; 4]> = (0..chains.len() as u32).map(u32::to_ne_bytes).collect();
    let list: Elements<'_> = std::iter::zip(&keys, chains)
        .map(|(key, chain)| (key.as_slice(), Some(chain.as_str())))
        .collect();
    messages.extend(portions(&list).map(|items| {
        let attributes = set.clone().nested(3, items).number(4, number);
        message(family, NEW_ELEMENTS, CREATE, attributes)
    }));
    messages
}

/// The types of a map from keys to verdicts.
fn verdicts(attributes: Attributes, key_type: u32, key_bytes: u32) -> Attributes {
    attributes
        .number(4, key_type)
        .number(5, key_bytes)
        .number(6, VERDICT_TYPE)
        .number(7, 0)
}

fn elements<'a>(
    family: Family,
    kind: u16,
    flags: u16,
    set: &'a str,
    list: &'a Elements<'a>,
) -> impl Iterator<Item = Message> + 'a {
    portions(list).map(move |items| {
        let attributes = Attributes::new().text(1, TABLE).text(2, set).nested(3, items);
        message(family, kind, flags, attributes)
    })
}

fn portions<'a>(list: &'a Elements<'a>) -> impl Iterator<Item = Attributes> + 'a {
    list.chunks(ELEMENTS_AT_ONCE).map(|portion| {
        let items = portion.iter().map(|(key, chain)| element(key, *chain));
        Attributes::new().list(LIST_ITEM, items)
    })
}

fn element(key: &[u8], chain: Option<&str>) -> Attributes {
    let element = Attributes::new().nested(1, Attributes::new().bytes(1, key));
    match chain {
        None => element,
        Some(chain) => {
            let verdict = Attributes::new()
                .bytes(1, &expression::VERDICT_GOTO.to_be_bytes())
                .text(2, chain);
            element.nested(2, Attributes::new().nested(2, verdict))
        }
    }
}

/// The comment of an object as `nft` keeps it in the user data: a type for "comment", which depends on the
/// kind of object, the length, and the text with its zero byte.
fn comment_data(kind: u8, comment: &str) -> Vec<u8> {
    let length = u8::try_from(comment.len() + 1).unwrap_or(u8::MAX);
    let mut data = vec![kind, length];
    data.extend(comment.bytes().take(usize::from(length) - 1));
    data.push(0);
    data
}

/// `nft`'s numbers for types; it prints keys by them.
fn type_number(part: Type) -> u32 {
    match part {
        Type::Ipv4Address => 7,
        Type::Protocol => 12,
        Type::Port => 13,
    }
}

fn type_bytes(part: Type) -> u32 {
    match part {
        Type::Ipv4Address => 4,
        Type::Protocol => 1,
        Type::Port => 2,
    }
}
