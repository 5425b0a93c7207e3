//! Reads every rule of nf_tables that IPv6 packets may pass: iptables-nft's and those of tables of their own.

use std::collections::BTreeMap;

use nix::errno::Errno;

use super::{
    super::nf_tables::{GET_RULE, HEADER_BYTES, number, rule},
    restriction::{Base, Chain, Hook, Table},
};
use crate::datapath::netlink::{
    Connection, Message, NetlinkError,
    attributes::{find, text},
};

/// `NFNL_SUBSYS_NFTABLES`, and its request for chains.
const GET_CHAIN: u16 = 10 << 8 | 4;
/// The families whose chains IPv6 packets pass, and their names (`NFPROTO_INET`, `NFPROTO_IPV6`).
const FAMILIES: [(u8, &str); 2] = [(1, "inet"), (10, "ip6")];
/// `NF_ACCEPT`
const ACCEPT: u32 = 1;

/// The tables; none where nf_tables is missing.
pub(super) fn read(netfilter: &mut Connection) -> Result<Vec<Table>, NetlinkError> {
    let mut tables = BTreeMap::<String, BTreeMap<String, Chain>>::new();
    for (family, family_name) in FAMILIES {
        let table_of = |attributes: &[u8]| {
            let table = find(attributes, 1).map(text).unwrap_or_default();
            format!("{family_name} {table}")
        };
        for message in list(netfilter, GET_CHAIN, family)? {
            let attributes = message.payload.get(HEADER_BYTES..).unwrap_or_default();
            let name = find(attributes, 3).map(text).unwrap_or_default();
            let chain = Chain {
                base: base(attributes),
                rules: Vec::new(),
            };
            tables
                .entry(table_of(attributes))
                .or_default()
                .insert(name, chain);
        }
        for message in list(netfilter, GET_RULE, family)? {
            let attributes = message.payload.get(HEADER_BYTES..).unwrap_or_default();
            let name = find(attributes, 2).map(text).unwrap_or_default();
            let chains = tables.entry(table_of(attributes)).or_default();
            let expressions = find(attributes, 4).unwrap_or_default();
            chains.entry(name).or_default().rules.push(rule(expressions));
        }
    }
    let tables = tables.into_iter();
    Ok(tables.map(|(name, chains)| Table { name, chains }).collect())
}

fn list(netfilter: &mut Connection, kind: u16, family: u8) -> Result<Vec<Message>, NetlinkError> {
    let request = Message {
        kind,
        flags: 0,
        payload: vec![family, 0, 0, 0],
    };
    match netfilter.dump(&request) {
        Err(error)
            if matches!(
                error.errno(),
                Some(Errno::ENOENT | Errno::EINVAL | Errno::EOPNOTSUPP)
            ) =>
        {
            Ok(Vec::new())
        }
        listed => listed,
    }
}

/// Where the kernel enters a chain, if what comes in is looked at there (`NF_INET_*`).
fn base(attributes: &[u8]) -> Option<Base> {
    let hook = match number(find(attributes, 4)?, 1)? {
        // Before routing, and as early as the card (`inet` tables only).
        0 | 5 => Hook::Prerouting,
        1 => Hook::Input,
        2 => Hook::Forward,
        _ => return None,
    };
    Some(Base {
        hook,
        accepts: number(attributes, 5).is_none_or(|policy| policy == ACCEPT),
    })
}
