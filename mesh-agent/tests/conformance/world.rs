//! Two nodes and a client on a wire, and on each node what Docker would have there: a bridge with containers,
//! rules that drop what is not theirs, and a mesh of Docker's own that leads nowhere. Depends on `netns` and
//! `talk`; knows nothing of our mesh.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    path::Path,
};

use anyhow::{Context, Result};
use mesh_agent::model::{HostInterface, MacAddress};
use mesh_support::xdp_pass;
use nix::net::if_::if_nametoindex;

use crate::{
    netns::Netns,
    talk::{PATIENCE, Server, TCP_PORT, UDP_PORT, ask},
};

/// The client's addresses.
pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 200);
/// Another address of the client.
const OTHER_CLIENT: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 201);
/// The client's IPv6 addresses.
const CLIENT_IPV6: Ipv6Addr = ipv6(200);
const OTHER_CLIENT_IPV6: Ipv6Addr = ipv6(201);
/// The address of Docker's bridge, the same on every node.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 1);
/// Another bridge of containers, with a name of its user's choice.
const OTHER_BRIDGE: &str = "appbr";
const OTHER_GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 20, 0, 1);
/// MTU of all interfaces, bytes.
pub(crate) const MTU: u32 = 1500;
/// Docker's bridge.
pub(crate) const BRIDGE: &str = "docker_gwbridge";
/// The published ports that Docker's own mesh claims to answer; see [`docker_rules`].
pub(crate) const CLAIMED_TCP: u16 = 9200;
/// The same by UDP.
pub(crate) const CLAIMED_UDP: u16 = 9201;

/// The containers of each node. Names end in the node's number; `x1`, `x2` and `y1` are clients only, and
/// `y1` is on the other bridge.
const CONTAINERS: [&[&str]; 2] = [&["a1", "b1", "x1", "y1"], &["a2", "b2", "x2"]];

/// What clients speak. Containers and the way between nodes have IPv4 only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6, to nodes that have both.
    Ipv6,
}

impl Family {
    /// The client's two addresses.
    pub(crate) fn clients(self) -> [IpAddr; 2] {
        match self {
            Self::Ipv4 => [CLIENT.into(), OTHER_CLIENT.into()],
            Self::Ipv6 => [CLIENT_IPV6.into(), OTHER_CLIENT_IPV6.into()],
        }
    }

    /// A machine's own address.
    pub(crate) fn loopback(self) -> IpAddr {
        match self {
            Self::Ipv4 => Ipv4Addr::LOCALHOST.into(),
            Self::Ipv6 => Ipv6Addr::LOCALHOST.into(),
        }
    }

    /// No address.
    pub(crate) fn unspecified(self) -> IpAddr {
        match self {
            Self::Ipv4 => Ipv4Addr::UNSPECIFIED.into(),
            Self::Ipv6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }
}

/// The address of a machine on the wire.
const fn ipv6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x99, 0, 0, 0, 0, 0, number as u16)
}

/// What a machine is connected to the wire by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    /// A card.
    Card,
    /// A VLAN device on a card, which is an uplink, too, but has no address.
    Vlan,
    /// A bond of two cards, of which one carries.
    Bond,
}

impl Link {
    /// The interface that has the addresses.
    pub(crate) fn device(self) -> &'static str {
        match self {
            Self::Card => "eth0",
            Self::Vlan => "eth0.5",
            Self::Bond => "bond0",
        }
    }

    /// The interfaces that a node takes for uplinks.
    fn uplinks(self) -> &'static [&'static str] {
        match self {
            Self::Card => &["eth0"],
            Self::Vlan => &["eth0", "eth0.5"],
            Self::Bond => &["bond0"],
        }
    }

    /// The cards, and each one's end at the wire.
    fn cards(self, name: &str) -> Vec<(&'static str, String)> {
        let first = ("eth0", name.to_owned());
        match self {
            Self::Card | Self::Vlan => vec![first],
            Self::Bond => vec![first, ("eth1", format!("{name}-eth1"))],
        }
    }
}

/// All namespaces, connected.
pub(crate) struct World {
    pub(crate) link: Link,
    pub(crate) family: Family,
    pub(crate) wire: Netns,
    pub(crate) client: Netns,
    pub(crate) nodes: Vec<Node>,
    _client_ends: Vec<OwnedFd>,
    _client_server: Server,
}

/// A machine of the cluster.
pub(crate) struct Node {
    pub(crate) netns: Netns,
    pub(crate) address: Ipv4Addr,
    /// The address that clients know.
    pub(crate) frontend: IpAddr,
    /// The interface that has the addresses.
    pub(crate) uplink: HostInterface,
    /// All uplinks, by their names.
    pub(crate) uplinks: BTreeMap<String, HostInterface>,
    pub(crate) gateway_mac: MacAddress,
    pub(crate) containers: Vec<Container>,
    _ends: Vec<OwnedFd>,
    _server: Server,
}

/// A container.
pub(crate) struct Container {
    pub(crate) name: &'static str,
    pub(crate) netns: Netns,
    /// Its address on Docker's bridge.
    pub(crate) address: Ipv4Addr,
    pub(crate) mac: MacAddress,
    /// Interface index of its veth's host end.
    pub(crate) host_interface: u32,
    _server: Server,
}

impl World {
    /// Makes them.
    pub(crate) fn new(link: Link, family: Family) -> Result<Self> {
        let wire = Netns::new("wire")?;
        let mut script = String::new();
        let _ = writeln!(
            script,
            "link add br0 type bridge forward_delay 0 mcast_snooping 0\nlink set br0 up"
        );
        let gateway = match link {
            Link::Card | Link::Bond => "br0",
            Link::Vlan => {
                script += "link add link br0 name br0.5 type vlan id 5\nlink set br0.5 up\n";
                "br0.5"
            }
        };
        let _ = writeln!(script, "address add 10.99.0.254/24 dev {gateway}");
        wire.run_with_input("ip", &["-batch", "-"], &script)?;
        let client = Netns::new("client")?;
        let client_mac = MacAddress([2, 0x99, 0, 0, 0, 200]);
        let mut addresses = BTreeSet::from(Family::Ipv4.clients());
        if family == Family::Ipv6 {
            client.enable_ipv6()?;
            addresses.extend(family.clients());
        }
        let client_ends = plug(&wire, &client, link, client_mac, &addresses)?;
        let nodes = (1..=2_u8)
            .zip(CONTAINERS)
            .map(|(number, names)| Node::new(&wire, link, family, number, names))
            .collect::<Result<_>>()?;
        let world = Self {
            link,
            family,
            _client_ends: client_ends,
            _client_server: Server::start(&client, "client")?,
            wire,
            client,
            nodes,
        };
        world.wait_until_the_wire_carries()?;
        Ok(world)
    }

    /// A node by its number, 1 or 2.
    pub(crate) fn node(&self, number: usize) -> &Node {
        &self.nodes[number - 1]
    }

    /// A container by its name.
    pub(crate) fn container(&self, name: &str) -> &Container {
        self.nodes
            .iter()
            .flat_map(|node| &node.containers)
            .find(|container| container.name == name)
            .unwrap_or_else(|| panic!("there is no container {name}"))
    }

    /// A bridge may need a moment before it forwards.
    fn wait_until_the_wire_carries(&self) -> Result<()> {
        for node in &self.nodes {
            crate::until("the client reaches the nodes", PATIENCE, || {
                Ok(ask(&self.client, SocketAddr::new(node.frontend, TCP_PORT))?)
            })?;
        }
        Ok(())
    }
}

impl Node {
    fn new(wire: &Netns, link: Link, family: Family, number: u8, names: &[&'static str]) -> Result<Self> {
        let netns = Netns::new(&format!("node{number}"))?;
        let address = Ipv4Addr::new(10, 99, 0, number);
        let mac = MacAddress([2, 0x99, 0, 0, 0, number]);
        let frontend = match family {
            Family::Ipv4 => address.into(),
            Family::Ipv6 => {
                netns.enable_ipv6()?;
                ipv6(number).into()
            }
        };
        let addresses = BTreeSet::from([address.into(), frontend]);
        let ends = plug(wire, &netns, link, mac, &addresses)?;
        let gateway_mac = MacAddress([2, 0x42, 0, 0, 0, number]);
        netns.run_with_input(
            "ip",
            &["-batch", "-"],
            &format!(
                "link add {BRIDGE} address {gateway_mac} type bridge forward_delay 0\n\
                 address add {GATEWAY}/16 dev {BRIDGE}\nlink set {BRIDGE} up\n\
                 link add {OTHER_BRIDGE} type bridge forward_delay 0\n\
                 address add {OTHER_GATEWAY}/16 dev {OTHER_BRIDGE}\nlink set {OTHER_BRIDGE} up\n"
            ),
        )?;
        netns.sysctl("ipv4/ip_forward", "1")?;
        if netns.enter(|| Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists()) {
            netns.sysctl("bridge/bridge-nf-call-iptables", "1")?;
        }
        netns.run_with_input("iptables-restore", &["--wait"], &docker_rules())?;
        let containers = (2..)
            .zip(names)
            .map(|(host, name)| Container::new(&netns, host, name))
            .collect::<Result<_>>()?;
        let uplink = |name: &str| -> Result<HostInterface> {
            Ok(HostInterface {
                index: netns.enter(|| if_nametoindex(name))?,
                mac: Some(mac),
                mtu: MTU,
                has_vlans: link == Link::Vlan && name == "eth0",
            })
        };
        let named = |name: &&str| Ok(((*name).to_owned(), uplink(name)?));
        Ok(Self {
            uplink: uplink(link.device())?,
            uplinks: link.uplinks().iter().map(named).collect::<Result<_>>()?,
            _ends: ends,
            _server: Server::start(&netns, &format!("node{number}"))?,
            netns,
            address,
            frontend,
            gateway_mac,
            containers,
        })
    }
}

impl Container {
    fn new(node: &Netns, host: u8, name: &'static str) -> Result<Self> {
        let netns = Netns::new(name)?;
        let (bridge, gateway) = if name.starts_with('y') {
            (OTHER_BRIDGE, OTHER_GATEWAY)
        } else {
            (BRIDGE, GATEWAY)
        };
        let [a, b, c, _] = gateway.octets();
        let address = Ipv4Addr::new(a, b, c, host);
        let mac = MacAddress([2, 0x42, a, b, c, host]);
        let veth = format!("veth{name}");
        node.run_with_input(
            "ip",
            &["-batch", "-"],
            &format!(
                "link add {veth} type veth peer name eth0 address {mac} netns {}\n\
                 link set {veth} master {bridge}\nlink set {veth} up\n",
                netns.network_path()
            ),
        )?;
        netns.run_with_input(
            "ip",
            &["-batch", "-"],
            &format!(
                "address add {address}/16 dev eth0\nlink set eth0 up\nroute add default via {gateway}\n"
            ),
        )?;
        Ok(Self {
            _server: Server::start(&netns, name)?,
            host_interface: node.enter(|| if_nametoindex(veth.as_str()))?,
            name,
            netns,
            address,
            mac,
        })
    }
}

/// Connects a namespace to the wire, until the returned XDP links are closed.
fn plug(
    wire: &Netns,
    netns: &Netns,
    link: Link,
    mac: MacAddress,
    addresses: &BTreeSet<IpAddr>,
) -> Result<Vec<OwnedFd>> {
    let cards = link.cards(&netns.name);
    let (mut outside, mut inside) = (String::new(), String::new());
    if link == Link::Bond {
        inside.push_str("link add bond0 type bond mode active-backup miimon 50\n");
    }
    for (card, end) in &cards {
        let _ = writeln!(
            outside,
            "link add {end} type veth peer name {card} address {mac} netns {}\n\
             link set {end} master br0\nlink set {end} up",
            netns.network_path()
        );
        match link {
            Link::Card | Link::Vlan => {
                let _ = writeln!(inside, "link set {card} up");
            }
            Link::Bond => {
                let _ = writeln!(inside, "link set {card} master bond0");
            }
        }
    }
    let device = link.device();
    if link == Link::Vlan {
        let _ = writeln!(inside, "link add link eth0 name {device} type vlan id 5");
    }
    for address in addresses {
        let options = match address {
            IpAddr::V4(_) => "/24",
            // The kernel chooses it only where it is asked to.
            IpAddr::V6(OTHER_CLIENT_IPV6) => "/64 nodad preferred_lft 0",
            IpAddr::V6(_) => "/64 nodad",
        };
        let _ = writeln!(inside, "address add {address}{options} dev {device}");
    }
    let _ = writeln!(inside, "link set {device} up\nroute add default via 10.99.0.254");
    wire.run_with_input("ip", &["-batch", "-"], &outside)?;
    netns.run_with_input("ip", &["-batch", "-"], &inside)?;
    // A real wire carries finished checksums, and delivers what XDP sends at once.
    for (card, end) in &cards {
        wire.run("ethtool", &["-K", end, "tx", "off"])?;
        netns.run("ethtool", &["-K", card, "tx", "off"])?;
    }
    let pass = |end: &str| {
        wire.enter(|| xdp_pass::attach(if_nametoindex(end)?))
            .with_context(|| format!("could not put an XDP program on the wire's end {end}"))
    };
    cards.iter().map(|(_, end)| pass(end)).collect()
}

/// What Docker puts into iptables on a node of a Swarm (moby, `libnetwork`): only packets from or to its
/// bridges are forwarded, and none between them, containers on the bridge cannot reach each other, and
/// published ports go to its own mesh. Here that is an unused address, so an answer never comes from Docker's
/// mesh.
fn docker_rules() -> String {
    let unused = "172.18.255.254";
    format!(
        "*filter\n:INPUT ACCEPT\n:FORWARD DROP\n:OUTPUT ACCEPT\n\
         -A FORWARD -i {BRIDGE} -o {OTHER_BRIDGE} -j DROP\n\
         -A FORWARD -i {OTHER_BRIDGE} -o {BRIDGE} -j DROP\n\
         -A FORWARD -o {OTHER_BRIDGE} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
         -A FORWARD -i {OTHER_BRIDGE} ! -o {OTHER_BRIDGE} -j ACCEPT\n\
         -A FORWARD -o {BRIDGE} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
         -A FORWARD -i {BRIDGE} ! -o {BRIDGE} -j ACCEPT\n\
         -A FORWARD -i {BRIDGE} -o {BRIDGE} -j DROP\nCOMMIT\n\
         *nat\n:PREROUTING ACCEPT\n:INPUT ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\n:DOCKER-INGRESS -\n\
         -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER-INGRESS\n\
         -A OUTPUT -m addrtype --dst-type LOCAL -j DOCKER-INGRESS\n\
         -A POSTROUTING -s 172.18.0.0/16 ! -o {BRIDGE} -j MASQUERADE\n\
         -A POSTROUTING -s 172.20.0.0/16 ! -o {OTHER_BRIDGE} -j MASQUERADE\n\
         -A DOCKER-INGRESS -p tcp -m tcp --dport {CLAIMED_TCP} -j DNAT --to-destination {unused}:{TCP_PORT}\n\
         -A DOCKER-INGRESS -p udp -m udp --dport {CLAIMED_UDP} -j DNAT --to-destination {unused}:{UDP_PORT}\n\
         -A DOCKER-INGRESS -j RETURN\nCOMMIT\n"
    )
}
