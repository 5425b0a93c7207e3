//! Packets of a layer 3 device, by a real one: `BPF_PROG_TEST_RUN` gives every packet an Ethernet header.
//! The test is the far end of a tun device, so it sees what the program sends there, and what the kernel
//! makes of it.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, SocketAddrV4, UdpSocket},
    time::Duration,
};

use etherparse::{Ipv4Header, TcpHeader, UdpHeader};
use mesh_agent::{
    datapath::{Datapath, Mode},
    model::{Desired, HostInterface, Location, NextHop},
};
use mesh_agent_testing::{
    cluster::{
        CLIENT, DNS, NODE, PEER, WEB, arriving, backend_key, from_peer, frontend, serve, target, to_peer,
    },
    frames::{ACK, FORWARD, OUTER, PROBE, PROBE_ANSWER, Packet, REPLY, RST, SYN, check_frame, outer_port},
    idle::on_a_node,
    run::{TC_REDIRECT, XDP_PASS},
};
use mesh_support::{command, namespace::Namespace, tun::Tun};
use nix::net::if_::if_nametoindex;

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;
const PATIENCE: Duration = Duration::from_secs(10);

/// The far end of the node's layer 3 device, which leads to clients and to the peer.
struct FarEnd {
    tun: Tun,
    index: u32,
}

impl FarEnd {
    fn new() -> Self {
        let tun = Tun::new("tun0").expect("this kernel has tun devices");
        ip("link set tun0 up\nroute add 192.0.2.0/24 dev tun0\nroute add 10.0.0.2/32 dev tun0\n");
        let index = if_nametoindex("tun0").expect("it was made above");
        Self { tun, index }
    }

    /// A state whose uplink and next hop to the peer are this device.
    fn uplink_of(&self, mut state: Desired) -> Desired {
        let uplink = HostInterface {
            index: self.index,
            mac: None,
            mtu: 1500,
            has_vlans: false,
        };
        state.uplinks = [("tun0".to_owned(), uplink)].into();
        state.peers = [(PEER, Some(NextHop::layer3(self.index, None)))].into();
        state
    }

    /// Sends a frame's packet to the node.
    fn send(&self, frame: &[u8]) {
        self.tun.send(&frame[ETHERNET..]).expect("the device is up");
    }

    /// The next packet of the node, behind an Ethernet header, as the helpers for frames want it.
    #[track_caller]
    fn receive(&self) -> Vec<u8> {
        let packet = self.tun.receive(PATIENCE).expect("the device can be read");
        let mut frame = vec![0; ETHERNET];
        frame.extend(packet.expect("the node sends a packet"));
        frame
    }
}

/// Source, destination and flags of a TCP segment without payload; its checksums are right.
#[track_caller]
fn segment(frame: &[u8]) -> (SocketAddrV4, SocketAddrV4, u8) {
    let (ip, rest) = Ipv4Header::from_slice(&frame[ETHERNET..]).expect("an IPv4 header");
    assert_eq!(ip.header_checksum, ip.calc_header_checksum());
    let (tcp, _) = TcpHeader::from_slice(rest).expect("a TCP header");
    assert_eq!(Ok(tcp.checksum), tcp.calc_checksum_ipv4(&ip, &[]));
    let source = SocketAddrV4::new(ip.source.into(), tcp.source_port);
    let destination = SocketAddrV4::new(ip.destination.into(), tcp.destination_port);
    (source, destination, rest[13])
}

fn ip(batch: &str) {
    command::output("ip", &["-batch", "-"], batch).expect("`ip` of Debian's package iproute2 runs");
}

/// A packet as it is without its Ethernet header.
#[track_caller]
fn check_packet(actual: &[u8], expected: &[u8]) {
    check_frame(&actual[ETHERNET..], &expected[ETHERNET..]);
}

/// Source, destination and payload of a UDP packet that begins at an offset; its checksums are right.
#[track_caller]
fn datagram(frame: &[u8], offset: usize) -> (SocketAddrV4, SocketAddrV4, Vec<u8>) {
    let (ip, rest) = Ipv4Header::from_slice(&frame[offset..]).expect("an IPv4 header");
    assert_eq!(ip.header_checksum, ip.calc_header_checksum());
    let (udp, payload) = UdpHeader::from_slice(rest).expect("a UDP header");
    let checksum = udp.calc_checksum_ipv4(&ip, payload).expect("a payload that fits");
    assert_eq!(udp.checksum, checksum);
    let source = SocketAddrV4::new(ip.source.into(), udp.source_port);
    let destination = SocketAddrV4::new(ip.destination.into(), udp.destination_port);
    (source, destination, payload.to_vec())
}

/// Moves the far end of the container's veth into a container, in which a socket waits for datagrams.
fn container() -> (Namespace, UdpSocket) {
    let namespace = Namespace::new().expect("the kernel makes namespaces");
    ip(&format!("link set box1 netns {}\n", namespace.path()));
    let socket = namespace.enter(|| {
        ip(
            "link set box1 address 02:42:ac:12:00:05 up\naddress add 172.18.0.5/16 dev box1\n\
            neighbour add 172.18.0.1 lladdr 02:42:ac:12:00:01 dev box1 nud permanent\n\
            route add default via 172.18.0.1\n",
        );
        UdpSocket::bind(target(DNS)).expect("the address is free")
    });
    socket
        .set_read_timeout(Some(PATIENCE))
        .expect("a timeout can be set");
    (namespace, socket)
}

/// Receives a datagram and answers it; returns its sender and payload.
#[track_caller]
fn answer(socket: &UdpSocket) -> (SocketAddr, Vec<u8>) {
    let mut buffer = [0; 2048];
    let (length, from) = socket
        .recv_from(&mut buffer)
        .expect("the container gets the datagram");
    socket
        .send_to(b"an answer", from)
        .expect("the container can answer");
    (from, buffer[..length].to_vec())
}

#[test]
fn a_clients_packet_leaves_encapsulated_by_the_device_it_came_by() {
    on_a_node(|node| {
        let far_end = FarEnd::new();
        let state = far_end.uplink_of(node.serving(Location::Remote(PEER)));
        node.apply(&state);
        let syn = Packet::tcp(arriving(), CLIENT, frontend(WEB), SYN);
        let clamped = syn.clone().with_mss(1500 - 56 - 40);
        let data = Packet::tcp(arriving(), CLIENT, frontend(WEB), ACK);
        for (sent, inner) in [(&syn, &clamped), (&data, &data)] {
            far_end.send(&sent.frame());
            let received = far_end.receive();
            let port = outer_port(&received);
            check_packet(&received, &to_peer(WEB, FORWARD, port).around(inner));
        }
        let traffic = node.traffic(backend_key(WEB, 5));
        let bytes = syn.frame().len() + data.frame().len() - 2 * ETHERNET;
        assert_eq!((traffic.connections_total, traffic.packets_in), (1, 2));
        assert_eq!(traffic.bytes_in, bytes as u64);
        assert_eq!(node.drops(), BTreeMap::new());
    });
}

#[test]
fn the_kernel_finds_the_way_by_the_device_until_the_agent_has() {
    on_a_node(|node| {
        let far_end = FarEnd::new();
        let mut state = far_end.uplink_of(node.serving(Location::Remote(PEER)));
        state.peers.insert(PEER, None);
        node.apply(&state);
        let packet = Packet::udp(arriving(), CLIENT, frontend(DNS));
        far_end.send(&packet.frame());
        let received = far_end.receive();
        let port = outer_port(&received);
        check_packet(&received, &to_peer(DNS, FORWARD, port).around(&packet));
    });
}

#[test]
fn a_replica_here_sees_the_client_behind_the_device_and_answers_it() {
    on_a_node(|node| {
        let far_end = FarEnd::new();
        let state = far_end.uplink_of(node.serving(node.local()));
        node.apply(&state);
        let (_container, socket) = container();
        // The second finds the flow.
        for _ in 0..2 {
            let query = Packet::udp(arriving(), CLIENT, frontend(DNS));
            far_end.send(&query.frame());
            assert_eq!(answer(&socket), (CLIENT.into(), query.payload));
            let received = datagram(&far_end.receive(), ETHERNET);
            assert_eq!(received, (frontend(DNS), CLIENT, b"an answer".to_vec()));
        }
        let traffic = node.traffic(backend_key(DNS, 5));
        assert_eq!((traffic.packets_in, traffic.packets_out), (2, 2));
        assert_eq!(node.drops(), BTreeMap::new());
    });
}

#[test]
fn a_peers_packet_is_delivered_and_the_reply_goes_back_to_the_peer() {
    on_a_node(|node| {
        let far_end = FarEnd::new();
        let state = far_end.uplink_of(node.serving(node.local()));
        node.apply(&state);
        let (_container, socket) = container();
        let dialled = SocketAddrV4::new(PEER, DNS.port);
        let query = Packet::udp(arriving(), CLIENT, dialled).with_payload(1400);
        far_end.send(&from_peer(DNS, FORWARD).around(&query));
        assert_eq!(answer(&socket), (CLIENT.into(), query.payload));
        let received = far_end.receive();
        let port = outer_port(&received);
        let inner = ETHERNET + OUTER;
        check_packet(
            &received,
            &to_peer(DNS, REPLY, port).around_ip(&received[inner..]),
        );
        assert_eq!(
            datagram(&received, inner),
            (dialled, CLIENT, b"an answer".to_vec())
        );
        assert_eq!(node.drops(), BTreeMap::new());
    });
}

#[test]
fn a_reply_that_comes_by_the_device_goes_on_to_the_client() {
    on_a_node(|node| {
        let far_end = FarEnd::new();
        let state = far_end.uplink_of(node.serving(Location::Remote(PEER)));
        node.apply(&state);
        let query = Packet::udp(arriving(), CLIENT, frontend(DNS));
        far_end.send(&query.frame());
        far_end.receive();
        let reply = Packet::udp(arriving(), frontend(DNS), CLIENT);
        far_end.send(&from_peer(DNS, REPLY).around(&reply));
        check_packet(&far_end.receive(), &reply.frame());
        assert_eq!(node.drops(), BTreeMap::new());
    });
}

#[test]
fn what_is_refused_or_probed_is_answered_by_the_device() {
    on_a_node(|node| {
        let far_end = FarEnd::new();
        let mut state = node.without_services();
        serve(&mut state, WEB, &[]);
        let state = far_end.uplink_of(state);
        node.apply(&state);
        far_end.send(&Packet::tcp(arriving(), CLIENT, frontend(WEB), SYN).frame());
        let reset = segment(&far_end.receive());
        assert_eq!(reset, (frontend(WEB), CLIENT, RST | ACK));
        let refused = ("tc_uplink".to_owned(), "no_backend".to_owned());
        assert_eq!(node.drops(), [(refused, 1)].into());

        let at = |address| SocketAddrV4::new(address, 6081);
        let mut probe = Packet::udp(arriving(), at(PEER), at(NODE));
        probe.payload = from_peer(WEB, PROBE).around_ip(&[])[ETHERNET + 28..].to_vec();
        far_end.send(&probe.frame());
        let mut answer = probe.rewritten(arriving(), probe.destination, probe.source);
        answer.payload[10] = PROBE_ANSWER;
        check_packet(&far_end.receive(), &answer.frame());
    });
}

#[test]
fn other_packets_reach_the_nodes_own_sockets() {
    on_a_node(|node| {
        let far_end = FarEnd::new();
        let state = far_end.uplink_of(node.serving(Location::Remote(PEER)));
        node.apply(&state);
        let own = SocketAddrV4::new(NODE, 7000);
        let socket = UdpSocket::bind(own).expect("the address is free");
        socket
            .set_read_timeout(Some(PATIENCE))
            .expect("a timeout can be set");
        let packet = Packet::udp(arriving(), CLIENT, own);
        far_end.send(&packet.frame());
        assert_eq!(answer(&socket), (CLIENT.into(), packet.payload));
        let received = datagram(&far_end.receive(), ETHERNET);
        assert_eq!(received, (own, CLIENT, b"an answer".to_vec()));
    });
}

#[test]
fn xdp_of_another_uplink_leaves_what_goes_out_by_the_device_to_tc() {
    on_a_node(|node| {
        let far_end = FarEnd::new();
        let mut state = node.serving(Location::Remote(PEER));
        let ethernet = state.uplinks.clone();
        state = far_end.uplink_of(state);
        state.uplinks.extend(ethernet);
        node.apply(&state);
        // The layer 3 device takes XDP from no other uplink.
        let modes = node.datapath().modes();
        let modes: Vec<_> = modes
            .iter()
            .map(|mode| (mode.interface.as_str(), mode.mode))
            .collect();
        assert_eq!(modes, [("tun0", Mode::Tc), ("up0", Mode::XdpNative)]);

        let query = Packet::udp(arriving(), CLIENT, frontend(DNS));
        let by_xdp = node.xdp(&query.frame());
        assert_eq!(by_xdp.verdict, XDP_PASS);
        check_frame(&by_xdp.frame, &query.frame());
        assert_eq!(node.tc_uplink(&query.frame()).verdict, TC_REDIRECT);
        // The client is behind the device, the peer is not.
        let reply = from_peer(DNS, REPLY).around(&Packet::udp(arriving(), frontend(DNS), CLIENT));
        let by_xdp = node.xdp(&reply);
        assert_eq!(by_xdp.verdict, XDP_PASS);
        check_frame(&by_xdp.frame, &reply);
        assert_eq!(node.drops(), BTreeMap::new());
    });
}
