//! The node's own policy: who may come in to the published ports of this node, whatever service has them.
//! Pure.
//!
//! Rules are tried in their order, and the first that is about a packet decides. Where none is, the packet
//! may come in. Labels and the host's firewall can only be stricter.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::RangeInclusive,
    str::FromStr,
    sync::Arc,
};

use super::{Ingress, Prefix, Protocol, SourcePolicy, SourceRules, SourceVerdict, SourceVerdicts};

/// What stands for the containers of the node where a rule names interfaces.
const CONTAINERS: &str = "containers";
/// The kernel's limit for an interface name.
const INTERFACE_NAME_BYTES: usize = 15;

/// The rules, in the order in which they are tried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodePolicy {
    rules: Vec<PolicyRule>,
}

/// One rule: `allow 443/tcp`, `deny from 192.0.2.0/24 on eth0`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyRule {
    verdict: SourceVerdict,
    /// Every port if there are none.
    ports: Vec<Ports>,
    /// Everyone if there are none.
    sources: Vec<Prefix>,
    /// Every interface if there are none.
    interfaces: Vec<String>,
    text: String,
}

/// Some ports of one protocol or of both.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ports {
    protocol: Option<Protocol>,
    numbers: RangeInclusive<u16>,
}

/// A rule is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0}; a rule is like 'allow 443/tcp', 'deny from 192.0.2.0/24' or 'reject 8000-8100 from any on eth0'"
)]
pub struct PolicyRuleError(String);

impl NodePolicy {
    /// A policy of these rules.
    #[must_use]
    pub fn new(rules: Vec<PolicyRule>) -> Self {
        Self { rules }
    }

    /// Every rule, in order.
    #[must_use]
    pub fn rules(&self) -> &[PolicyRule] {
        &self.rules
    }

    /// The rules that are about a published port.
    pub fn about(&self, protocol: Protocol, port: u16) -> impl Iterator<Item = &PolicyRule> {
        let rules = self.rules.iter();
        rules.filter(move |rule| rule.is_about(protocol, port))
    }

    /// Whom it lets in to a published port; `None` for everyone. The uplinks have their interface indexes.
    #[must_use]
    pub fn of(&self, protocol: Protocol, port: u16, uplinks: &BTreeMap<&str, u32>) -> Option<SourcePolicy> {
        let about: Vec<&PolicyRule> = self.about(protocol, port).collect();
        if about.is_empty() {
            return None;
        }
        let sources = about.iter().flat_map(|rule| &rule.sources).copied();
        let prefixes: BTreeSet<Prefix> = sources.chain([Prefix::ALL]).collect();
        let rules_on = |interface: Option<&str>| -> SourceRules {
            let on: Vec<_> = about.iter().filter(|rule| rule.is_on(interface)).collect();
            let verdict = |prefix: &Prefix| {
                let mut on = on.iter();
                on.find(|rule| rule.has(*prefix))
                    .map_or(SourceVerdict::Accept, |rule| rule.verdict)
            };
            let verdicts = prefixes
                .iter()
                .map(|prefix| (*prefix, SourceVerdicts::both(verdict(prefix))));
            verdicts.collect()
        };
        if about.iter().all(|rule| rule.interfaces.is_empty()) {
            return SourcePolicy::new([(Ingress::Any, rules_on(None))]);
        }
        let uplinks = uplinks
            .iter()
            .map(|(name, index)| (Ingress::Uplink(*index), rules_on(Some(name))));
        let containers = (Ingress::Containers, rules_on(Some(CONTAINERS)));
        SourcePolicy::new(uplinks.chain([containers]))
    }

    /// The interfaces that rules name and that are no uplinks of the node: no packet comes in by them.
    pub fn unknown_interfaces<'a>(
        &'a self,
        uplinks: &'a BTreeMap<&str, u32>,
    ) -> impl Iterator<Item = (&'a str, &'a PolicyRule)> {
        self.rules.iter().flat_map(move |rule| {
            let interfaces = rule.interfaces.iter();
            interfaces
                .filter(|name| name.as_str() != CONTAINERS && !uplinks.contains_key(name.as_str()))
                .map(move |name| (name.as_str(), rule))
        })
    }
}

/// The policies of several ports. Those that the same rules are about share one.
#[derive(Debug)]
pub(crate) struct Compiled<'a> {
    policy: &'a NodePolicy,
    uplinks: BTreeMap<&'a str, u32>,
    known: BTreeMap<Vec<usize>, Option<Arc<SourcePolicy>>>,
}

impl<'a> Compiled<'a> {
    pub(crate) fn new(policy: &'a NodePolicy, uplinks: BTreeMap<&'a str, u32>) -> Self {
        Self {
            policy,
            uplinks,
            known: BTreeMap::new(),
        }
    }

    /// As [`NodePolicy::of`].
    pub(crate) fn of(&mut self, protocol: Protocol, port: u16) -> Option<Arc<SourcePolicy>> {
        let rules = self.policy.rules.iter().enumerate();
        let about: Vec<usize> = rules
            .filter(|(_, rule)| rule.is_about(protocol, port))
            .map(|(number, _)| number)
            .collect();
        let (policy, uplinks) = (self.policy, &self.uplinks);
        let compile = || policy.of(protocol, port, uplinks).map(Arc::new);
        self.known.entry(about).or_insert_with(compile).clone()
    }
}

impl PolicyRule {
    fn is_about(&self, protocol: Protocol, port: u16) -> bool {
        let has =
            |ports: &Ports| ports.numbers.contains(&port) && ports.protocol.is_none_or(|own| own == protocol);
        self.ports.is_empty() || self.ports.iter().any(has)
    }

    /// Whether it is about packets that come in by an interface; without one, by any.
    fn is_on(&self, interface: Option<&str>) -> bool {
        self.interfaces.is_empty() || self.interfaces.iter().any(|name| interface == Some(name))
    }

    /// Whether it is about all addresses of a prefix. Of those that rules name, no other is about a part only
    /// unless it is longer.
    fn has(&self, prefix: Prefix) -> bool {
        self.sources.is_empty() || self.sources.iter().any(|source| source.contains(prefix))
    }
}

impl fmt::Display for PolicyRule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

impl FromStr for PolicyRule {
    type Err = PolicyRuleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = |message: String| Err(PolicyRuleError(message));
        let mut parts = text.split_ascii_whitespace().peekable();
        let verdict = match parts.next() {
            Some("allow") => SourceVerdict::Accept,
            Some("deny") => SourceVerdict::Drop,
            Some("reject") => SourceVerdict::Reject,
            other => {
                let other = other.unwrap_or_default();
                return fail(format!(
                    "a rule begins with allow, deny or reject, not with '{other}'"
                ));
            }
        };
        let mut rule = Self {
            verdict,
            ports: Vec::new(),
            sources: Vec::new(),
            interfaces: Vec::new(),
            text: text.split_ascii_whitespace().collect::<Vec<_>>().join(" "),
        };
        if let Some(ports) = parts.next_if(|part| !matches!(*part, "from" | "on"))
            && ports != "any"
        {
            rule.ports = list(ports, ports_of)?;
        }
        while let Some(part) = parts.next() {
            let Some(value) = parts.next() else {
                return fail(format!("'{part}' at the end of a rule"));
            };
            match part {
                "from" if !rule.sources.is_empty() => return fail("'from' twice in a rule".to_owned()),
                "from" if value == "any" => {}
                "from" => {
                    let source = |text: &str| {
                        text.parse()
                            .map_err(|error: super::PrefixError| error.to_string())
                    };
                    rule.sources = list(value, source)?;
                }
                "on" if !rule.interfaces.is_empty() => return fail("'on' twice in a rule".to_owned()),
                "on" => rule.interfaces = list(value, interface_of)?,
                _ => return fail(format!("expected 'from' or 'on', not '{part}'")),
            }
        }
        Ok(rule)
    }
}

fn list<T>(text: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, PolicyRuleError> {
    text.split(',')
        .map(|part| parse(part).map_err(PolicyRuleError))
        .collect()
}

/// `443`, `443/tcp`, `8000-8100/udp`, `any/udp`
fn ports_of(text: &str) -> Result<Ports, String> {
    let parse = || {
        let (numbers, protocol) = match text.split_once('/') {
            None => (text, None),
            Some((numbers, "tcp")) => (numbers, Some(Protocol::Tcp)),
            Some((numbers, "udp")) => (numbers, Some(Protocol::Udp)),
            Some(_) => return None,
        };
        let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0);
        let numbers = match numbers.split_once('-') {
            None if numbers == "any" => 1..=u16::MAX,
            None => number(numbers)?..=number(numbers)?,
            Some((first, last)) => number(first)?..=number(last)?,
        };
        (!numbers.is_empty()).then_some(Ports { protocol, numbers })
    };
    parse().ok_or_else(|| format!("'{text}' is no port (expected e.g. 443, 443/tcp, 8000-8100/udp or any)"))
}

fn interface_of(text: &str) -> Result<String, String> {
    let allowed = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':');
    let is_name = (1..=INTERFACE_NAME_BYTES).contains(&text.len()) && text.bytes().all(allowed);
    is_name
        .then(|| text.to_owned())
        .ok_or_else(|| format!("'{text}' is no interface"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Key = (Protocol, u16);

    const HTTPS: Key = tcp(443);

    const fn tcp(port: u16) -> Key {
        (Protocol::Tcp, port)
    }

    fn uplinks() -> BTreeMap<&'static str, u32> {
        [("eth0", 2), ("eth1", 3)].into()
    }

    fn policy(rules: &[&str]) -> NodePolicy {
        NodePolicy::new(rules.iter().map(|rule| rule.parse().unwrap()).collect())
    }

    fn verdict(policy: &NodePolicy, key: Key, ingress: Ingress, client: &str) -> SourceVerdict {
        policy
            .of(key.0, key.1, &uplinks())
            .map_or(SourceVerdict::Accept, |policy| {
                policy.verdicts(ingress, client.parse().unwrap()).opening
            })
    }

    #[test]
    fn from_outside_only_one_port() {
        use SourceVerdict::{Accept, Drop};
        let policy = policy(&["allow 443/tcp", "allow from 10.0.0.0/8", "deny any on eth0"]);
        let udp = (Protocol::Udp, 443);
        for (key, ingress, client, expected) in [
            (HTTPS, Ingress::Uplink(2), "192.0.2.7", Accept),
            (tcp(80), Ingress::Uplink(2), "192.0.2.7", Drop),
            (udp, Ingress::Uplink(2), "192.0.2.7", Drop),
            (tcp(80), Ingress::Uplink(2), "10.1.2.3", Accept),
            (tcp(80), Ingress::Uplink(3), "192.0.2.7", Accept),
            (tcp(80), Ingress::Containers, "172.18.0.7", Accept),
        ] {
            assert_eq!(
                verdict(&policy, key, ingress, client),
                expected,
                "{key:?} {ingress:?} {client}"
            );
        }
        assert_eq!(policy.of(HTTPS.0, HTTPS.1, &uplinks()), None);
    }

    #[test]
    fn the_first_rule_that_is_about_a_packet_decides() {
        use SourceVerdict::{Accept, Drop, Reject};
        let any = Ingress::Any;
        let rules = [
            "deny from 192.0.2.7",
            "allow 80,8000-8100 from 192.0.2.0/24",
            "reject 80-9000",
        ];
        let policy = policy(&rules);
        for (port, client, expected) in [
            (80, "192.0.2.7", Drop),
            (80, "192.0.2.8", Accept),
            (80, "198.51.100.7", Reject),
            (8100, "192.0.2.8", Accept),
            (8101, "192.0.2.8", Reject),
            (9001, "192.0.2.8", Accept),
            (9001, "192.0.2.7", Drop),
        ] {
            assert_eq!(
                verdict(&policy, tcp(port), any, client),
                expected,
                "{port} {client}"
            );
        }
        let texts: Vec<_> = policy.rules().iter().map(PolicyRule::to_string).collect();
        assert_eq!(texts, rules);
    }

    #[test]
    fn containers_are_named_like_an_interface() {
        let policy = policy(&["deny any on containers,eth9"]);
        assert_eq!(
            verdict(&policy, HTTPS, Ingress::Containers, "172.18.0.7"),
            SourceVerdict::Drop
        );
        assert_eq!(
            verdict(&policy, HTTPS, Ingress::Uplink(2), "172.18.0.7"),
            SourceVerdict::Accept
        );
        let uplinks = uplinks();
        let unknown: Vec<_> = policy
            .unknown_interfaces(&uplinks)
            .map(|(name, _)| name)
            .collect();
        assert_eq!(unknown, ["eth9"]);
    }

    #[test]
    fn what_is_no_rule_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "not with ''"),
            ("alow 443", "not with 'alow'"),
            ("allow 443/sctp", "'443/sctp' is no port"),
            ("allow 0", "'0' is no port"),
            ("allow 90-80", "'90-80' is no port"),
            ("allow 443,", "'' is no port"),
            ("deny from", "'from' at the end"),
            ("deny from 192.0.2.0/33", "'192.0.2.0/33' is neither"),
            ("deny from 192.0.2.7 from 192.0.2.8", "'from' twice"),
            ("deny on an-interface-too-long", "is no interface"),
            ("deny 443 to 192.0.2.7", "not 'to'"),
        ] {
            let error = text.parse::<PolicyRule>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    proptest! {
        /// What is compiled says of every packet what the rules say one after the other.
        #[test]
        fn compiled_rules_say_what_the_rules_say(
            rules in prop::collection::vec((0..3_u8, 0..3_u8, 0..6_u8, 0..3_u8), 0..6),
            port in 79..82_u16,
            client in 0..4_u32,
            ingress in 0..3_usize,
        ) {
            let rules: Vec<String> = rules.iter().map(|(verdict, ports, source, interface)| {
                let verdict = ["allow", "deny", "reject"][usize::from(*verdict)];
                let ports = ["any", "80", "80-81/tcp"][usize::from(*ports)];
                let sources = ["any", "10.0.0.0/30", "10.0.0.0/31", "10.0.0.1", "10.0.0.2/31", "::/0"];
                let source = sources[usize::from(*source)];
                let interface = ["", " on eth0", " on eth1,containers"][usize::from(*interface)];
                format!("{verdict} {ports} from {source}{interface}")
            }).collect();
            let policy = NodePolicy::new(rules.iter().map(|rule| rule.parse().unwrap()).collect());
            let client = Prefix::from(std::net::Ipv4Addr::from_bits(0x0a00_0000 + client));
            let (ingress, name) = [
                (Ingress::Uplink(2), "eth0"),
                (Ingress::Uplink(3), "eth1"),
                (Ingress::Containers, CONTAINERS),
            ][ingress];
            let first = policy.rules.iter().find(|rule| {
                rule.is_about(Protocol::Tcp, port) && rule.is_on(Some(name)) && rule.has(client)
            });
            let expected = first.map_or(SourceVerdict::Accept, |rule| rule.verdict);
            let compiled = policy.of(Protocol::Tcp, port, &uplinks());
            let found = compiled.map_or(SourceVerdict::Accept, |policy| policy.verdicts(ingress, client).opening);
            prop_assert_eq!(found, expected, "{:?}", rules);
        }
    }
}
