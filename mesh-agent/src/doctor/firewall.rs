//! Finds firewall rules of the host that the mesh does not read: those of nf_tables' own tables, as firewalld
//! and operators have them. Under Docker's mesh they hold for published ports, since it forwards packets.

use std::fmt;

use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::{
    datapath::netlink::{
        Connection, Message, NetlinkError,
        attributes::{find, text},
    },
    first_few::first_few,
};

/// `NFNL_SUBSYS_NFTABLES`, and its request for chains.
const GET_CHAIN: u16 = 10 << 8 | 4;
/// Bytes of `nfgenmsg` before the attributes.
const HEADER_BYTES: usize = 4;
/// `NFPROTO_INET` and `NFPROTO_IPV4`: the families whose chains IPv4 packets pass.
const INET: u8 = 1;
const IPV4: u8 = 2;
/// `NF_INET_FORWARD`
const FORWARD: u32 = 2;
/// `NF_DROP`
const DROP: u32 = 0;
/// Tables of iptables, of which the chain DOCKER-USER is read, Docker's own and the mesh's.
const KNOWN: [&str; 7] = [
    "filter",
    "mangle",
    "nat",
    "raw",
    "security",
    "docker-bridges",
    "mesh",
];
/// The sentence names so many chains.
const SHOWN: usize = 4;

/// A sentence that names the chains that forwarded packets pass and the mesh's do not, if there are any.
pub(super) fn limit() -> Option<String> {
    let chains = chains().ok()?;
    sentence(&chains)
}

/// A chain of the hook `forward`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Chain {
    family: u8,
    table: String,
    name: String,
    drops: bool,
    rules: u32,
}

fn sentence(chains: &[Chain]) -> Option<String> {
    let is_ours = |chain: &Chain| chain.family == IPV4 && KNOWN.contains(&chain.table.as_str());
    let decides = |chain: &&Chain| (chain.drops || chain.rules > 0) && !is_ours(chain);
    let unread: Vec<String> = chains.iter().filter(decides).map(Chain::to_string).collect();
    (!unread.is_empty()).then(|| {
        format!(
            "Limit: what {} keeps out of forwarded packets comes in to published ports, which the mesh delivers \
             before netfilter. Rules in DOCKER-USER and in the setting policy hold for them.",
            first_few(&unread, SHOWN, ", ")
        )
    })
}

impl fmt::Display for Chain {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.family == INET { "inet" } else { "ip" };
        write!(
            formatter,
            "the chain {} of the nftables table {family} {}",
            self.name, self.table
        )
    }
}

fn chains() -> Result<Vec<Chain>, NetlinkError> {
    let request = Message {
        kind: GET_CHAIN,
        flags: 0,
        payload: vec![0; HEADER_BYTES],
    };
    let listed = Connection::open(NETLINK_NETFILTER)?.dump(&request)?;
    Ok(listed
        .iter()
        .filter_map(|message| chain(&message.payload))
        .collect())
}

/// The chain that a message is about, if packets are forwarded through it.
fn chain(payload: &[u8]) -> Option<Chain> {
    let family = *payload.first().filter(|family| matches!(**family, INET | IPV4))?;
    let attributes = payload.get(HEADER_BYTES..)?;
    let number = |attributes, kind| Some(u32::from_be_bytes(find(attributes, kind)?.try_into().ok()?));
    let hook = find(attributes, 4)?;
    if number(hook, 1)? != FORWARD {
        return None;
    }
    Some(Chain {
        family,
        table: find(attributes, 1).map(text)?,
        name: find(attributes, 3).map(text)?,
        drops: number(attributes, 5) == Some(DROP),
        rules: number(attributes, 6).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use mesh_support::{command, namespace::in_new_network};

    use super::*;

    #[test]
    fn chains_of_the_kernel_that_decide_about_forwarded_packets_are_named() {
        let found = in_new_network(|| {
            let ruleset = "
                add table inet mine
                add chain inet mine forward { type filter hook forward priority 0; policy drop; }
                add chain inet mine input { type filter hook input priority 0; policy drop; }
                add table ip other
                add chain ip other empty { type filter hook forward priority 0; policy accept; }
                add chain ip other through { type filter hook forward priority 5; policy accept; }
                add rule ip other through ip saddr 192.0.2.7 drop
                add table ip docker-bridges
                add chain ip docker-bridges filter-FORWARD { type filter hook forward priority 0; policy drop; }
                add table ip6 six
                add chain ip6 six forward { type filter hook forward priority 0; policy drop; }";
            command::output("nft", &["-f", "-"], ruleset).unwrap();
            limit()
        });
        let sentence = found
            .expect("this test makes a network namespace: run it as root")
            .unwrap();
        for part in [
            "the chain forward of the nftables table inet mine, ",
            "the chain through of the nftables table ip other keeps",
        ] {
            assert!(sentence.contains(part), "{sentence}");
        }
        for part in ["input", "empty", "docker-bridges", "six"] {
            assert!(!sentence.contains(part), "{sentence}");
        }
    }

    #[test]
    fn a_host_without_such_chains_has_no_such_limit() {
        assert_eq!(sentence(&[]), None);
        let iptables = Chain {
            family: IPV4,
            table: "filter".to_owned(),
            name: "FORWARD".to_owned(),
            drops: true,
            rules: 9,
        };
        assert_eq!(sentence(&[iptables]), None);
    }
}
