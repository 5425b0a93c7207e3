//! Reads the filter table of ip6tables-legacy.

use std::{collections::BTreeMap, io};

use super::{
    super::{
        legacy::{self, Layout},
        ruleset::{Action, Rule},
    },
    restriction::{Base, Chain, Hook, Table},
};

/// Layouts of `linux/netfilter_ipv6/ip6_tables.h`.
const LAYOUT: Layout = Layout {
    tables: "/proc/thread-self/net/ip6_tables_names",
    family: nix::sys::socket::AddressFamily::Inet6,
    level: libc::IPPROTO_IPV6,
    entry_bytes: 168,
    target: 140,
};
/// Where `ip6t_getinfo` has the first entry of each hook.
const HOOK_ENTRIES: usize = 36;
/// The chains of the table's hooks, by the hook's number (`NF_INET_*`).
const CHAINS: [(usize, &str, Option<Hook>); 3] = [
    (1, "INPUT", Some(Hook::Input)),
    (2, "FORWARD", Some(Hook::Forward)),
    (3, "OUTPUT", None),
];

/// The table, if it exists.
pub(super) fn read() -> io::Result<Option<Table>> {
    Ok(legacy::block(&LAYOUT)?.map(|block| table(&block)))
}

fn table(block: &legacy::Block) -> Table {
    let mut starts = legacy::starts(&block.entries, &LAYOUT);
    for (hook, name, _) in CHAINS {
        if let Some(offset) = legacy::number(&block.info, HOOK_ENTRIES + 4 * hook) {
            starts.insert(offset as usize, name.to_owned());
        }
    }
    let mut chains = BTreeMap::<String, Chain>::new();
    let mut current: Option<&String> = None;
    for (offset, entry) in legacy::entries(&block.entries, &LAYOUT) {
        current = starts.get(&offset).or(current);
        if let Some(chain) = current {
            let action = legacy::action(entry, offset, &starts, &LAYOUT);
            let rules = &mut chains.entry(chain.clone()).or_default().rules;
            rules.push(Rule {
                conditions: Vec::new(),
                action: action.unwrap_or_else(|| Action::Other("a target".to_owned())),
            });
        }
    }
    for (name, chain) in &mut chains {
        // What follows belongs to no chain: the entry that begins the next one, with its name.
        chain
            .rules
            .retain(|rule| rule.action != Action::Other(legacy::MARKER.to_owned()));
        // The last rule of a chain, which no one has written: its policy, or the return.
        let last = chain.rules.pop();
        let hook = CHAINS.iter().find(|(_, base, _)| base == name);
        chain.base = hook.and_then(|(_, _, hook)| *hook).map(|hook| Base {
            hook,
            accepts: last.is_some_and(|rule| rule.action == Action::Accept),
        });
    }
    Table {
        name: "ip6tables-legacy filter".to_owned(),
        chains,
    }
}
