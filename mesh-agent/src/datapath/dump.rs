//! What the tables of a data path hold, and the text that `meshctl datapath dump` prints of it.
//!
//! Objects are named by what they are, not by their index in a map, so that the text of one desired state
//! is the same on every node, whatever was there before.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4},
};

use serde::{Deserialize, Serialize};

use crate::model::{Location, Masquerade, NextHop, NodeDatapath, Protocol, ServiceKey};

/// Rings of more slots than this are printed as the number of slots of each backend.
const PRINTED_RING: usize = 32;

/// The tables of a data path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dump {
    /// Whose tables these are.
    pub datapath: NodeDatapath,
    /// Node-wide settings; eBPF only.
    pub settings: Option<DumpedSettings>,
    /// Services, and the rings that new flows choose from; eBPF only.
    pub services: Vec<DumpedService>,
    /// Backends, draining ones included; eBPF only.
    pub backends: Vec<DumpedBackend>,
    /// The node's IPv6 addresses that are translated; eBPF only.
    #[serde(default)]
    pub own_ipv6: Vec<DumpedIpv6>,
    /// Where services are answered; eBPF only.
    pub frontends: Vec<DumpedFrontend>,
    /// Peers and the next hops to them; eBPF only.
    pub peers: Vec<DumpedPeer>,
    /// What containers see instead of clients of their own networks; eBPF only.
    #[serde(default)]
    pub masquerades: Vec<DumpedMasquerade>,
    /// Who may come in, by service; eBPF only.
    #[serde(default)]
    pub policies: Vec<DumpedPolicy>,
    /// Virtual services; IPVS only.
    pub virtual_services: Vec<DumpedVirtualService>,
    /// Entries of the flow table, as many as were asked for; eBPF only.
    pub flows: Vec<DumpedFlow>,
}

/// Node-wide settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DumpedSettings {
    /// This node's address as its peers know it.
    pub node_address: Ipv4Addr,
    /// Geneve network identifier.
    pub vni: u32,
    /// Whether remote backends answer clients directly.
    pub direct_return: bool,
    /// Interface index of mesh0; 0 while there is none.
    pub mesh0: u32,
}

/// A service and its ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DumpedService {
    /// Protocol and published port.
    pub service: ServiceKey,
    /// How a slot of the ring is chosen: `rotate`, `random`, `hash-endpoint`, `hash-address` or `least`.
    pub choice: String,
    /// The backend in each slot, by its cluster-wide address.
    pub ring: Vec<Ipv4Addr>,
    /// The same of the backends that are chosen only where none of the ring works.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<Ipv4Addr>,
}

/// A backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DumpedBackend {
    /// The published port that it serves.
    pub service: ServiceKey,
    /// Its cluster-wide address.
    pub address: Ipv4Addr,
    /// Port inside the container.
    pub target_port: u16,
    /// Fingerprint of its task's id.
    pub tag: u16,
    /// Where its packets go.
    pub location: Location,
}

/// An IPv6 address of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DumpedIpv6 {
    /// The address.
    pub address: Ipv6Addr,
    /// The IPv4 address that stands for it in frontends.
    pub mapped: Ipv4Addr,
}

/// An answered address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DumpedFrontend {
    /// The service that answers.
    pub service: ServiceKey,
    /// The address.
    pub address: Ipv4Addr,
    /// Whether it refuses everyone.
    #[serde(default)]
    pub closed: bool,
}

/// A peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DumpedPeer {
    /// Its address.
    pub address: Ipv4Addr,
    /// The next hop to it; `None` while it is not resolved.
    pub next_hop: Option<NextHop>,
}

/// Clients that a container would answer by a network of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DumpedMasquerade {
    /// The container and the clients.
    #[serde(flatten)]
    pub key: Masquerade,
    /// The source that the container sees.
    pub source: Ipv4Addr,
}

/// The source rules of a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DumpedPolicy {
    /// The service.
    pub service: ServiceKey,
    /// Its rules, of which the longest prefix decides.
    pub rules: String,
}

/// A virtual service of IPVS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DumpedVirtualService {
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// IPVS's scheduler.
    pub scheduler: String,
    /// Seconds for which a client keeps its destination.
    pub persistence: Option<u32>,
    /// Its destinations.
    pub destinations: Vec<DumpedDestination>,
}

/// A destination of a virtual service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DumpedDestination {
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Its weight; 0 while it drains.
    pub weight: u32,
}

/// An entry of the flow table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DumpedFlow {
    /// The protocol's number.
    pub protocol: u32,
    /// Source of the packets that the entry is for.
    pub source: SocketAddrV4,
    /// Destination of those packets.
    pub destination: SocketAddrV4,
    /// `forward`, `reply` or `alias`.
    pub role: String,
    /// Where the client's packets enter: `uplink`, `mesh0`, `container`, `tunnel` or `tunnel-direct`.
    pub origin: String,
    /// The cluster-wide address of the backend; `None` if that backend is gone.
    pub backend: Option<Ipv4Addr>,
    /// Seconds since a packet was last seen.
    pub idle_seconds: u32,
}

impl fmt::Display for Dump {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "datapath {}", self.datapath.name())?;
        if let Some(settings) = &self.settings {
            writeln!(formatter, "settings {settings}")?;
        }
        section(formatter, "services", &self.services)?;
        section(formatter, "backends", &self.backends)?;
        section(formatter, "IPv6 addresses", &self.own_ipv6)?;
        section(formatter, "frontends", &self.frontends)?;
        section(formatter, "peers", &self.peers)?;
        section(formatter, "masquerades", &self.masquerades)?;
        section(formatter, "source rules", &self.policies)?;
        section(formatter, "virtual services", &self.virtual_services)?;
        section(formatter, "flows", &self.flows)
    }
}

fn section<T: fmt::Display>(formatter: &mut fmt::Formatter<'_>, title: &str, rows: &[T]) -> fmt::Result {
    if rows.is_empty() {
        return Ok(());
    }
    writeln!(formatter, "{title}")?;
    rows.iter().try_for_each(|row| writeln!(formatter, "  {row}"))
}

impl fmt::Display for DumpedSettings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let return_mode = if self.direct_return { "dsr" } else { "tunnel" };
        write!(
            formatter,
            "node {} vni {:#08x} return {return_mode} mesh0 ",
            self.node_address, self.vni
        )?;
        match self.mesh0 {
            0 => formatter.write_str("none"),
            index => write!(formatter, "interface {index}"),
        }
    }
}

impl fmt::Display for DumpedService {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}:", self.service, self.choice)?;
        if self.ring.is_empty() {
            return formatter.write_str(" no backends");
        }
        print_ring(formatter, &self.ring)?;
        if !self.others.is_empty() {
            formatter.write_str(", otherwise")?;
            print_ring(formatter, &self.others)?;
        }
        Ok(())
    }
}

fn print_ring(formatter: &mut fmt::Formatter<'_>, ring: &[Ipv4Addr]) -> fmt::Result {
    if ring.len() <= PRINTED_RING {
        return ring
            .iter()
            .try_for_each(|address| write!(formatter, " {address}"));
    }
    let mut slots = BTreeMap::<Ipv4Addr, usize>::new();
    for address in ring {
        *slots.entry(*address).or_default() += 1;
    }
    slots
        .iter()
        .try_for_each(|(address, count)| write!(formatter, " {address} in {count} slots"))
}

impl fmt::Display for DumpedBackend {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            service,
            address,
            target_port,
            tag,
            location,
        } = self;
        write!(formatter, "{service} {address} tag {tag:#06x} ")?;
        match location {
            Location::Local(container) => write!(
                formatter,
                "local {}:{target_port} interface {} mac {} gateway {}",
                container.address, container.host_interface, container.mac, container.gateway_mac
            ),
            Location::Remote(node) => write!(formatter, "on {node} port {target_port}"),
        }
    }
}

impl fmt::Display for DumpedIpv6 {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} as {}", self.address, self.mapped)
    }
}

impl fmt::Display for DumpedFrontend {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let closed = if self.closed { " closed" } else { "" };
        write!(formatter, "{} {}{closed}", self.service, self.address)
    }
}

impl fmt::Display for DumpedPeer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} ", self.address)?;
        match &self.next_hop {
            Some(next_hop) => next_hop.fmt(formatter),
            None => formatter.write_str("unresolved"),
        }
    }
}

impl fmt::Display for DumpedMasquerade {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} as {}", self.key, self.source)
    }
}

impl fmt::Display for DumpedPolicy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.service, self.rules)
    }
}

impl fmt::Display for DumpedVirtualService {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut head = format!(
            "{}/{} {} {}",
            self.protocol, self.port, self.address, self.scheduler
        );
        if let Some(seconds) = self.persistence {
            write!(head, " persistent for {seconds} s")?;
        }
        write!(formatter, "{head}:")?;
        if self.destinations.is_empty() {
            return formatter.write_str(" no destinations");
        }
        self.destinations.iter().try_for_each(|destination| {
            let DumpedDestination {
                address,
                port,
                weight,
            } = destination;
            write!(formatter, " {address}:{port} weight {weight}")
        })
    }
}

impl fmt::Display for DumpedFlow {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.protocol {
            6 => formatter.write_str("tcp")?,
            17 => formatter.write_str("udp")?,
            other => write!(formatter, "protocol {other}")?,
        }
        write!(
            formatter,
            " {} -> {} {} from {} ",
            self.source, self.destination, self.role, self.origin
        )?;
        match self.backend {
            Some(backend) => write!(formatter, "to {backend}")?,
            None => formatter.write_str("to a backend that is gone")?,
        }
        write!(formatter, " idle {} s", self.idle_seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_rings_are_printed_by_backend() {
        let service = |ring| DumpedService {
            service: ServiceKey {
                protocol: Protocol::Tcp,
                port: 9200,
            },
            choice: "hash-address".to_owned(),
            ring,
            others: Vec::new(),
        };
        let (one, other) = (Ipv4Addr::new(10, 0, 0, 5), Ipv4Addr::new(10, 0, 0, 6));
        assert_eq!(
            service(vec![one, other]).to_string(),
            "tcp/9200 hash-address: 10.0.0.5 10.0.0.6"
        );
        let mut ring = vec![one; 20];
        ring.extend([other; 21]);
        assert_eq!(
            service(ring).to_string(),
            "tcp/9200 hash-address: 10.0.0.5 in 20 slots 10.0.0.6 in 21 slots"
        );
        assert_eq!(service(vec![]).to_string(), "tcp/9200 hash-address: no backends");
        let preferring = DumpedService {
            others: vec![other],
            ..service(vec![one])
        };
        assert_eq!(
            preferring.to_string(),
            "tcp/9200 hash-address: 10.0.0.5, otherwise 10.0.0.6"
        );
    }

    #[test]
    fn virtual_services_are_printed_with_their_destinations() {
        let dump = Dump {
            datapath: NodeDatapath::Ipvs,
            virtual_services: vec![DumpedVirtualService {
                address: Ipv4Addr::new(192, 0, 2, 1).into(),
                port: 9200,
                protocol: Protocol::Tcp,
                scheduler: "wrr".to_owned(),
                persistence: Some(60),
                destinations: vec![DumpedDestination {
                    address: Ipv4Addr::new(172, 18, 0, 3).into(),
                    port: 80,
                    weight: 2,
                }],
            }],
            ..Dump::default()
        };
        assert_eq!(
            dump.to_string(),
            "datapath ipvs\n\
             virtual services\n  \
             tcp/9200 192.0.2.1 wrr persistent for 60 s: 172.18.0.3:80 weight 2\n"
        );
    }

    #[test]
    fn a_dump_survives_its_own_json() {
        let dump = Dump {
            datapath: NodeDatapath::Ebpf,
            flows: vec![DumpedFlow {
                protocol: 6,
                source: "198.51.100.7:40000".parse().unwrap(),
                destination: "192.0.2.1:9200".parse().unwrap(),
                role: "forward".to_owned(),
                origin: "uplink".to_owned(),
                backend: None,
                idle_seconds: 3,
            }],
            ..Dump::default()
        };
        let text = serde_json::to_string(&dump).unwrap();
        assert_eq!(serde_json::from_str::<Dump>(&text).unwrap(), dump);
        assert!(dump.to_string().ends_with(
            "tcp 198.51.100.7:40000 -> 192.0.2.1:9200 forward from uplink to a backend that is gone idle 3 s\n"
        ));
    }
}
