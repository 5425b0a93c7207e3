//! Answers of the mesh itself: RST, "port unreachable", "fragmentation needed".

use std::{collections::BTreeMap, net::SocketAddrV4};

use etherparse::{IpNumber, Ipv4Header};
use mesh_agent::model::Location;
use mesh_agent_testing::{
    cluster::{CLIENT, DNS, PEER, WEB, arriving, from_peer, frontend, out_of_container, serve, target},
    frames::{ACK, FORWARD, Macs, Packet, RST, SYN, Transport, check_frame},
    idle::on_a_node,
    node::Node,
    run::{TC_REDIRECT, TC_SHOT, XDP_DROP, XDP_TX},
};

fn back() -> Macs {
    Macs {
        source: arriving().destination,
        destination: arriving().source,
    }
}

fn without_backends(node: &mut Node) {
    let mut state = node.without_services();
    serve(&mut state, WEB, &[]);
    serve(&mut state, DNS, &[]);
    node.apply(&state);
}

/// The RST for a packet (RFC 9293, 3.10.7.1).
fn reset(sequence: u32, acknowledgement: u32, flags: u8) -> Vec<u8> {
    let mut packet = Packet::tcp(back(), frontend(WEB), CLIENT, flags);
    packet.transport = Transport::Tcp {
        flags,
        sequence,
        acknowledgement,
        window: 0,
        mss: None,
    };
    let mut frame = packet.frame();
    set_identification(&mut frame, 0);
    frame
}

fn set_identification(frame: &mut [u8], identification: u16) {
    let (mut header, _) = Ipv4Header::from_slice(&frame[14..]).expect("an IPv4 header");
    header.identification = identification;
    header.header_checksum = header.calc_header_checksum();
    frame[14..34].copy_from_slice(&header.to_bytes());
}

/// An ICMP error about a frame: type 3, a code, the MTU of "fragmentation needed".
fn unreachable(code: u8, mtu: u16, about: &[u8]) -> Vec<u8> {
    let mut message = vec![3, code, 0, 0, 0, 0];
    message.extend(mtu.to_be_bytes());
    message.extend(&about[14..14 + 28]);
    let sum: u32 = message
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !((folded & 0xffff) + (folded >> 16)) as u16;
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    let (quoted, _) = Ipv4Header::from_slice(&about[14..]).expect("an IPv4 header");
    let mut ip = Ipv4Header::new(
        message.len() as u16,
        64,
        IpNumber::ICMP,
        quoted.destination,
        quoted.source,
    )
    .expect("a payload that fits");
    ip.dont_fragment = true;
    ip.header_checksum = ip.calc_header_checksum();
    let mut frame = about[6..12].to_vec();
    frame.extend(&about[..6]);
    frame.extend([8, 0]);
    frame.extend(ip.to_bytes());
    frame.extend(message);
    frame
}

fn counted(hooks: &[(&str, &str, u64)]) -> BTreeMap<(String, String), u64> {
    hooks
        .iter()
        .map(|(hook, reason, count)| (((*hook).to_owned(), (*reason).to_owned()), *count))
        .collect()
}

#[test]
fn a_syn_to_a_service_without_backends_is_refused() {
    on_a_node(|node| {
        without_backends(node);
        let syn = Packet::tcp(arriving(), CLIENT, frontend(WEB), SYN).frame();
        let expected = reset(0, 0x0102_0305, RST | ACK);
        let by_xdp = node.xdp(&syn);
        assert_eq!(by_xdp.verdict, XDP_TX);
        check_frame(&by_xdp.frame, &expected);
        let by_tc = node.tc_uplink(&syn);
        assert_eq!(by_tc.verdict, TC_REDIRECT);
        check_frame(&by_tc.frame, &expected);
        assert_eq!(
            node.drops(),
            counted(&[("xdp", "no_backend", 1), ("tc_uplink", "no_backend", 1)])
        );
    });
}

#[test]
fn a_datagram_to_a_service_without_backends_is_answered_by_icmp() {
    on_a_node(|node| {
        without_backends(node);
        let datagram = Packet::udp(arriving(), CLIENT, frontend(DNS))
            .with_payload(28)
            .frame();
        let expected = unreachable(3, 0, &datagram);
        check_frame(&node.xdp(&datagram).frame, &expected);
        check_frame(&node.tc_uplink(&datagram).frame, &expected);
        assert_eq!(
            node.drops(),
            counted(&[("xdp", "no_backend", 1), ("tc_uplink", "no_backend", 1)])
        );
    });
}

#[test]
fn a_connection_whose_backend_is_gone_is_reset_but_a_reset_is_not_answered() {
    on_a_node(|node| {
        let state = node.serving(Location::Remote(PEER));
        node.apply(&state);
        node.xdp(&Packet::tcp(arriving(), CLIENT, frontend(WEB), SYN).frame());
        without_backends(node);
        let data = Packet::tcp(arriving(), CLIENT, frontend(WEB), ACK).frame();
        let output = node.xdp(&data);
        assert_eq!(output.verdict, XDP_TX);
        check_frame(&output.frame, &reset(0x0506_0708, 0, RST));
        let over = Packet::tcp(arriving(), CLIENT, frontend(WEB), RST).frame();
        assert_eq!(node.xdp(&over).verdict, XDP_DROP);
        assert_eq!(node.tc_uplink(&over).verdict, TC_SHOT);
        assert_eq!(
            node.drops(),
            counted(&[("xdp", "backend_gone", 2), ("tc_uplink", "backend_gone", 1)])
        );
    });
}

#[test]
fn a_container_gets_fragmentation_needed_if_its_answer_is_too_large_for_the_tunnel() {
    on_a_node(|node| {
        let state = node.serving(node.local());
        node.apply(&state);
        let inner = Packet::udp(arriving(), CLIENT, SocketAddrV4::new(PEER, DNS.port));
        node.tc_uplink(&from_peer(DNS, FORWARD).around(&inner));
        let answer = |payload| {
            Packet::udp(out_of_container(), target(DNS), CLIENT)
                .with_payload(payload)
                .frame()
        };
        assert_eq!(node.tc_container(&answer(1444 - 28)).frame.len(), 14 + 1492);
        let large = answer(1444 - 27);
        let output = node.tc_container(&large);
        assert_eq!(output.verdict, TC_REDIRECT);
        check_frame(&output.frame, &unreachable(4, 1444, &large));
        assert_eq!(node.drops(), counted(&[("tc_container", "too_big", 1)]));
    });
}

#[test]
fn a_client_gets_fragmentation_needed_if_its_packet_is_too_large_for_the_tunnel() {
    on_a_node(|node| {
        let state = node.serving(Location::Remote(PEER));
        node.apply(&state);
        let datagram = |payload| {
            Packet::udp(arriving(), CLIENT, frontend(DNS))
                .with_payload(payload)
                .frame()
        };
        assert_eq!(node.xdp(&datagram(1444 - 28)).frame.len(), 14 + 1492);
        let large = datagram(1444 - 27);
        let expected = unreachable(4, 1444, &large);
        let by_xdp = node.xdp(&large);
        assert_eq!(by_xdp.verdict, XDP_TX);
        check_frame(&by_xdp.frame, &expected);
        let by_tc = node.tc_uplink(&large);
        assert_eq!(by_tc.verdict, TC_REDIRECT);
        check_frame(&by_tc.frame, &expected);
        assert_eq!(
            node.drops(),
            counted(&[("xdp", "too_big", 1), ("tc_uplink", "too_big", 1)])
        );
    });
}
