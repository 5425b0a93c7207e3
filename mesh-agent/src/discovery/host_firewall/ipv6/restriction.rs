//! Whether the host's rules for IPv6 restrict what comes in. They are not translated: one that may refuse
//! something is enough. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::super::ruleset::{Action, DOCKER_USER, Rule};

/// A table of rules for IPv6.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    /// As its tool names it: `ip6 filter`, `inet firewalld`.
    pub(super) name: String,
    /// Its chains, by name.
    pub(super) chains: BTreeMap<String, Chain>,
}

/// A chain and its rules, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Chain {
    /// Which packets begin here; `None` if others must lead to it.
    pub(super) base: Option<Base>,
    pub(super) rules: Vec<Rule>,
}

/// Where the kernel enters a chain, and what becomes of packets that no rule decides about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Base {
    pub(super) hook: Hook,
    pub(super) accepts: bool,
}

/// Where packets that come in are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    /// Before they are routed.
    Prerouting,
    /// Those to the host itself.
    Input,
    /// Those to others, such as containers.
    Forward,
}

/// The tables of Docker's backend for nftables.
const DOCKERS_TABLES: [&str; 2] = ["ip6 docker-bridges", "inet docker-bridges"];

/// The first chain that may refuse what comes in, in a sentence.
pub(super) fn restriction(tables: &[Table]) -> Option<String> {
    let tables = tables.iter();
    let mut others = tables.filter(|table| !DOCKERS_TABLES.contains(&table.name.as_str()));
    others.find_map(|table| {
        let mut chains = table.chains.iter();
        chains.find_map(|(name, chain)| of_base(table, name, chain))
    })
}

fn of_base(table: &Table, name: &str, chain: &Chain) -> Option<String> {
    let base = chain.base?;
    let is_dockers = base.hook == Hook::Forward && is_dockers_forward(chain);
    if !base.accepts && !is_dockers {
        return Some(format!(
            "the chain {name} ({}) has a policy other than accept",
            table.name
        ));
    }
    let refusing = refusing(table, name, &mut BTreeSet::new())?;
    Some(if refusing == name {
        format!(
            "the chain {name} ({}) has rules that may refuse packets",
            table.name
        )
    } else {
        format!(
            "the chain {refusing} ({}), to which {name} leads, has rules that may refuse packets",
            table.name
        )
    })
}

/// The chain, of one and those that it leads to, that may refuse a packet.
fn refusing<'a>(table: &'a Table, name: &'a str, seen: &mut BTreeSet<&'a str>) -> Option<&'a str> {
    if !seen.insert(name) {
        return None;
    }
    let rules = &table.chains.get(name)?.rules;
    rules.iter().find_map(|rule| match &rule.action {
        Action::Drop | Action::Reject => Some(name),
        Action::Other(target) => (!only_translates(target)).then_some(name),
        Action::Jump(next) | Action::Goto(next) => {
            (!is_dockers(next)).then(|| refusing(table, next, seen)).flatten()
        }
        Action::Accept | Action::Return | Action::Continue(_) => None,
    })
}

/// Whether a target changes addresses and refuses nothing.
fn only_translates(target: &str) -> bool {
    [
        "DNAT",
        "SNAT",
        "MASQUERADE",
        "REDIRECT",
        "NETMAP",
        "DNPT",
        "SNPT",
        "CT",
        "NOTRACK",
    ]
    .contains(&target)
}

/// Whether Docker made a chain, for its own bridges.
fn is_dockers(chain: &str) -> bool {
    chain.starts_with("DOCKER") && chain != DOCKER_USER
}

/// Docker itself gives FORWARD the policy to drop. The packets of published ports do not pass it.
fn is_dockers_forward(chain: &Chain) -> bool {
    let mut rules = chain.rules.iter();
    rules.any(|rule| matches!(&rule.action, Action::Jump(next) if is_dockers(next)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(action: Action) -> Rule {
        Rule {
            conditions: Vec::new(),
            action,
        }
    }

    fn chain(base: Option<(Hook, bool)>, actions: &[Action]) -> Chain {
        Chain {
            base: base.map(|(hook, accepts)| Base { hook, accepts }),
            rules: actions.iter().cloned().map(rule).collect(),
        }
    }

    fn found(table: &str, chains: &[(&str, Chain)]) -> Option<String> {
        let chains = chains.iter();
        restriction(&[Table {
            name: table.to_owned(),
            chains: chains
                .map(|(name, chain)| ((*name).to_owned(), chain.clone()))
                .collect(),
        }])
    }

    fn jump(to: &str) -> Action {
        Action::Jump(to.to_owned())
    }

    const INPUT: Option<(Hook, bool)> = Some((Hook::Input, true));
    const FORWARD: Option<(Hook, bool)> = Some((Hook::Forward, true));

    #[test]
    fn a_policy_that_does_not_accept_restricts() {
        assert_eq!(restriction(&[]), None);
        assert_eq!(found("ip6 filter", &[("INPUT", chain(INPUT, &[]))]), None);
        for hook in [Hook::Prerouting, Hook::Input, Hook::Forward] {
            let found = found("ip6 filter", &[("INPUT", chain(Some((hook, false)), &[]))]);
            let expected = "the chain INPUT (ip6 filter) has a policy other than accept";
            assert_eq!(found.as_deref(), Some(expected), "{hook:?}");
        }
    }

    #[test]
    fn a_rule_that_refuses_restricts_in_a_chain_that_packets_reach() {
        for action in [Action::Drop, Action::Reject, Action::Other("NFQUEUE".to_owned())] {
            let refusing = chain(None, &[Action::Return, action.clone()]);
            assert_eq!(found("inet fw", &[("unused", refusing.clone())]), None);
            let base = chain(INPUT, &[Action::Accept, jump("own")]);
            let own = chain(None, &[Action::Goto("deeper".to_owned()), jump("own")]);
            let reached = found("inet fw", &[("INPUT", base), ("own", own), ("deeper", refusing)]);
            let expected =
                "the chain deeper (inet fw), to which INPUT leads, has rules that may refuse packets";
            assert_eq!(reached.as_deref(), Some(expected), "{action:?}");
        }
    }

    #[test]
    fn what_only_translates_or_notes_restricts_nothing() {
        let targets = [
            Action::Other("DNAT".to_owned()),
            Action::Other("MASQUERADE".to_owned()),
            Action::Continue("LOG".to_owned()),
            Action::Accept,
        ];
        let base = chain(Some((Hook::Prerouting, true)), &targets);
        assert_eq!(found("ip6 nat", &[("PREROUTING", base)]), None);
    }

    #[test]
    fn dockers_own_chains_restrict_nothing_but_the_operators_does() {
        let dockers = |of_operator: &[Action]| {
            found(
                "ip6 filter",
                &[
                    (
                        "FORWARD",
                        chain(
                            Some((Hook::Forward, false)),
                            &[jump("DOCKER-USER"), jump("DOCKER-FORWARD")],
                        ),
                    ),
                    ("DOCKER-FORWARD", chain(None, &[jump("DOCKER"), Action::Drop])),
                    ("DOCKER", chain(None, &[Action::Drop])),
                    ("DOCKER-USER", chain(None, of_operator)),
                ],
            )
        };
        assert_eq!(dockers(&[]), None);
        let found_there = dockers(&[Action::Drop]).unwrap();
        assert!(found_there.starts_with("the chain DOCKER-USER"), "{found_there}");
        // With no chain of Docker, the policy is the operator's.
        let own = found(
            "ip6 filter",
            &[("FORWARD", chain(Some((Hook::Forward, false)), &[]))],
        );
        assert!(own.is_some());
        let dropping = [("filter-FORWARD", chain(FORWARD, &[Action::Drop]))];
        assert_eq!(found("ip6 docker-bridges", &dropping), None);
        assert!(found("ip6 bridges", &dropping).is_some());
    }
}
