//! Who may come in to a service: verdicts by the prefix of a client's address, the longest one deciding. What
//! rules and labels are compiled to, and what the data path holds. Pure.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::Subnet;

/// What happens to a packet because of its source. The later is the stricter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceVerdict {
    /// It may come in.
    #[default]
    Accept,
    /// It is refused: TCP with RST, UDP with ICMP.
    Reject,
    /// It is dropped without an answer.
    Drop,
}

/// The verdicts on a client's packets. Two, since rules may tell the packet that opens a connection from
/// those of an open one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SourceVerdicts {
    /// On packets that open a flow.
    pub opening: SourceVerdict,
    /// On packets of open flows; it holds as well for flows that were opened before there was the rule.
    pub open: SourceVerdict,
}

impl SourceVerdicts {
    /// One verdict on all packets.
    #[must_use]
    pub const fn both(verdict: SourceVerdict) -> Self {
        Self {
            opening: verdict,
            open: verdict,
        }
    }
}

/// Where packets come in, as far as a policy tells it apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Ingress {
    /// Anywhere; then a policy has no rules of another kind.
    Any,
    /// An uplink, by its interface index.
    Uplink(u32),
    /// The containers of this node.
    Containers,
}

/// An IPv4 or IPv6 prefix. IPv4 addresses are the IPv6 ones that they are mapped to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    bits: u128,
    length: u8,
}

impl Prefix {
    /// Every address.
    pub const ALL: Self = Self { bits: 0, length: 0 };
    /// Every IPv4 address.
    pub const IPV4: Self = Self {
        bits: 0xffff << 32,
        length: 96,
    };

    /// The prefix of an address, IPv4 mapped; more than 128 bits count as 128.
    #[must_use]
    pub fn of(address: Ipv6Addr, length: u8) -> Self {
        let length = length.min(128);
        Self {
            bits: address.to_bits() & mask(length),
            length,
        }
    }

    /// Its first address, IPv4 mapped.
    #[must_use]
    pub fn address(self) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.bits)
    }

    /// How many bits its addresses have in common, of 128.
    #[must_use]
    pub fn length(self) -> u8 {
        self.length
    }

    /// Whether all of another's addresses are its own, too.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        self.length <= other.length && other.bits & mask(self.length) == self.bits
    }
}

fn mask(length: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
}

impl From<Subnet> for Prefix {
    fn from(subnet: Subnet) -> Self {
        Self::of(subnet.address().to_ipv6_mapped(), 96 + subnet.prefix())
    }
}

impl From<Ipv4Addr> for Prefix {
    fn from(address: Ipv4Addr) -> Self {
        Self::of(address.to_ipv6_mapped(), 128)
    }
}

impl From<IpAddr> for Prefix {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => address.into(),
            IpAddr::V6(address) => address.into(),
        }
    }
}

impl From<Ipv6Addr> for Prefix {
    fn from(address: Ipv6Addr) -> Self {
        Self::of(address, 128)
    }
}

impl Serialize for Prefix {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Prefix {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address().to_ipv4_mapped() {
            Some(address) if self.length >= 96 => write!(formatter, "{address}/{}", self.length - 96),
            Some(_) | None => write!(formatter, "{}/{}", self.address(), self.length),
        }
    }
}

/// The text was no address and no prefix.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' is neither an address nor a prefix (expected e.g. 192.0.2.0/24 or 2001:db8::/32)")]
pub struct PrefixError(String);

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (address, length) = match text.split_once('/') {
                Some((address, length)) => (address, Some(length.parse::<u8>().ok()?)),
                None => (text, None),
            };
            match address.parse().ok()? {
                IpAddr::V4(address) => {
                    let length = length.unwrap_or(32);
                    (length <= 32).then(|| Self::of(address.to_ipv6_mapped(), 96 + length))
                }
                IpAddr::V6(address) => {
                    let length = length.unwrap_or(128);
                    (length <= 128).then(|| Self::of(address, length))
                }
            }
        };
        parse().ok_or_else(|| PrefixError(text.to_owned()))
    }
}

/// The rules of one ingress. The prefix of no bits is always among them.
pub type SourceRules = BTreeMap<Prefix, SourceVerdicts>;

/// A compiled policy. Services of equal ones share one in the data path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SourcePolicy {
    rules: BTreeMap<Ingress, SourceRules>,
}

impl SourcePolicy {
    /// A policy of these rules; `None` if it lets everyone in. What no prefix of an ingress names may come
    /// in.
    /// Rules that are equal for every ingress are kept once, and prefixes that say no more than a shorter one
    /// not at all.
    #[must_use]
    pub fn new(rules: impl IntoIterator<Item = (Ingress, SourceRules)>) -> Option<Self> {
        let mut rules: BTreeMap<Ingress, SourceRules> = rules
            .into_iter()
            .map(|(ingress, rules)| (ingress, concise(rules)))
            .collect();
        let all: Vec<&SourceRules> = rules.values().collect();
        if all.windows(2).all(|pair| pair[0] == pair[1]) {
            rules = rules
                .into_values()
                .next()
                .map(|rules| (Ingress::Any, rules))
                .into_iter()
                .collect();
        }
        let lets_in = |rules: &SourceRules| {
            rules
                .values()
                .all(|verdicts| *verdicts == SourceVerdicts::default())
        };
        if rules.values().all(lets_in) {
            return None;
        }
        Some(Self { rules })
    }

    /// A policy that lets in whom both let in; `None` if that is everyone. Where both tell interfaces apart,
    /// it has the interfaces that both know.
    #[must_use]
    pub fn both(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        let (Some(one), Some(other)) = (&one, &other) else {
            return one.or(other);
        };
        let (finer, coarser) = if one.is_by_interface() {
            (one, other)
        } else {
            (other, one)
        };
        let rules = finer.rules.iter().filter_map(|(ingress, rules)| {
            let others = coarser
                .rules
                .get(&Ingress::Any)
                .or_else(|| coarser.rules.get(ingress))?;
            Some((*ingress, stricter(rules, others)))
        });
        Self::new(rules)
    }

    /// The policy that these entries of a data path are.
    #[must_use]
    pub fn of_entries(entries: impl IntoIterator<Item = (Ingress, Prefix, SourceVerdicts)>) -> Self {
        let mut rules = BTreeMap::<Ingress, SourceRules>::new();
        for (ingress, prefix, verdicts) in entries {
            rules.entry(ingress).or_default().insert(prefix, verdicts);
        }
        Self { rules }
    }

    /// Whether it tells interfaces apart.
    #[must_use]
    pub fn is_by_interface(&self) -> bool {
        !self.rules.contains_key(&Ingress::Any)
    }

    /// Every rule.
    pub fn entries(&self) -> impl Iterator<Item = (Ingress, Prefix, SourceVerdicts)> + '_ {
        self.rules.iter().flat_map(|(ingress, rules)| {
            rules
                .iter()
                .map(|(prefix, verdicts)| (*ingress, *prefix, *verdicts))
        })
    }

    /// How many rules it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rules.values().map(BTreeMap::len).sum()
    }

    /// Whether it has no rule.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether an open flow of a client may go on. A flow does not tell by which uplink it came, so it goes
    /// on where the rules of one of them let it.
    #[must_use]
    pub fn keeps(&self, from_container: bool, client: IpAddr) -> bool {
        let mut held = self.rules.iter().filter(|(ingress, _)| match ingress {
            Ingress::Any => true,
            Ingress::Uplink(_) => !from_container,
            Ingress::Containers => from_container,
        });
        held.any(|(_, rules)| longest(rules, client.into()).open == SourceVerdict::Accept)
    }

    /// The verdicts on a client's packets that come in somewhere.
    #[must_use]
    pub fn verdicts(&self, ingress: Ingress, client: Prefix) -> SourceVerdicts {
        let rules = self.rules.get(&Ingress::Any).or_else(|| self.rules.get(&ingress));
        rules.map_or_else(SourceVerdicts::default, |rules| longest(rules, client))
    }
}

/// The verdicts of the longest prefix that contains a client's. In their order it is the last one up to that;
/// or, if that one is another's, the last one up to what both have in common, and so on. (Rules can be
/// thousands, and to look for each length would take a hundred times as long.)
fn longest(rules: &SourceRules, client: Prefix) -> SourceVerdicts {
    let mut client = client;
    loop {
        let Some((prefix, verdicts)) = rules.range(..=client).next_back() else {
            return SourceVerdicts::default();
        };
        if prefix.contains(client) {
            return *verdicts;
        }
        let common = (prefix.bits ^ client.bits).leading_zeros();
        client = Prefix::of(client.address(), common as u8);
    }
}

/// For each prefix of either, the stricter of both verdicts.
fn stricter(one: &SourceRules, other: &SourceRules) -> SourceRules {
    let prefixes = one.keys().chain(other.keys());
    let verdicts = prefixes.map(|prefix| {
        let (one, other) = (longest(one, *prefix), longest(other, *prefix));
        let verdicts = SourceVerdicts {
            opening: one.opening.max(other.opening),
            open: one.open.max(other.open),
        };
        (*prefix, verdicts)
    });
    verdicts.collect()
}

fn concise(mut rules: SourceRules) -> SourceRules {
    rules.entry(Prefix::ALL).or_default();
    let mut kept = SourceRules::new();
    // In their order a prefix comes before those that it contains.
    for (prefix, verdicts) in rules {
        if prefix == Prefix::ALL || longest(&kept, prefix) != verdicts {
            kept.insert(prefix, verdicts);
        }
    }
    kept
}

impl fmt::Display for SourcePolicy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |verdict| match verdict {
            SourceVerdict::Accept => "accept",
            SourceVerdict::Reject => "reject",
            SourceVerdict::Drop => "drop",
        };
        for (number, (ingress, prefix, verdicts)) in self.entries().enumerate() {
            if number > 0 {
                formatter.write_str(", ")?;
            }
            match ingress {
                Ingress::Any => {}
                Ingress::Uplink(index) => write!(formatter, "interface {index} ")?,
                Ingress::Containers => formatter.write_str("containers ")?,
            }
            write!(formatter, "{} {prefix}", name(verdicts.opening))?;
            if verdicts.open != verdicts.opening {
                write!(formatter, " (open connections: {})", name(verdicts.open))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_longest_prefix_is_found_as_by_trying_every_length(
            prefixes in prop::collection::btree_map((0..64_u128, 0..=128_u8), 0..3_u8, 0..12),
            client in (0..64_u128, 100..=128_u8),
        ) {
            // Few bits at both ends, so that many are parts of others.
            let prefix = |(bits, length): (u128, u8)| {
                let bits = (bits >> 3) << 125 | bits & 7 | (bits & 4) << 60;
                Prefix::of(Ipv6Addr::from_bits(bits), length)
            };
            let verdict = [DROP, ACCEPT, SourceVerdicts::both(SourceVerdict::Reject)];
            let rules: SourceRules = prefixes
                .into_iter()
                .map(|(key, number)| (prefix(key), verdict[usize::from(number)]))
                .collect();
            let client = prefix(client);
            let mut parents = (0..=client.length).rev().map(|length| Prefix::of(client.address(), length));
            let expected = parents.find_map(|prefix| rules.get(&prefix).copied());
            prop_assert_eq!(longest(&rules, client), expected.unwrap_or_default());
        }
    }

    #[test]
    fn two_policies_let_in_whom_both_let_in() {
        let own = SourcePolicy::new([(Ingress::Any, rules(&[("192.0.2.0/24", DROP)]))]);
        let labels = rules(&[("::/0", DROP), ("192.0.0.0/16", ACCEPT), ("192.0.2.7", ACCEPT)]);
        let labels = SourcePolicy::new([(Ingress::Any, labels)]);
        let both = SourcePolicy::both(own.clone(), labels).unwrap();
        for (client, expected) in [
            ("192.0.2.7", DROP),
            ("192.0.2.8", DROP),
            ("192.0.3.7", ACCEPT),
            ("198.51.100.7", DROP),
        ] {
            assert_eq!(both.verdicts(Ingress::Any, prefix(client)), expected, "{client}");
        }
        assert_eq!(SourcePolicy::both(None, None), None);
        assert_eq!(SourcePolicy::both(own.clone(), None), own);
        assert_eq!(SourcePolicy::both(None, own.clone()), own);
    }

    #[test]
    fn of_two_policies_by_interface_those_that_both_know_are_kept() {
        let by = |indexes: &[u32], text| {
            let uplinks = indexes.iter().map(|index| Ingress::Uplink(*index));
            let ingresses = uplinks.map(|ingress| (ingress, rules(&[(text, DROP)])));
            SourcePolicy::new(ingresses.chain([(Ingress::Containers, rules(&[]))]))
        };
        let any = SourcePolicy::new([(Ingress::Any, rules(&[("192.0.2.9", DROP)]))]);
        let both = SourcePolicy::both(any, by(&[2], "192.0.2.7")).unwrap();
        for (ingress, client, expected) in [
            (Ingress::Uplink(2), "192.0.2.7", DROP),
            (Ingress::Uplink(2), "192.0.2.9", DROP),
            (Ingress::Uplink(2), "192.0.2.8", ACCEPT),
            (Ingress::Containers, "192.0.2.7", ACCEPT),
            (Ingress::Containers, "192.0.2.9", DROP),
        ] {
            assert_eq!(
                both.verdicts(ingress, prefix(client)),
                expected,
                "{ingress:?} {client}"
            );
        }
        let both = SourcePolicy::both(by(&[2, 3], "192.0.2.7"), by(&[3, 4], "192.0.2.8")).unwrap();
        let known: BTreeSet<_> = both.entries().map(|(ingress, ..)| ingress).collect();
        assert_eq!(known, [Ingress::Uplink(3), Ingress::Containers].into());
        assert_eq!(both.verdicts(Ingress::Uplink(3), prefix("192.0.2.7")), DROP);
    }

    const DROP: SourceVerdicts = SourceVerdicts::both(SourceVerdict::Drop);
    const ACCEPT: SourceVerdicts = SourceVerdicts::both(SourceVerdict::Accept);

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    fn rules(rules: &[(&str, SourceVerdicts)]) -> SourceRules {
        rules
            .iter()
            .map(|(text, verdicts)| (prefix(text), *verdicts))
            .collect()
    }

    #[test]
    fn prefixes_of_both_families_are_read_and_written() {
        for (text, written) in [
            ("192.0.2.77/24", "192.0.2.0/24"),
            ("192.0.2.7", "192.0.2.7/32"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("2001:db8::1/32", "2001:db8::/32"),
            ("::/0", "::/0"),
            ("fe80::1", "fe80::1/128"),
        ] {
            assert_eq!(prefix(text).to_string(), written);
        }
        for text in [
            "",
            "192.0.2.0/33",
            "2001:db8::/129",
            "example.org",
            "192.0.2/24",
            "192.0.2.0/",
        ] {
            assert!(text.parse::<Prefix>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_longest_prefix_decides() {
        let policy = SourcePolicy::new([(
            Ingress::Any,
            rules(&[("10.0.0.0/8", DROP), ("10.1.0.0/16", ACCEPT), ("10.1.2.3", DROP)]),
        )])
        .unwrap();
        for (client, verdicts) in [
            ("10.2.0.1", DROP),
            ("10.1.0.1", ACCEPT),
            ("10.1.2.3", DROP),
            ("192.0.2.1", ACCEPT),
            ("2001:db8::1", ACCEPT),
        ] {
            assert_eq!(
                policy.verdicts(Ingress::Any, prefix(client)),
                verdicts,
                "{client}"
            );
        }
        assert_eq!(
            policy.to_string(),
            "accept ::/0, drop 10.0.0.0/8, accept 10.1.0.0/16, drop 10.1.2.3/32"
        );
    }

    #[test]
    fn what_says_nothing_new_is_left_out() {
        let policy = SourcePolicy::new([(
            Ingress::Any,
            rules(&[
                ("10.0.0.0/8", DROP),
                ("10.1.0.0/16", DROP),
                ("192.0.2.0/24", ACCEPT),
            ]),
        )]);
        assert_eq!(policy.unwrap().len(), 2);
        assert_eq!(
            SourcePolicy::new([(Ingress::Any, rules(&[("10.0.0.0/8", ACCEPT)]))]),
            None
        );
        let same = [Ingress::Uplink(2), Ingress::Containers]
            .map(|ingress| (ingress, rules(&[("10.0.0.0/8", DROP)])));
        assert!(!SourcePolicy::new(same).unwrap().is_by_interface());
    }

    #[test]
    fn an_open_flow_goes_on_where_one_uplink_lets_it() {
        let policy = SourcePolicy::new([
            (
                Ingress::Uplink(2),
                rules(&[("10.0.0.0/8", DROP), ("10.9.0.0/16", ACCEPT)]),
            ),
            (Ingress::Uplink(3), rules(&[("10.1.0.0/16", DROP)])),
            (Ingress::Containers, rules(&[("10.2.0.0/16", DROP)])),
        ])
        .unwrap();
        assert!(policy.is_by_interface());
        assert!(!policy.keeps(false, IpAddr::from([10, 1, 0, 1])));
        assert!(policy.keeps(false, IpAddr::from([10, 2, 0, 1])));
        assert!(!policy.keeps(true, IpAddr::from([10, 2, 0, 1])));
        assert!(policy.keeps(true, IpAddr::from([10, 1, 0, 1])));
    }
}
