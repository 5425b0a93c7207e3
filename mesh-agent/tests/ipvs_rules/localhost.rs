//! Connections of local processes to 127.0.0.0/8, and packets that Docker's rules must not get.

use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use mesh_agent::datapath::ipvs::rules::Rules;

use crate::{
    namespace::{Namespace, docker_bridge, ip, nft_load, sysctl},
    table::{DNS, NODE, WEB, apply, open, rules, target},
};

/// Longer than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// A node as the data path prepares it, a machine outside, and two containers on its bridge.
fn node() -> (Namespace, Namespace, Namespace, Namespace) {
    let node = Namespace::new();
    let outside = Namespace::new();
    node.wire(&outside, ("up0", "192.0.2.1/24"), ("eth0", "192.0.2.9/24"));
    node.run(|| {
        docker_bridge();
        sysctl("net/ipv4/conf/docker_gwbridge/route_localnet", "1");
    });
    let five = node.container("box5", "172.18.0.5");
    let six = node.container("box6", "172.18.0.6");
    (node, outside, five, six)
}

/// Rules for two containers with weights.
fn two(first: u32, second: u32) -> Rules {
    Rules {
        localhost: BTreeMap::from([
            (
                WEB,
                vec![
                    target(WEB, 5, [172, 18, 0, 5], 80, first),
                    target(WEB, 6, [172, 18, 0, 6], 80, second),
                ],
            ),
            (
                DNS,
                vec![
                    target(DNS, 5, [172, 18, 0, 5], 53, first),
                    target(DNS, 6, [172, 18, 0, 6], 53, second),
                ],
            ),
        ]),
        ..rules()
    }
}

/// Answers datagrams with a name and the client's address, until the test ends.
pub(crate) fn answer_udp(namespace: &Namespace, at: &str, name: &'static str) {
    let socket = namespace.run(|| UdpSocket::bind(at).unwrap());
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(format!("{name} {}", from.ip()).as_bytes(), from);
        }
    });
}

/// Answers connections with a name and the client's address, until the test ends.
pub(crate) fn answer_tcp(namespace: &Namespace, at: &str, name: &'static str) {
    let listener = namespace.run(|| TcpListener::bind(at).unwrap());
    thread::spawn(move || {
        while let Ok((mut stream, from)) = listener.accept() {
            let _ = stream.write_all(format!("{name} {}", from.ip()).as_bytes());
        }
    });
}

/// Asks from a new port. Call it inside a namespace.
#[track_caller]
pub(crate) fn ask_udp(to: &str) -> std::io::Result<String> {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.connect(to)?;
    socket.send(b"who?")?;
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// Asks over a new connection. Call it inside a namespace.
#[track_caller]
pub(crate) fn ask_tcp(to: &str) -> std::io::Result<String> {
    let to: SocketAddr = to.parse().unwrap();
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn count(answers: impl Iterator<Item = String>) -> BTreeMap<String, u32> {
    answers.fold(BTreeMap::new(), |mut counts, answer| {
        *counts.entry(answer).or_default() += 1;
        counts
    })
}

#[test]
fn connections_to_loopback_rotate_by_weight_and_are_counted() {
    let (node, _outside, five, six) = node();
    answer_tcp(&five, "0.0.0.0:80", "five");
    answer_tcp(&six, "0.0.0.0:80", "six");
    answer_udp(&five, "0.0.0.0:53", "five");
    answer_udp(&six, "0.0.0.0:53", "six");
    node.run(|| {
        let mut table = open();
        apply(&mut table, &two(2, 1));
        let tcp = count((0..30).map(|_| ask_tcp("127.0.0.1:9200").unwrap()));
        let udp = count((0..30).map(|_| ask_udp("127.1.2.3:5300").unwrap()));
        // The replicas see the node's address: they could not answer 127.0.0.1.
        let expected = BTreeMap::from([
            ("five 192.0.2.1".to_owned(), 20),
            ("six 192.0.2.1".to_owned(), 10),
        ]);
        assert_eq!((&tcp, &udp), (&expected, &expected));

        // One more frontend; then a replica drains; then another agent takes over.
        let mut more = two(2, 1);
        more.frontends.insert((NODE, WEB.protocol, 9999));
        apply(&mut table, &more);
        assert_eq!(
            ask_tcp("127.0.0.1:9200").unwrap(),
            "five 192.0.2.1",
            "the rotation goes on"
        );
        apply(&mut table, &two(0, 1));
        let drained = count((0..10).map(|_| ask_tcp("127.0.0.1:9200").unwrap()));
        assert_eq!(drained, BTreeMap::from([("six 192.0.2.1".to_owned(), 10)]));
        let mut table = open();
        apply(&mut table, &two(1, 1));
        let counters: Vec<u64> = table.counters().unwrap().into_values().collect();
        assert_eq!(counters, [21, 20, 20, 10]);
    });
}

#[test]
fn a_service_without_a_replica_is_refused_at_once() {
    let (node, outside, five, _six) = node();
    // As Docker's engine does, to reserve the ports.
    let _placeholders = node.run(|| {
        let mut rules = two(0, 0);
        rules.frontends = [WEB, DNS]
            .map(|service| (NODE, service.protocol, service.port))
            .into();
        apply(&mut open(), &rules);
        (
            TcpListener::bind("0.0.0.0:9200").unwrap(),
            UdpSocket::bind("0.0.0.0:5300").unwrap(),
        )
    });
    for (namespace, address) in [
        (&node, "127.0.0.1"),
        (&node, "192.0.2.1"),
        (&five, "192.0.2.1"),
        (&outside, "192.0.2.1"),
    ] {
        // More often than the kernel sends ICMP messages to one address.
        for _ in 0..20 {
            let error = namespace.run(|| ask_tcp(&format!("{address}:9200")).unwrap_err());
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        }
        let error = namespace.run(|| ask_udp(&format!("{address}:5300")).unwrap_err());
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }
}

#[test]
fn a_draining_replica_keeps_its_connections() {
    let (node, _outside, five, _six) = node();
    let listener = five.run(|| TcpListener::bind("0.0.0.0:80").unwrap());
    node.run(|| {
        let mut table = open();
        apply(&mut table, &two(1, 0));
        let mut stream = TcpStream::connect("127.0.0.1:9200").unwrap();
        let (mut accepted, _) = listener.accept().unwrap();
        apply(&mut table, &two(0, 0));
        assert!(ask_tcp("127.0.0.1:9200").is_err());
        stream.write_all(b"still there").unwrap();
        let mut received = [0; 11];
        accepted.set_read_timeout(Some(PATIENCE)).unwrap();
        accepted.read_exact(&mut received).unwrap();
        assert_eq!(&received, b"still there");
    });
}

#[test]
fn dockers_rules_do_not_translate_the_frontends() {
    let (node, client, _five, other) = node();
    answer_udp(&other, "0.0.0.0:5300", "docker");
    let mut rules = two(1, 1);
    rules.localhost.clear();
    node.run(|| {
        // Docker's rules, with iptables' priority.
        nft_load(
            "table ip nat {
                chain ingress {
                    udp dport 5300 fib daddr type local dnat to 172.18.0.6:5300
                }
                chain prerouting {
                    type nat hook prerouting priority -100
                    jump ingress
                }
                chain output {
                    type nat hook output priority -100
                    jump ingress
                }
            }",
        );
    });
    // These sockets answer in IPVS's stead.
    answer_udp(&node, "0.0.0.0:5300", "mesh");
    let asked = || {
        let outside = client.run(|| ask_udp("192.0.2.1:5300").unwrap());
        let inside = node.run(|| ask_udp("192.0.2.1:5300").unwrap());
        [outside, inside].map(|answer| answer.split(' ').next().unwrap().to_owned())
    };
    assert_eq!(asked(), ["docker", "docker"]);
    rules.frontends.insert((NODE, DNS.protocol, DNS.port));
    node.run(|| apply(&mut open(), &rules));
    assert_eq!(asked(), ["mesh", "mesh"]);
}

#[test]
fn containers_may_not_use_loopback_addresses() {
    let (node, _outside, five, six) = node();
    let (sender, receiver) = std::sync::mpsc::channel();
    let socket = node.run(|| UdpSocket::bind("0.0.0.0:7777").unwrap());
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((length, _)) = socket.recv_from(&mut buffer) {
            let _ = sender.send(buffer[..length].to_vec());
        }
    });
    node.run(|| apply(&mut open(), &rules()));
    let send = |namespace: &Namespace, from: &str, to: &str, what: &str| {
        namespace.run(|| {
            let socket = UdpSocket::bind(from).unwrap();
            // Sending a packet that is then dropped may fail.
            let _ = socket.send_to(what.as_bytes(), to);
        });
    };
    five.run(|| {
        sysctl("net/ipv4/conf/all/route_localnet", "1");
        ip("route del local 127.0.0.0/8 dev lo table local");
        ip("route add 127.0.0.0/8 via 172.18.0.1");
    });
    six.run(|| sysctl("net/ipv4/conf/all/route_localnet", "1"));
    send(&five, "172.18.0.5:0", "127.0.0.1:7777", "to loopback");
    send(&six, "127.0.0.1:0", "172.18.0.1:7777", "from loopback");
    send(&five, "172.18.0.5:0", "172.18.0.1:7777", "honest");
    assert_eq!(receiver.recv_timeout(PATIENCE).unwrap(), b"honest");
    send(&six, "172.18.0.6:0", "172.18.0.1:7777", "honest");
    assert_eq!(receiver.recv_timeout(PATIENCE).unwrap(), b"honest");
}

#[test]
fn a_client_of_a_replicas_own_network_is_seen_as_the_node() {
    let (node, outside, five, _six) = node();
    answer_udp(&five, "0.0.0.0:53", "five");
    // The network that the client's second address is of.
    five.run(|| {
        ip("link add lan0 type veth peer name lan1");
        ip("link set lan0 up");
        ip("address add 10.0.0.5/24 dev lan0");
    });
    node.run(|| {
        apply(&mut open(), &two(1, 1));
        sysctl("net/ipv4/ip_forward", "1");
        ip("route add 10.0.0.77 via 192.0.2.9");
    });
    outside.run(|| {
        ip("address add 10.0.0.77/32 dev eth0");
        ip("route add 172.18.0.0/16 via 192.0.2.1");
        assert_eq!(ask_udp("172.18.0.5:53").unwrap(), "five 192.0.2.9");
        ip("route change 172.18.0.0/16 via 192.0.2.1 src 10.0.0.77");
        assert_eq!(ask_udp("172.18.0.5:53").unwrap(), "five 192.0.2.1");
    });
}
