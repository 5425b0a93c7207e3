//! Whether this node serves IPv6, and at which addresses.

use std::{collections::BTreeSet, net::Ipv6Addr};

use mesh_support::watched::Watched as _;

use super::Agent;
use crate::{config::Ipv6, datapath::DatapathKind, model::Ipv6Rules};

/// What becomes of IPv6.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ipv6Choice {
    /// The host's rules have not been read yet.
    Unknown,
    /// It is served at these addresses.
    Served(BTreeSet<Ipv6Addr>),
    /// It is left to whatever else serves it, for this reason.
    Left(String),
}

fn choose(option: Ipv6, rules: Option<&Ipv6Rules>, addresses: &BTreeSet<Ipv6Addr>) -> Ipv6Choice {
    match (option, rules) {
        (Ipv6::Off, _) => Ipv6Choice::Left("it is switched off (--ipv6 off)".to_owned()),
        _ if addresses.is_empty() => {
            Ipv6Choice::Left("this node has no global or unique-local IPv6 address".to_owned())
        }
        (Ipv6::On, _) => Ipv6Choice::Served(addresses.clone()),
        (Ipv6::Auto, None) => Ipv6Choice::Unknown,
        (Ipv6::Auto, Some(rules)) => match rules.reason_to_leave() {
            None => Ipv6Choice::Served(addresses.clone()),
            Some(why) => Ipv6Choice::Left(why),
        },
    }
}

impl Agent {
    /// What becomes of IPv6 on a data path that can serve it.
    pub(super) fn ipv6(&self) -> Ipv6Choice {
        let network = self.parts.network.current();
        let addresses = network.map(|network| network.ipv6_addresses).unwrap_or_default();
        let rules = self.parts.ipv6_rules.current();
        choose(self.options.ipv6, rules.as_ref(), &addresses)
    }

    /// The addresses at which it is served, now that answers find their way.
    pub(super) fn ipv6_addresses(&self) -> BTreeSet<Ipv6Addr> {
        match self.ipv6() {
            Ipv6Choice::Served(addresses) if self.device.leads_to_ipv6() => addresses,
            Ipv6Choice::Served(_) | Ipv6Choice::Unknown | Ipv6Choice::Left(_) => BTreeSet::new(),
        }
    }

    /// Why IPv6 is not served; `None` if it is.
    pub(super) fn ipv6_left(&self, kind: DatapathKind) -> Option<String> {
        match (kind, self.ipv6()) {
            (_, Ipv6Choice::Left(why)) => Some(why),
            (DatapathKind::Ipvs, _) => Some("this node's data path is IPVS".to_owned()),
            (DatapathKind::Ebpf, Ipv6Choice::Unknown) => {
                Some("the host's rules for IPv6 have not been read yet".to_owned())
            }
            (DatapathKind::Ebpf, Ipv6Choice::Served(_)) => {
                (!self.device.leads_to_ipv6()).then(|| "answers have no way out yet".to_owned())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_is_served_by_itself_only_where_no_rule_may_close_it() {
        let addresses = BTreeSet::from(["2001:db8::1".parse().unwrap()]);
        let served = Ipv6Choice::Served(addresses.clone());
        let restricted = Ipv6Rules::Restricted("the chain INPUT (ip6 filter) has rules".into());
        let choice = |option, rules| choose(option, rules, &addresses);
        assert_eq!(choice(Ipv6::Auto, Some(&Ipv6Rules::Open)), served);
        assert_eq!(choice(Ipv6::Auto, None), Ipv6Choice::Unknown);
        let Ipv6Choice::Left(why) = choice(Ipv6::Auto, Some(&restricted)) else {
            panic!("a closed port would be open");
        };
        assert!(why.contains("INPUT") && why.contains("--ipv6 on"), "{why}");
        for rules in [None, Some(&restricted), Some(&Ipv6Rules::Open)] {
            assert_eq!(choice(Ipv6::On, rules), served);
            assert!(matches!(choice(Ipv6::Off, rules), Ipv6Choice::Left(_)));
            assert!(matches!(choose(Ipv6::On, rules, &[].into()), Ipv6Choice::Left(_)));
        }
    }
}
