//! Puts an operator's question about a packet to the data path, and its answer into sentences. Pure.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use super::{
    View,
    api::{self, ExplainQuery, Explained, ExplainedOutcome, Step},
    flows::{backend, node_name},
    routes::{backend_reason, drained, failed},
};
use crate::{
    datapath::{
        Mode, UNANSWERED_LIMIT,
        explain::{Chosen, Explanation, KnownFlow, Outcome, PacketIngress, Question, Tunnelled},
        mapped,
    },
    model::{
        self, BackendKey, Ingress, Location, Prefix, Service, ServiceEntry, ServiceKey, SourcePolicy,
        SourceVerdict,
    },
};

/// The source port of a packet whose port is not given: one of those that clients use.
const ANY_PORT: u16 = 50_000;

/// The packet that a query is about, and the interface that it enters by, if it is an uplink. `index_of` says
/// which interface has a name, `route_to` which one leads to an address.
///
/// # Errors
/// When the interface is none by which packets come to the mesh.
pub(super) fn question(
    view: &View,
    query: &ExplainQuery,
    index_of: impl Fn(&str) -> Option<u32>,
    route_to: impl Fn(Ipv4Addr) -> Option<u32>,
) -> Result<Question, String> {
    let (source, destination) = addresses(view, query)?;
    let is_ipv6 = query.source.is_ipv6();
    let ingress = match &query.interface {
        Some(name) => named(view, name, index_of)?,
        None if is_of_node(view, query.source) => PacketIngress::Host,
        None => match container(view, source) {
            Some(interface) => PacketIngress::Container { interface },
            None => arriving(view, if is_ipv6 { None } else { route_to(source) })?,
        },
    };
    Ok(Question {
        protocol: query.protocol,
        source: SocketAddrV4::new(source, source_port(query)),
        ipv6_client: match query.source {
            IpAddr::V6(client) => Some(client),
            IpAddr::V4(_) => None,
        },
        destination,
        ingress,
    })
}

fn source_port(query: &ExplainQuery) -> u16 {
    query.source_port.unwrap_or(ANY_PORT)
}

/// The packet's addresses as the pipeline has them.
fn addresses(view: &View, query: &ExplainQuery) -> Result<(Ipv4Addr, SocketAddrV4), String> {
    match (query.source, query.destination) {
        (IpAddr::V4(source), SocketAddr::V4(destination)) => Ok((source, destination)),
        (IpAddr::V6(source), SocketAddr::V6(destination)) => {
            let own = view.desired.own_ipv6.get(destination.ip());
            let is_local = destination.ip().is_loopback();
            let own = own.copied().or(is_local.then_some(Ipv4Addr::LOCALHOST));
            let own = own.ok_or_else(|| {
                format!(
                    "this node answers at no IPv6 address {}: `meshctl status` says at how many it does, or why at none",
                    destination.ip()
                )
            })?;
            let node = view.desired.settings.node_address;
            let source = match node.filter(|_| is_of_node(view, query.source)) {
                Some(node) => node,
                None => mapped::preferred(source),
            };
            Ok((source, SocketAddrV4::new(own, destination.port())))
        }
        _ => Err("the client and what it dials must both be IPv4 or both IPv6 addresses".to_owned()),
    }
}

fn named(view: &View, name: &str, index_of: impl Fn(&str) -> Option<u32>) -> Result<PacketIngress, String> {
    if let Some(uplink) = view.desired.uplinks.get(name) {
        return Ok(uplink_of(view, name, uplink.index));
    }
    let index = index_of(name).filter(|index| view.desired.container_interfaces.contains(index));
    match index {
        Some(interface) => Ok(PacketIngress::Container { interface }),
        None => Err(format!(
            "{name} is neither an uplink of the mesh nor a container's: the uplinks are {}",
            uplinks(view)
        )),
    }
}

/// Whether processes of this node have an address.
fn is_of_node(view: &View, address: IpAddr) -> bool {
    let mut frontends = view.desired.frontends.iter();
    address.is_loopback()
        || match address {
            IpAddr::V4(address) => {
                view.desired.settings.node_address == Some(address)
                    || frontends.any(|frontend| frontend.address == address)
            }
            IpAddr::V6(address) => view.desired.own_ipv6.contains_key(&address),
        }
}

/// The veth of the container of this node that has an address.
fn container(view: &View, address: Ipv4Addr) -> Option<u32> {
    let mut backends = view.desired.backends.values();
    backends.find_map(|backend| match backend.location {
        Location::Local(container) if container.address == address => Some(container.host_interface),
        Location::Local(_) | Location::Remote(_) => None,
    })
}

/// The uplink by which a client's packets arrive: the one that leads back to it, if that is one.
fn arriving(view: &View, way_back: Option<u32>) -> Result<PacketIngress, String> {
    let uplinks = &view.desired.uplinks;
    let leading = uplinks.iter().find(|(_, uplink)| Some(uplink.index) == way_back);
    match leading.or_else(|| uplinks.first_key_value()) {
        Some((name, uplink)) => Ok(uplink_of(view, name, uplink.index)),
        None => Err("this node has no uplink yet; `meshctl status` says why".to_owned()),
    }
}

fn uplink_of(view: &View, name: &str, interface: u32) -> PacketIngress {
    let mode = view.modes.iter().find(|mode| mode.interface == name);
    let has_xdp = mode.is_some_and(|mode| matches!(mode.mode, Mode::XdpNative | Mode::XdpGeneric));
    PacketIngress::Uplink { interface, has_xdp }
}

fn uplinks(view: &View) -> String {
    let names: Vec<_> = view.desired.uplinks.keys().map(String::as_str).collect();
    names.join(", ")
}

/// The answer, a sentence for each decision.
pub(super) fn answer(
    view: &View,
    query: &ExplainQuery,
    question: &Question,
    found: &Explanation,
) -> Explained {
    let narrator = Narrator {
        view,
        question,
        found,
    };
    let (outcome, reason) = match &found.outcome {
        Outcome::Passed => (ExplainedOutcome::LeftToKernel, None),
        Outcome::Dropped { reason } => (ExplainedOutcome::Dropped, Some(reason.clone())),
        Outcome::Refused { reason } => (ExplainedOutcome::Refused, Some(reason.clone())),
        Outcome::Delivered { .. } => (ExplainedOutcome::Delivered, None),
        Outcome::Forwarded(_) => (ExplainedOutcome::Forwarded, None),
        Outcome::Reply => (ExplainedOutcome::Reply, None),
    };
    Explained {
        version: api::VERSION,
        node: view.node.clone(),
        hostname: view.hostname(),
        protocol: question.protocol,
        source: SocketAddr::new(query.source, source_port(query)),
        is_port_assumed: query.source_port.is_none(),
        destination: query.destination,
        steps: narrator.steps(),
        outcome,
        reason,
        backend: found.backend.map(|key| backend(view, &key)),
        is_forecast: found.choice.as_ref().is_some_and(|choice| choice.is_forecast),
    }
}

struct Narrator<'a> {
    view: &'a View,
    question: &'a Question,
    found: &'a Explanation,
}

impl Narrator<'_> {
    /// What stands for an IPv6 client and what it dials.
    fn version(&self) -> Option<String> {
        let (source, destination) = (self.question.source.ip(), self.question.destination.ip());
        let is_mapped = model::mapped::is_client(*source) && model::mapped::is_own(*destination);
        is_mapped.then(|| {
            format!(
                "IPv6, which becomes IPv4 here: {source} stands for the client (replicas see it), {destination} for the \
                 address that it dials"
            )
        })
    }

    fn steps(&self) -> Vec<Step> {
        let found = self.found;
        let mut steps = Vec::new();
        let mut step = |name: &str, detail: Option<String>| {
            steps.extend(detail.map(|detail| Step {
                step: name.to_owned(),
                detail,
            }));
        };
        step("ip version", self.version());
        step("interface", Some(self.ingress()));
        step("hooks", Some(self.hooks()));
        step("port", Some(self.port()));
        if found.flow.is_none() {
            step("frontend", self.frontend());
        }
        step("flow", self.flow());
        step("source rules", self.rules());
        step("flood limit", self.flood());
        step(
            "algorithm",
            found.choice.as_ref().map(|choice| self.algorithm(choice)),
        );
        step("health", self.health());
        if let Some(key) = &found.backend {
            step("replica", Some(self.replica(key)));
            step("node", Some(self.node(key)));
        }
        if let Outcome::Forwarded(way) = &found.outcome {
            step("tunnel", Some(self.tunnel(way)));
            step(
                "MTU",
                Some(format!("packets of up to {} bytes fit into the tunnel", way.mtu)),
            );
        }
        step(
            "source",
            found
                .presented
                .map(|shown| format!("the replica sees {shown} as the client")),
        );
        step("way back", self.way_back());
        step("outcome", Some(self.outcome()));
        steps
    }

    fn ingress(&self) -> String {
        match self.question.ingress {
            PacketIngress::Uplink { interface, .. } => {
                let mut uplinks = self.view.desired.uplinks.iter();
                let name = uplinks.find(|(_, uplink)| uplink.index == interface);
                let name = name.map_or_else(|| interface.to_string(), |(name, _)| name.clone());
                format!("it arrives by {name}, an uplink")
            }
            PacketIngress::Container { interface } => {
                format!("a container of this node sends it, by its veth (interface {interface})")
            }
            PacketIngress::Host => {
                "a process of this node sends it, redirected to the service address (socket hook)".to_owned()
            }
        }
    }

    fn hooks(&self) -> String {
        let hooks = self.found.hooks.iter();
        let each: Vec<_> = hooks
            .map(|(hook, verdict)| format!("{hook}: {verdict}"))
            .collect();
        each.join(", ")
    }

    fn key(&self) -> ServiceKey {
        ServiceKey {
            protocol: self.question.protocol,
            port: self.question.destination.port(),
        }
    }

    fn entry(&self) -> Option<&ServiceEntry> {
        self.view.desired.services.get(&self.key())
    }

    fn port(&self) -> String {
        match (self.found.is_published, self.entry()) {
            (true, Some(entry)) => format!("{} is published by {}", self.key(), entry.name),
            (true, None) => format!("{} is published", self.key()),
            (false, _) => format!("no service publishes {}", self.key()),
        }
    }

    fn frontend(&self) -> Option<String> {
        if !self.found.is_published {
            return None;
        }
        let address = self.question.destination.ip();
        if self.found.is_closed {
            return Some(format!(
                "{address} refuses everyone for this service (label mesh.publish-on)"
            ));
        }
        if self.found.service.is_some() {
            return Some(format!("{address} is answered"));
        }
        let key = self.key();
        let desired = &self.view.desired;
        Some(if let Some(purpose) = desired.left.get(&key) {
            format!("the mesh does not answer it: the port is that of {purpose}")
        } else if let Some(rule) = desired.inexpressible.get(&key) {
            format!("the mesh does not answer it because of a rule that it cannot express: {rule}")
        } else if let Some(reason) = self.view.refused_services.get(&key) {
            format!("the mesh does not answer it: the kernel refuses the service: {reason}")
        } else if let Some(other) = self.other_node() {
            format!("{address} is an address of {other}, which answers there: ask it (--node {other})")
        } else {
            format!(
                "{address} is not answered for this service: it is no address of this node, or none of the \
                     service's replicas can be reached from here"
            )
        })
    }

    /// The host name of the node that was asked about, if it is another one.
    fn other_node(&self) -> Option<&str> {
        let address = self.question.destination.ip();
        let mut nodes = self.view.source.cluster.nodes.iter();
        let (_, node) = nodes.find(|(id, node)| **id != self.view.node && node.address == *address)?;
        Some(&node.hostname)
    }

    fn flow(&self) -> Option<String> {
        let found = self.found;
        match found.flow {
            Some(KnownFlow { backend: None, .. }) => Some("there is one, whose replica is gone".to_owned()),
            Some(KnownFlow {
                backend: Some(key),
                state,
                idle_seconds,
            }) => Some(format!(
                "there is one to {}, {}, idle for {idle_seconds} s: its next packet",
                self.task(&key),
                state.name()
            )),
            None if found.is_answer => {
                Some("it is the answer to a datagram of this node, and left to the kernel".to_owned())
            }
            None => found
                .service
                .map(|_| "none yet: the packet would open one".to_owned()),
        }
    }

    fn rules(&self) -> Option<String> {
        let found = self.found;
        if found.flow.is_some() && found.rules.is_none() {
            return Some("not asked for the packets of a known flow".to_owned());
        }
        found.service?;
        let Some(verdict) = found.rules else {
            return Some(match self.question.ingress {
                PacketIngress::Host => "none are about processes of the node".to_owned(),
                PacketIngress::Uplink { .. } | PacketIngress::Container { .. } => {
                    "the service has none: everyone may come in".to_owned()
                }
            });
        };
        Some(match verdict {
            SourceVerdict::Accept => format!("{} may come in", self.question.client()),
            SourceVerdict::Reject => format!("the client is rejected, by {}", self.rule_of(verdict)),
            SourceVerdict::Drop => format!("the client is dropped, by {}", self.rule_of(verdict)),
        })
    }

    /// Whose rules have this verdict: the service's labels, the node's own, or else the host's firewall.
    fn rule_of(&self, verdict: SourceVerdict) -> String {
        let ingress = match self.question.ingress {
            PacketIngress::Uplink { interface, .. } => Ingress::Uplink(interface),
            PacketIngress::Container { .. } | PacketIngress::Host => Ingress::Containers,
        };
        let client = Prefix::from(self.question.client());
        let says = |policy: Option<SourcePolicy>| {
            policy.is_some_and(|policy| policy.verdicts(ingress, client).opening == verdict)
        };
        let service = self
            .entry()
            .and_then(|entry| self.view.source.cluster.services.get(&entry.id));
        let by_clients = |service: &Service| {
            let rules = service.clients.rules();
            says(SourcePolicy::new([(Ingress::Any, rules)]))
        };
        if service.is_some_and(by_clients) {
            return "the service's labels mesh.allow and mesh.deny".to_owned();
        }
        let uplinks = self.view.desired.uplinks.iter();
        let uplinks = uplinks
            .map(|(name, uplink)| (name.as_str(), uplink.index))
            .collect();
        let key = self.key();
        if says(self.view.policy.of(key.protocol, key.port, &uplinks)) {
            return "the node's own rules (setting policy)".to_owned();
        }
        if service.is_some_and(|service| !service.publish_on.interfaces.is_empty()) {
            return "the service's label mesh.publish-on, or the host's firewall (chain DOCKER-USER)"
                .to_owned();
        }
        "the host's firewall (chain DOCKER-USER)".to_owned()
    }

    fn flood(&self) -> Option<String> {
        let is_flooded = self.found.choice.as_ref().is_some_and(|choice| choice.is_flooded);
        is_flooded.then(|| {
            "the service is past it: no entry for the flow, and the choice goes by a hash".to_owned()
        })
    }

    fn algorithm(&self, choice: &Chosen) -> String {
        let name = self
            .entry()
            .map_or(choice.how.as_str(), |entry| entry.balance.algorithm.name());
        if choice.has_affinity {
            return "the client stays with the replica of its last connection (label mesh.affinity)"
                .to_owned();
        }
        let slots: Vec<_> = choice.slots.iter().map(|(slot, _)| slot.to_string()).collect();
        let forecast = if choice.is_forecast {
            " (a forecast: it depends on what comes first)"
        } else {
            ""
        };
        format!(
            "{name} ({}): slot {} of {}{forecast}",
            choice.how,
            slots.join(", "),
            choice.ring_length
        )
    }

    fn health(&self) -> Option<String> {
        let asked = self.found.unanswered.iter();
        let failing: Vec<_> = asked
            .filter(|(_, unanswered)| **unanswered >= UNANSWERED_LIMIT)
            .map(|(key, unanswered)| format!("{} ({unanswered} connections unanswered)", self.task(key)))
            .collect();
        let of_backend = self.found.backend.and_then(|key| {
            let backend = self.view.desired.backends.get(&key)?;
            drained(self.view, backend)
                .or_else(|| failed(self.view, backend))
                .or_else(|| backend_reason(self.view, backend))
        });
        match (failing.is_empty(), of_backend, self.found.backend) {
            (true, None, Some(_)) => Some("nothing is known against the replica".to_owned()),
            (true, reason, _) => reason,
            (false, reason, _) => {
                let failing = format!("passed over where others answer: {}", failing.join(", "));
                Some(reason.map_or_else(|| failing.clone(), |reason| format!("{failing}; {reason}")))
            }
        }
    }

    fn task(&self, key: &BackendKey) -> String {
        backend(self.view, key).task
    }

    fn replica(&self, key: &BackendKey) -> String {
        let state = self
            .view
            .desired
            .backends
            .get(key)
            .map(|backend| backend.state.name());
        let shown = backend(self.view, key);
        format!(
            "{}, {}, {}",
            shown.task,
            shown.address,
            state.unwrap_or("removed since")
        )
    }

    fn node(&self, key: &BackendKey) -> String {
        match &self.found.outcome {
            Outcome::Delivered { interface } => {
                format!("this one: into the container by its veth (interface {interface})")
            }
            Outcome::Forwarded(way) => {
                let name = node_name(self.view, way.peer);
                let probed = self.view.probes.peers.get(&way.peer);
                let probes = match probed.and_then(|peer| peer.answers) {
                    Some(true) => ", answers probes",
                    Some(false) => ", does not answer probes",
                    None => "",
                };
                format!("{name} ({}){probes}", way.peer)
            }
            Outcome::Passed | Outcome::Dropped { .. } | Outcome::Refused { .. } | Outcome::Reply => {
                backend(self.view, key).node
            }
        }
    }

    fn tunnel(&self, way: &Tunnelled) -> String {
        let key = if way.has_key {
            "with the cluster's key"
        } else {
            "without a key"
        };
        match way.interface {
            Some(interface) => format!("Geneve, {key}, by interface {interface}"),
            None => format!("Geneve, {key}; the next hop is not resolved yet, so the kernel finds it"),
        }
    }

    fn way_back(&self) -> Option<String> {
        Some(match &self.found.outcome {
            Outcome::Forwarded(way) if way.is_direct => {
                "from the replica's node to the client directly (return mode dsr)".to_owned()
            }
            Outcome::Forwarded(_) => {
                "through the tunnel to this node, and from here to the client".to_owned()
            }
            Outcome::Delivered { .. } => "from the container's veth to the client".to_owned(),
            Outcome::Passed | Outcome::Dropped { .. } | Outcome::Refused { .. } | Outcome::Reply => {
                return None;
            }
        })
    }

    fn outcome(&self) -> String {
        let task = self.found.backend.map(|key| self.task(&key)).unwrap_or_default();
        match &self.found.outcome {
            Outcome::Passed => "left to the kernel, as if there were no mesh".to_owned(),
            Outcome::Dropped { reason } => format!("dropped without an answer ({reason})"),
            Outcome::Refused { reason } => format!("refused with RST or ICMP ({reason})"),
            Outcome::Delivered { .. } => format!("delivered to {task}"),
            Outcome::Forwarded(way) => format!("sent to {task} on {}", node_name(self.view, way.peer)),
            Outcome::Reply => "a replica's reply: sent to its client".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests;
