//! Two nodes and a client on a wire, and on each node what Docker would have there: a bridge with containers,
//! rules that drop what is not theirs, and a mesh of Docker's own that leads nowhere. Depends on `netns` and
//! `talk`; knows nothing of our mesh.

use std::{
    fmt::Write,
    net::{Ipv4Addr, SocketAddrV4},
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
pub(crate) const OTHER_CLIENT: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 201);
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

/// All namespaces, connected.
pub(crate) struct World {
    _wire: Netns,
    pub(crate) client: Netns,
    pub(crate) nodes: Vec<Node>,
    _client_end: OwnedFd,
    _client_server: Server,
}

/// A machine of the cluster.
pub(crate) struct Node {
    pub(crate) netns: Netns,
    pub(crate) address: Ipv4Addr,
    pub(crate) uplink: HostInterface,
    pub(crate) gateway_mac: MacAddress,
    pub(crate) containers: Vec<Container>,
    _end: OwnedFd,
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
    pub(crate) fn new() -> Result<Self> {
        let wire = Netns::new("wire")?;
        wire.run_with_input(
            "ip",
            &["-batch", "-"],
            "link add br0 type bridge forward_delay 0 mcast_snooping 0\n\
             address add 10.99.0.254/24 dev br0\nlink set br0 up\n",
        )?;
        let client = Netns::new("client")?;
        let client_end = plug(&wire, &client, &[CLIENT, OTHER_CLIENT])?;
        let nodes = (1..=2_u8)
            .zip(CONTAINERS)
            .map(|(number, names)| Node::new(&wire, number, names))
            .collect::<Result<_>>()?;
        let world = Self {
            _client_end: client_end,
            _client_server: Server::start(&client, "client")?,
            _wire: wire,
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
                Ok(ask(&self.client, SocketAddrV4::new(node.address, TCP_PORT))?)
            })?;
        }
        Ok(())
    }
}

impl Node {
    fn new(wire: &Netns, number: u8, names: &[&'static str]) -> Result<Self> {
        let netns = Netns::new(&format!("node{number}"))?;
        let address = Ipv4Addr::new(10, 99, 0, number);
        let end = plug(wire, &netns, &[address])?;
        let mac = MacAddress([2, 0x99, 0, 0, 0, number]);
        let gateway_mac = MacAddress([2, 0x42, 0, 0, 0, number]);
        netns.run_with_input(
            "ip",
            &["-batch", "-"],
            &format!(
                "link set eth0 address {mac}\nlink add {BRIDGE} address {gateway_mac} type bridge forward_delay 0\n\
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
        let index = netns.enter(|| if_nametoindex("eth0"))?;
        Ok(Self {
            _end: end,
            _server: Server::start(&netns, &format!("node{number}"))?,
            netns,
            address,
            uplink: HostInterface {
                index,
                mac: Some(mac),
                mtu: MTU,
            },
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

/// Connects a namespace to the wire by its `eth0`, until the returned XDP link is closed.
fn plug(wire: &Netns, netns: &Netns, addresses: &[Ipv4Addr]) -> Result<OwnedFd> {
    let name = &netns.name;
    wire.run_with_input(
        "ip",
        &["-batch", "-"],
        &format!(
            "link add {name} type veth peer name eth0 netns {}\nlink set {name} master br0\nlink set {name} up\n",
            netns.network_path()
        ),
    )?;
    let mut script = String::new();
    for address in addresses {
        let _ = writeln!(script, "address add {address}/24 dev eth0");
    }
    script.push_str("link set eth0 up\nroute add default via 10.99.0.254\n");
    netns.run_with_input("ip", &["-batch", "-"], &script)?;
    // A real wire carries finished checksums, and delivers what XDP sends at once.
    for (netns, device) in [(wire, name.as_str()), (netns, "eth0")] {
        netns.run("ethtool", &["-K", device, "tx", "off"])?;
    }
    wire.enter(|| xdp_pass::attach(if_nametoindex(name.as_str())?))
        .with_context(|| format!("could not put an XDP program on the wire's end to {name}"))
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
