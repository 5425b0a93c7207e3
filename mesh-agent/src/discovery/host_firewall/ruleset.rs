//! Rules of iptables as far as the mesh understands them, whichever part of the kernel holds them. What it
//! does not understand has a name, and nothing else. Pure.

use std::{collections::BTreeMap, fmt, net::Ipv4Addr, ops::RangeInclusive};

use crate::model::Subnet;

/// The chain that Docker sends all traffic to containers through first, for rules of the operator.
pub(super) const DOCKER_USER: &str = "DOCKER-USER";

/// Clients choose their ports from this one on.
pub(super) const FIRST_CLIENT_PORT: u16 = 1024;

/// The chains of one filter table, by name, each with its rules in order.
pub(super) type Chains = BTreeMap<String, Vec<Rule>>;

/// One rule: what it does with packets that all of its conditions hold for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) conditions: Vec<Condition>,
    pub(super) action: Action,
}

impl Rule {
    /// Whether it is about packets that come from ports of services, not from those that clients choose.
    pub(super) fn is_about_services_answers(&self) -> bool {
        self.conditions.iter().any(|condition| match &condition.subject {
            Subject::SourcePorts(ports) if !condition.inverted => {
                ports.iter().all(|range| *range.end() < FIRST_CLIENT_PORT)
            }
            _ => false,
        })
    }
}

/// What a rule does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Accept,
    Drop,
    Reject,
    /// Back to the chain that jumped here.
    Return,
    Jump(String),
    /// A jump that does not come back: what follows it in its own chain is passed over.
    Goto(String),
    /// Nothing that decides about the packet: a log entry, a mark, or no target at all.
    Continue(String),
    /// Something else that may decide about it.
    Other(String),
}

/// Which packets a rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) subject: Subject,
    /// Whether it holds for all packets but these.
    pub(super) inverted: bool,
}

/// What a condition looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    Source(Subnet),
    Destination(Subnet),
    SourceRange(RangeInclusive<Ipv4Addr>),
    DestinationRange(RangeInclusive<Ipv4Addr>),
    /// Of an interface: its name, or the beginning of it and a `+`.
    In(String),
    Out(String),
    /// An IP protocol's number.
    Protocol(u8),
    SourcePorts(Ports),
    DestinationPorts(Ports),
    /// Source or destination.
    EitherPort(Ports),
    /// The source of the first packet of the connection.
    OriginalSource(Subnet),
    /// What the client dialled, before Docker translated it.
    OriginalDestinationPorts(Ports),
    State(States),
    /// Whether the packet goes the way of the connection's first one.
    IsOriginal,
    /// A TCP packet with SYN, and without ACK, RST and FIN.
    Syn,
    /// Anything else, as iptables names it.
    Other(String),
}

/// Ports, each range with both of its ends.
pub(super) type Ports = Vec<RangeInclusive<u16>>;

/// States of connection tracking.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct States {
    pub(super) new: bool,
    pub(super) established: bool,
    /// Its destination has been translated, as Docker does with what is for a container.
    pub(super) translated: bool,
    /// Related, invalid, untracked and the like, which no packet of a flow of the mesh is.
    pub(super) others: bool,
}

impl Condition {
    pub(super) fn new(subject: Subject, inverted: bool) -> Self {
        Self { subject, inverted }
    }
}

/// As `iptables -S` would print it, about.
impl fmt::Display for Rule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for condition in &self.conditions {
            write!(formatter, "{condition} ")?;
        }
        match &self.action {
            Action::Accept => formatter.write_str("-j ACCEPT"),
            Action::Drop => formatter.write_str("-j DROP"),
            Action::Reject => formatter.write_str("-j REJECT"),
            Action::Return => formatter.write_str("-j RETURN"),
            Action::Jump(target) | Action::Continue(target) | Action::Other(target) => {
                write!(formatter, "-j {target}")
            }
            Action::Goto(chain) => write!(formatter, "-g {chain}"),
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let not = if self.inverted { "! " } else { "" };
        match &self.subject {
            Subject::Source(subnet) => write!(formatter, "{not}-s {subnet}"),
            Subject::Destination(subnet) => write!(formatter, "{not}-d {subnet}"),
            Subject::SourceRange(range) => {
                write!(
                    formatter,
                    "-m iprange {not}--src-range {}-{}",
                    range.start(),
                    range.end()
                )
            }
            Subject::DestinationRange(range) => {
                write!(
                    formatter,
                    "-m iprange {not}--dst-range {}-{}",
                    range.start(),
                    range.end()
                )
            }
            Subject::In(name) => write!(formatter, "{not}-i {name}"),
            Subject::Out(name) => write!(formatter, "{not}-o {name}"),
            Subject::Protocol(number) => match number {
                6 => write!(formatter, "{not}-p tcp"),
                17 => write!(formatter, "{not}-p udp"),
                number => write!(formatter, "{not}-p {number}"),
            },
            Subject::SourcePorts(ports) => write!(formatter, "{not}--sports {}", PortList(ports)),
            Subject::DestinationPorts(ports) => write!(formatter, "{not}--dports {}", PortList(ports)),
            Subject::EitherPort(ports) => write!(formatter, "{not}--ports {}", PortList(ports)),
            Subject::OriginalSource(subnet) => write!(formatter, "-m conntrack {not}--ctorigsrc {subnet}"),
            Subject::OriginalDestinationPorts(ports) => {
                write!(formatter, "-m conntrack {not}--ctorigdstport {}", PortList(ports))
            }
            Subject::State(states) => {
                let names = [
                    (states.new, "NEW"),
                    (states.established, "ESTABLISHED"),
                    (states.translated, "DNAT"),
                    (states.others, "others"),
                ];
                let names: Vec<_> = names
                    .iter()
                    .filter(|(held, _)| *held)
                    .map(|(_, name)| *name)
                    .collect();
                write!(formatter, "-m conntrack {not}--ctstate {}", names.join(","))
            }
            Subject::IsOriginal => write!(formatter, "-m conntrack {not}--ctdir ORIGINAL"),
            Subject::Syn => write!(formatter, "{not}--syn"),
            Subject::Other(name) => write!(formatter, "{not}-m {name}"),
        }
    }
}

struct PortList<'a>(&'a Ports);

impl fmt::Display for PortList<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, range) in self.0.iter().enumerate() {
            let comma = if number > 0 { "," } else { "" };
            write!(formatter, "{comma}{}", range.start())?;
            if range.start() != range.end() {
                write!(formatter, ":{}", range.end())?;
            }
        }
        Ok(())
    }
}
