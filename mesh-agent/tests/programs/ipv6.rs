//! Packets of IPv6 clients: to a container of this node, which has IPv4 only, and back.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddrV4},
    sync::Arc,
};

use etherparse::{IpNumber, Ipv4Header, Ipv6Header, PacketBuilder, TcpHeader};
use mesh_agent::{
    datapath::Datapath as _,
    model::{Desired, Ingress, SourcePolicy, SourceRules, SourceVerdict, SourceVerdicts},
};
use mesh_agent_testing::{
    cluster::{
        OWN_IPV6 as OWN, OWN_MAPPED as MAPPED, WEB, arriving, backend_key, frontend, into_container,
        out_of_container, serve_ipv6, target,
    },
    frames::{ACK, Packet, SYN, check_frame},
    idle::on_a_node,
    node::Node,
    run::{TC_REDIRECT, TC_SHOT, TC_UNSPEC, XDP_PASS},
};

const CLIENT: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 9, 0, 0, 0, 0x77);
const CLIENT_PORT: u16 = 40_000;

/// The node serves the port at its IPv6 address, too.
fn serve(node: &mut Node) -> Desired {
    let mut state = node.serving(node.local());
    serve_ipv6(&mut state, WEB);
    node.apply(&state);
    state
}

/// A TCP packet of the client's with the same fields as the IPv4 one.
fn from_client(port: u16, like: &Packet) -> Vec<u8> {
    let ipv4 = like.frame();
    let header = TcpHeader::from_slice(&ipv4[34..]).expect("a TCP header").0;
    let mut bytes = Vec::new();
    let header = TcpHeader {
        source_port: CLIENT_PORT,
        destination_port: port,
        ..header
    };
    PacketBuilder::ethernet2(ipv4[6..12].try_into().unwrap(), ipv4[..6].try_into().unwrap())
        .ipv6(CLIENT.octets(), OWN.octets(), 64)
        .tcp_header(header)
        .write(&mut bytes, &like.payload)
        .expect("the payload fits");
    bytes
}

/// A packet of the client's as the pipeline takes it.
fn plain(client: Ipv4Addr, flags: u8) -> Packet {
    let source = SocketAddrV4::new(client, CLIENT_PORT);
    Packet::tcp(arriving(), source, SocketAddrV4::new(MAPPED, WEB.port), flags)
}

/// The same IPv4 packet without a number, as IPv6 numbers fragments only.
fn unnumbered(mut frame: Vec<u8>) -> Vec<u8> {
    frame[18..20].fill(0);
    let header = Ipv4Header::from_slice(&frame[14..]).expect("an IPv4 header").0;
    frame[24..26].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
    frame
}

/// Whom the container sees.
fn client_of(frame: &[u8]) -> Ipv4Addr {
    Ipv4Addr::from(<[u8; 4]>::try_from(&frame[26..30]).unwrap())
}

/// Asserts that a frame is the client's IPv6 packet with a right checksum, and returns its TCP header.
fn to_client(frame: &[u8]) -> TcpHeader {
    assert_eq!(frame[12..14], [0x86, 0xdd], "EtherType");
    let (ip, rest) = Ipv6Header::from_slice(&frame[14..]).expect("an IPv6 header");
    assert_eq!((ip.source, ip.destination), (OWN.octets(), CLIENT.octets()));
    assert_eq!(ip.next_header, IpNumber::TCP);
    let (tcp, payload) = TcpHeader::from_slice(&rest[..usize::from(ip.payload_length)]).expect("TCP");
    assert_eq!(
        tcp.checksum,
        tcp.calc_checksum_ipv6(&ip, payload).unwrap(),
        "checksum"
    );
    assert_eq!((tcp.source_port, tcp.destination_port), (WEB.port, CLIENT_PORT));
    tcp
}

#[test]
fn a_container_gets_ipv4_and_the_client_its_own_version() {
    on_a_node(|node| {
        serve(node);
        let mut client = None;
        for flags in [SYN, ACK] {
            let sent = from_client(WEB.port, &plain(Ipv4Addr::UNSPECIFIED, flags));
            assert_eq!(node.xdp(&sent).verdict, XDP_PASS);
            let output = node.tc_uplink(&sent);
            assert_eq!(output.verdict, TC_REDIRECT);
            let seen = client_of(&output.frame);
            assert_eq!(*client.get_or_insert(seen), seen, "one client has one address");
            let expected = plain(seen, flags);
            let expected = expected.routed(into_container(), expected.source, target(WEB));
            check_frame(&output.frame, &unnumbered(expected.frame()));
        }
        let client = client.unwrap();
        assert_eq!(client.octets()[0] & 0xfc, 248, "{client}");
        let reply = Packet::tcp(
            out_of_container(),
            target(WEB),
            SocketAddrV4::new(client, CLIENT_PORT),
            ACK,
        );
        let output = node.tc_container(&reply.frame());
        assert_eq!(output.verdict, TC_REDIRECT);
        let output = node.tc_mesh0(&output.frame);
        assert_eq!(output.verdict, TC_REDIRECT);
        assert!(to_client(&output.frame).ack);
        assert_eq!(node.drops(), Default::default());
        let traffic = node.traffic(backend_key(WEB, 5));
        assert_eq!((traffic.connections_total, traffic.packets_in), (1, 2));
        // The operator sees who it is.
        let known = node.datapath().mapped_clients(Some(client.into())).unwrap();
        assert_eq!(known.len(), 1);
        assert_eq!((known[0].address, known[0].interface.as_str()), (CLIENT, "up0"));
        assert_eq!(
            node.datapath().mapped_clients(Some(CLIENT.into())).unwrap(),
            known
        );
        let other = "2001:db8::1234".parse().unwrap();
        assert!(node.datapath().mapped_clients(Some(other)).unwrap().is_empty());
    });
}

#[test]
fn what_opens_no_flow_is_refused_by_ipv6() {
    on_a_node(|node| {
        serve(node);
        let sent = from_client(WEB.port, &plain(Ipv4Addr::UNSPECIFIED, ACK));
        let output = node.tc_uplink(&sent);
        assert_eq!(output.verdict, TC_REDIRECT, "to mesh0");
        let output = node.tc_mesh0(&output.frame);
        assert!(to_client(&output.frame).rst);
    });
}

#[test]
fn rules_are_about_the_clients_own_address() {
    on_a_node(|node| {
        let mut state = serve(node);
        let syn = from_client(WEB.port, &plain(Ipv4Addr::UNSPECIFIED, SYN));
        for (denied, verdict) in [
            ("2001:db8:0:8::/64", TC_REDIRECT),
            // What stands for the client, and every IPv4 address.
            ("248.0.0.0/6", TC_REDIRECT),
            ("0.0.0.0/0", TC_REDIRECT),
            ("2001:db8:0:9::/64", TC_SHOT),
            ("::/0", TC_SHOT),
        ] {
            let drop = SourceVerdicts::both(SourceVerdict::Drop);
            let rules = SourceRules::from([(denied.parse().unwrap(), drop)]);
            let web = state.services.get_mut(&WEB).expect("it is served");
            web.policy = SourcePolicy::new([(Ingress::Any, rules)]).map(Arc::new);
            node.apply(&state);
            node.datapath().maintain().expect("its open flows end");
            assert_eq!(node.tc_uplink(&syn).verdict, verdict, "{denied}");
        }
        let reason = ("tc_uplink".to_owned(), "source_denied".to_owned());
        assert_eq!(node.drops(), [(reason, 2)].into());
    });
}

#[test]
fn an_error_about_no_flow_is_dropped_and_counted() {
    on_a_node(|node| {
        serve(node);
        let syn = from_client(WEB.port, &plain(Ipv4Addr::UNSPECIFIED, SYN));
        assert_eq!(node.tc_uplink(&syn).verdict, TC_REDIRECT, "the client is known");
        let about = Ipv6Header {
            payload_length: 20,
            next_header: IpNumber::TCP,
            hop_limit: 60,
            source: OWN.octets(),
            destination: CLIENT.octets(),
            ..Ipv6Header::default()
        };
        let mut quote = about.to_bytes().to_vec();
        for port in [WEB.port, CLIENT_PORT + 1] {
            quote.extend(port.to_be_bytes());
        }
        quote.extend([0; 4]);
        let mut error = Vec::new();
        let macs = arriving();
        PacketBuilder::ethernet2(macs.source, macs.destination)
            .ipv6(CLIENT.octets(), OWN.octets(), 64)
            .icmpv6_raw(1, 4, [0; 4])
            .write(&mut error, &quote)
            .expect("the quote fits");
        assert_eq!(node.tc_uplink(&error).verdict, TC_SHOT);
        let reason = ("tc_uplink".to_owned(), "unknown_flow".to_owned());
        assert_eq!(node.drops(), [(reason, 1)].into());
    });
}

#[test]
fn ipv6_that_is_for_no_frontend_passes_as_it_came() {
    on_a_node(|node| {
        let state = serve(node);
        let syn = plain(Ipv4Addr::UNSPECIFIED, SYN);
        let other = from_client(WEB.port + 1, &syn);
        let output = node.tc_uplink(&other);
        assert_eq!(output.verdict, TC_UNSPEC);
        assert_eq!(output.frame, other);
        // Neither is it once the node has lost the address.
        let mut without = state.clone();
        without.own_ipv6.clear();
        without.frontends.retain(|frontend| frontend.address != MAPPED);
        node.apply(&without);
        let sent = from_client(WEB.port, &syn);
        let output = node.tc_uplink(&sent);
        assert_eq!((output.verdict, output.frame), (TC_UNSPEC, sent));
        assert_eq!(node.drops(), Default::default());
    });
}

#[test]
fn mapped_addresses_are_taken_from_no_wire() {
    on_a_node(|node| {
        serve(node);
        let to_own = plain(Ipv4Addr::new(192, 0, 2, 7), SYN);
        let from_mapped = plain(Ipv4Addr::new(248, 1, 2, 3), SYN);
        let from_mapped = from_mapped.rewritten(arriving(), from_mapped.source, frontend(WEB));
        for packet in [to_own, from_mapped] {
            assert_eq!(node.tc_uplink(&packet.frame()).verdict, TC_SHOT);
        }
        let drops = node.drops();
        assert_eq!(drops.values().sum::<u64>(), 2);
        assert!(drops.keys().all(|(_, reason)| reason == "martian"), "{drops:?}");
    });
}
