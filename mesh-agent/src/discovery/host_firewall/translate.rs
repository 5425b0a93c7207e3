//! Translates the rules of DOCKER-USER to the mesh's source rules, for any published port. Pure.
//!
//! For each prefix that the rules name, the chain is walked for a client of that prefix (and of none that is
//! longer). A rule that cannot be decided beforehand does no harm where both outcomes lead to the same end: a
//! limit before a LOG, a string match before a packet that is dropped anyway. Elsewhere it makes the port one
//! that the mesh cannot serve.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    packet::{GATEWAY_BRIDGE, Packet, Phase, Truth, prefixes},
    ruleset::{Action, Chains, DOCKER_USER, Rule, Subject},
};
use crate::model::{
    Ingress, PortPolicies, PortPolicy, Prefix, Protocol, ServiceKey, SourcePolicy, SourceRules,
    SourceVerdict, SourceVerdicts, Subnet,
};

/// How deep chains may jump into each other; the kernel allows 16.
const DEPTH: usize = 16;

/// What of the node's network the rules are about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Network {
    /// Uplinks: index and name.
    pub(super) uplinks: BTreeMap<u32, String>,
    /// The networks of the bridges that containers are on, by name.
    pub(super) bridges: BTreeMap<String, BTreeSet<Subnet>>,
}

/// What the rules of all tables together mean for each port: a packet passes them one after the other, and
/// the strictest decides.
pub(super) fn translate(tables: &[Chains], network: &Network) -> PortPolicies {
    let mut policies = PortPolicies::default();
    let gateway = network.bridges.get(GATEWAY_BRIDGE);
    let gateway = gateway.and_then(|subnets| subnets.first().copied());
    let tables: Vec<Walker<'_>> = tables
        .iter()
        .filter(|chains| chains.get(DOCKER_USER).is_some_and(|rules| !rules.is_empty()))
        .map(|chains| Walker::new(chains, gateway))
        .collect();
    if tables.is_empty() {
        return policies;
    }
    let translation = Translation {
        by_interface: tables.iter().any(|walker| walker.names_interfaces),
        prefixes: tables
            .iter()
            .flat_map(|walker| walker.prefixes.iter().copied())
            .collect(),
        gateway,
        ports: tables
            .iter()
            .flat_map(|walker| walker.ports.iter().copied())
            .collect(),
        tables,
        network,
    };
    let mut known = BTreeSet::<Arc<SourcePolicy>>::new();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for port in translation.ports.iter().copied() {
            let policy = match translation.policy(ServiceKey { protocol, port }) {
                Ok(None) => PortPolicy::Everyone,
                Ok(Some(policy)) => {
                    let policy = known.get(&policy).cloned().unwrap_or_else(|| Arc::new(policy));
                    known.insert(Arc::clone(&policy));
                    PortPolicy::Rules(policy)
                }
                Err(rule) => PortPolicy::Inexpressible(rule.into()),
            };
            policies.from(protocol, port, policy);
        }
    }
    policies
}

struct Translation<'a> {
    tables: Vec<Walker<'a>>,
    network: &'a Network,
    by_interface: bool,
    prefixes: BTreeSet<Prefix>,
    gateway: Option<Subnet>,
    /// The ports at which rules begin or cease to hold.
    ports: BTreeSet<u16>,
}

impl Translation<'_> {
    /// The policy of a port, or the rule that cannot be expressed.
    fn policy(&self, service: ServiceKey) -> Result<Option<SourcePolicy>, String> {
        let mut rules = BTreeMap::new();
        if self.by_interface {
            for (index, name) in &self.network.uplinks {
                rules.insert(Ingress::Uplink(*index), self.rules(service, name)?);
            }
            rules.insert(Ingress::Containers, self.rules_of_containers(service)?);
        } else {
            rules.insert(Ingress::Any, self.rules(service, "")?);
        }
        Ok(SourcePolicy::new(rules))
    }

    fn rules(&self, service: ServiceKey, interface: &str) -> Result<SourceRules, String> {
        let prefixes = self.prefixes.iter();
        prefixes
            .map(|prefix| Ok((*prefix, self.verdicts(service, interface, *prefix)?)))
            .collect()
    }

    /// A container's packets come from its bridge; its address tells which that is. Any other address is of a
    /// container that sends in another's name, and gets the strictest verdict.
    fn rules_of_containers(&self, service: ServiceKey) -> Result<SourceRules, String> {
        let bridges = &self.network.bridges;
        let subnets = bridges.values().flatten().map(|subnet| Prefix::from(*subnet));
        let prefixes: BTreeSet<Prefix> = self.prefixes.iter().copied().chain(subnets).collect();
        let mut rules = SourceRules::new();
        for prefix in prefixes {
            let is_its = |subnets: &BTreeSet<Subnet>| {
                subnets
                    .iter()
                    .any(|subnet| Prefix::from(*subnet).contains(prefix))
            };
            let own = bridges.iter().find(|(_, subnets)| is_its(subnets));
            let verdicts = match own {
                Some((bridge, _)) => self.verdicts(service, bridge, prefix)?,
                None => {
                    let mut strictest = SourceVerdicts::default();
                    for bridge in bridges.keys() {
                        let verdicts = self.verdicts(service, bridge, prefix)?;
                        strictest.opening = strictest.opening.max(verdicts.opening);
                        strictest.open = strictest.open.max(verdicts.open);
                    }
                    strictest
                }
            };
            rules.insert(prefix, verdicts);
        }
        Ok(rules)
    }

    fn verdicts(
        &self,
        service: ServiceKey,
        interface: &str,
        client: Prefix,
    ) -> Result<SourceVerdicts, String> {
        let verdict = |phase| {
            let packet = Packet {
                service,
                phase,
                interface,
                client,
                gateway: self.gateway,
            };
            let mut strictest = SourceVerdict::Accept;
            for walker in &self.tables {
                strictest = strictest.max(walker.verdict(&packet)?);
            }
            Ok::<_, String>(strictest)
        };
        // A connection whose later packets or answers are dropped is none.
        let open = verdict(Phase::Open)?.max(verdict(Phase::Answer)?);
        let opening = verdict(Phase::Opening)?.max(open);
        Ok(SourceVerdicts { opening, open })
    }
}

/// The chains of a table that can be reached from DOCKER-USER, ready to be walked.
struct Walker<'a> {
    chains: BTreeMap<&'a str, Chain<'a>>,
    prefixes: BTreeSet<Prefix>,
    ports: BTreeSet<u16>,
    names_interfaces: bool,
}

/// The rules of a chain. There can be thousands that each name one client (fail2ban), so these are found by
/// the prefix that they name.
struct Chain<'a> {
    rules: &'a [Rule],
    by_source: BTreeMap<Prefix, Vec<usize>>,
    /// The lengths of those prefixes.
    lengths: BTreeSet<u8>,
    /// The others.
    general: Vec<usize>,
    /// Those that can be about answers, whose source is not the client.
    about_answers: Vec<usize>,
}

/// How a chain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Verdict(SourceVerdict),
    Return,
}

impl<'a> Walker<'a> {
    fn new(chains: &'a Chains, gateway: Option<Subnet>) -> Self {
        let mut walker = Self {
            chains: BTreeMap::new(),
            prefixes: BTreeSet::from([Prefix::ALL]),
            ports: BTreeSet::from([0]),
            names_interfaces: false,
        };
        let mut reached = vec![DOCKER_USER];
        while let Some(name) = reached.pop() {
            let Some(rules) = chains.get(name).filter(|_| !walker.chains.contains_key(name)) else {
                continue;
            };
            walker.add(name, rules, gateway.map(Prefix::from));
            reached.extend(rules.iter().filter_map(|rule| match &rule.action {
                Action::Jump(chain) | Action::Goto(chain) => Some(chain.as_str()),
                _ => None,
            }));
        }
        walker
    }

    fn add(&mut self, name: &'a str, rules: &'a [Rule], gateway: Option<Prefix>) {
        let mut chain = Chain {
            rules,
            by_source: BTreeMap::new(),
            lengths: BTreeSet::new(),
            general: Vec::new(),
            about_answers: Vec::new(),
        };
        for (index, rule) in rules.iter().enumerate() {
            let mut source = None;
            for condition in &rule.conditions {
                match &condition.subject {
                    Subject::Source(subnet) => {
                        self.prefixes.insert((*subnet).into());
                        if !condition.inverted {
                            source = Some(Prefix::from(*subnet));
                        }
                    }
                    Subject::Destination(subnet) | Subject::OriginalSource(subnet) => {
                        self.prefixes.insert((*subnet).into());
                    }
                    Subject::SourceRange(range) | Subject::DestinationRange(range) => {
                        self.prefixes.extend(prefixes(range));
                    }
                    Subject::In(_) | Subject::Out(_) => self.names_interfaces = true,
                    Subject::SourcePorts(ports)
                    | Subject::DestinationPorts(ports)
                    | Subject::EitherPort(ports)
                    | Subject::OriginalDestinationPorts(ports) => {
                        for range in ports {
                            self.ports.insert(*range.start());
                            self.ports.extend(range.end().checked_add(1));
                        }
                    }
                    Subject::Protocol(_)
                    | Subject::State(_)
                    | Subject::IsOriginal
                    | Subject::Syn
                    | Subject::Other(_) => {}
                }
            }
            let is_apart = |source: Prefix| {
                gateway.is_some_and(|gateway| !source.contains(gateway) && !gateway.contains(source))
            };
            if !source.is_some_and(is_apart) {
                chain.about_answers.push(index);
            }
            match source {
                Some(prefix) => {
                    chain.lengths.insert(prefix.length());
                    chain.by_source.entry(prefix).or_default().push(index);
                }
                None => chain.general.push(index),
            }
        }
        self.chains.insert(name, chain);
    }

    /// What the rules do with a packet; or the rule on which it depends and that cannot be expressed.
    fn verdict(&self, packet: &Packet<'_>) -> Result<SourceVerdict, String> {
        match self.walk(DOCKER_USER, packet, 0)? {
            End::Verdict(verdict) => Ok(verdict),
            // Docker's own rules follow, which let it in.
            End::Return => Ok(SourceVerdict::Accept),
        }
    }

    fn walk(&self, name: &str, packet: &Packet<'_>, depth: usize) -> Result<End, String> {
        let Some(chain) = self.chains.get(name) else {
            return Ok(End::Return);
        };
        if depth > DEPTH {
            return Err(format!("the chains below {DOCKER_USER} jump into each other"));
        }
        // What rules that may hold lead to, up to the first one that decides.
        let mut possible: Vec<(&Rule, End)> = Vec::new();
        let mut end = End::Return;
        for index in chain.relevant(packet) {
            let rule = &chain.rules[index];
            let truth = packet.meets(&rule.conditions);
            if truth == Truth::No || matches!(rule.action, Action::Continue(_)) {
                continue;
            }
            let (outcome, goes_on) = match &rule.action {
                Action::Accept => (End::Verdict(SourceVerdict::Accept), false),
                Action::Drop => (End::Verdict(SourceVerdict::Drop), false),
                Action::Reject => (End::Verdict(SourceVerdict::Reject), false),
                Action::Return | Action::Continue(_) => (End::Return, false),
                Action::Goto(chain) => (self.walk(chain, packet, depth + 1)?, false),
                Action::Jump(chain) => {
                    let outcome = self.walk(chain, packet, depth + 1)?;
                    (outcome, outcome == End::Return)
                }
                Action::Other(_) => return Err(described(name, rule)),
            };
            if goes_on {
                continue;
            }
            if truth == Truth::Yes {
                end = outcome;
                break;
            }
            // A service's answers to containers and the host are let in by its port (`--sport 53`). That a
            // client chooses such a port is chance, and no reason to come in.
            let lets_in = match outcome {
                End::Verdict(verdict) => verdict == SourceVerdict::Accept,
                End::Return => depth == 0,
            };
            if lets_in && packet.phase != Phase::Answer && rule.is_about_services_answers() {
                continue;
            }
            possible.push((rule, outcome));
        }
        // To the top chain, the end of the chain and an ACCEPT are the same.
        let same = |one: End, other: End| {
            one == other
                || (depth == 0
                    && [one, other]
                        .iter()
                        .all(|end| matches!(end, End::Return | End::Verdict(SourceVerdict::Accept))))
        };
        match possible.into_iter().find(|(_, outcome)| !same(*outcome, end)) {
            Some((rule, _)) => Err(described(name, rule)),
            None => Ok(end),
        }
    }
}

impl Chain<'_> {
    /// The rules that can hold for a packet, in their order.
    fn relevant(&self, packet: &Packet<'_>) -> Vec<usize> {
        if packet.phase == Phase::Answer {
            return self.about_answers.clone();
        }
        let mut found = self.general.clone();
        let lengths = self.lengths.range(..=packet.client.length());
        let parents = lengths.map(|length| Prefix::of(packet.client.address(), *length));
        found.extend(parents.filter_map(|prefix| self.by_source.get(&prefix)).flatten());
        found.sort_unstable();
        found
    }
}

fn described(chain: &str, rule: &Rule) -> String {
    format!("-A {chain} {rule}")
}
