//! Packets through the tunnel between two nodes: which ones pass, and with which addresses.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    sync::mpsc,
    thread,
};

use mesh_agent::datapath::ipvs::{
    address::{node_mesh_address, peers_mesh_addresses},
    rules::Rules,
    tunnel::{Tunnel, TunnelPlan},
};

use crate::{
    localhost::{PATIENCE, answer_udp, ask_udp},
    namespace::{Namespace, docker_bridge, ip, sysctl, until_it_carries},
    table::{self, target},
    tunnel,
};

pub(crate) const ENTRY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(crate) const OTHER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const STRANGER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);
/// A replica on the other node.
const REPLICA: Ipv4Addr = Ipv4Addr::new(250, 0, 0, 6);

/// Nodes on one network: a bridge in a namespace of its own.
pub(crate) struct Network {
    pub(crate) wire: Namespace,
}

impl Network {
    pub(crate) fn new() -> Self {
        let wire = Namespace::new();
        wire.run(|| {
            ip("link add wire type bridge");
            ip("link set wire up");
        });
        Self { wire }
    }

    /// Adds a node with the tunnel to `peers`; with `serves`, it has the replica.
    pub(crate) fn node(&self, address: Ipv4Addr, peers: &[Ipv4Addr], serves: bool) -> Namespace {
        let node = Namespace::new();
        let port = format!("node{}", address.octets()[3]);
        self.wire
            .wire(&node, (&port, ""), ("up0", &format!("{address}/24")));
        self.wire.run(|| ip(&format!("link set {port} master wire")));
        node.run(|| {
            docker_bridge();
            sysctl("net/ipv4/conf/docker_gwbridge/route_localnet", "1");
            // The strictest setting: a packet must arrive by the interface that its answer would leave by.
            sysctl("net/ipv4/conf/all/rp_filter", "1");
            let nodes = peers_mesh_addresses(address, peers.iter().copied());
            let mut plan = TunnelPlan {
                node_address: address,
                peers: peers.iter().copied().collect(),
                remote: nodes.into_iter().map(|(peer, address)| (address, peer)).collect(),
                local: [node_mesh_address(address)].into(),
                ..tunnel::plan()
            };
            if serves {
                plan.local.insert(REPLICA);
            } else {
                plan.remote.insert(REPLICA, OTHER);
            }
            tunnel::apply(&mut Tunnel::new().unwrap(), &plan);
            until_it_carries("docker_gwbridge");
            let rules = Rules {
                node_address: Some(address),
                peers: plan.peers.clone(),
                localhost: [(table::DNS, vec![target(table::DNS, 6, REPLICA.octets(), 5300, 1)])].into(),
                ..table::rules()
            };
            table::apply(&mut table::open(), &rules);
        });
        node
    }
}

#[test]
fn a_datagram_goes_to_a_replica_of_a_peer_and_its_answer_comes_back() {
    let network = Network::new();
    let entry = network.node(ENTRY, &[OTHER], false);
    let other = network.node(OTHER, &[ENTRY], true);
    // Instead of IPVS: a socket at the mesh address, which the node has.
    answer_udp(&other, "250.0.0.6:5300", "replica");
    entry.run(|| {
        assert_eq!(ask_udp("250.0.0.6:5300").unwrap(), "replica 192.0.2.1");
        assert_eq!(ask_udp("127.0.0.1:5300").unwrap(), "replica 192.0.2.1");
    });
    other.run(|| {
        let forwarded = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        let line = forwarded.lines().find(|line| line.contains("mesh-vx:")).unwrap();
        let packets: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(
            (packets[2], packets[10]),
            ("2", "2"),
            "both ways by the tunnel: {line}"
        );
    });
}

#[test]
fn large_transfers_fit_the_tunnel() {
    let network = Network::new();
    let entry = network.node(ENTRY, &[OTHER], false);
    let other = network.node(OTHER, &[ENTRY], true);
    let listener = other.run(|| TcpListener::bind("0.0.0.0:9200").unwrap());
    let echo = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut data = Vec::new();
        stream.read_to_end(&mut data).unwrap();
        stream.write_all(&data).unwrap();
        maximum_segment(&stream)
    });
    let data: Vec<u8> = (0..1_000_000_u32).map(|number| number as u8).collect();
    let (answer, segment) = entry.run(|| {
        let mut stream = TcpStream::connect("250.0.0.6:9200").unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let segment = maximum_segment(&stream);
        stream.write_all(&data).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        (answer, segment)
    });
    assert!(answer == data);
    // 1500 less 50 for the tunnel, 40 for the headers and 12 for TCP's time stamps.
    assert_eq!((segment, echo.join().unwrap()), (1398, 1398));
}

fn maximum_segment(stream: &TcpStream) -> u32 {
    nix::sys::socket::getsockopt(stream, nix::sys::socket::sockopt::TcpMaxSeg).unwrap()
}

#[test]
fn strangers_and_containers_cannot_use_the_tunnel() {
    let network = Network::new();
    let entry = network.node(ENTRY, &[OTHER], false);
    let other = network.node(OTHER, &[ENTRY], true);
    let stranger = network.node(STRANGER, &[OTHER], false);
    let beside_entry = entry.container("box8", "172.18.0.8");
    let beside_replica = other.container("box9", "172.18.0.9");
    let (sender, receiver) = mpsc::channel();
    let socket = other.run(|| UdpSocket::bind("0.0.0.0:5300").unwrap());
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((length, _)) = socket.recv_from(&mut buffer) {
            let _ = sender.send(String::from_utf8_lossy(&buffer[..length]).into_owned());
        }
    });
    let send = |namespace: &Namespace, what: &str| {
        namespace.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            let _ = socket.send_to(what.as_bytes(), "250.0.0.6:5300");
        });
    };
    send(&stranger, "a stranger's");
    send(&beside_entry, "a container's, on the entry node");
    send(&beside_replica, "a container's, beside the replica");
    // A container that forges frames for the peer.
    beside_entry.run(|| {
        ip("neighbour add 172.18.0.200 lladdr fe:4d:c0:00:02:02 dev eth0");
        ip("route add 250.0.0.6 via 172.18.0.200");
        ip("address add 192.0.2.1/32 dev eth0");
        let socket = UdpSocket::bind("192.0.2.1:0").unwrap();
        let _ = socket.send_to(b"a forged frame", "250.0.0.6:5300");
    });
    send(&entry, "the entry node's");
    assert_eq!(receiver.recv_timeout(PATIENCE).unwrap(), "the entry node's");
    // Nothing of theirs is in flight any more once a second datagram arrives alone.
    send(&entry, "again");
    assert_eq!(receiver.recv_timeout(PATIENCE).unwrap(), "again");
}
