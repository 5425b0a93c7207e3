//! Containers' answers on their way to the client: directly, into the tunnel, out of the tunnel.

use std::net::{Ipv4Addr, SocketAddrV4};

use mesh_agent::model::Location;

use crate::{
    frames::{ACK, FIN, FORWARD, FORWARD_DIRECT, Packet, REPLY, SYN, check_frame, outer_port},
    space::{
        CLIENT, DNS, PEER, ROUTER_MAC, Space, TC_REDIRECT, TC_UNSPEC, WEB, XDP_TX, arriving, backend_key,
        from_peer, frontend, in_space, leaving_to, out_of_container, target, to_peer,
    },
};

/// The frontend as a client of the peer has dialled it.
const ENTRY: SocketAddrV4 = SocketAddrV4::new(PEER, WEB.port);

fn local(space: &mut Space) {
    let state = space.serving(space.local());
    space.apply(&state);
}

#[test]
fn an_answer_to_a_client_of_this_node_comes_from_the_frontend() {
    in_space(|space| {
        local(space);
        space.tc_uplink(&Packet::tcp(arriving(), CLIENT, frontend(WEB), SYN).frame());
        let mut bytes = 0;
        for flags in [SYN | ACK, ACK] {
            let answer = Packet::tcp(out_of_container(), target(WEB), CLIENT, flags);
            bytes += answer.frame().len() as u64 - 14;
            let output = space.tc_container(&answer.frame());
            assert_eq!(output.verdict, TC_REDIRECT);
            let expected = answer.rewritten(leaving_to(ROUTER_MAC), frontend(WEB), CLIENT);
            check_frame(&output.frame, &expected.frame());
        }
        let traffic = space.traffic(backend_key(WEB, 5));
        assert_eq!((traffic.packets_out, traffic.bytes_out), (2, bytes));
    });
}

#[test]
fn an_answer_to_a_flow_from_a_peer_goes_back_through_the_tunnel() {
    in_space(|space| {
        local(space);
        let inner = Packet::tcp(arriving(), CLIENT, ENTRY, SYN);
        space.tc_uplink(&from_peer(WEB, FORWARD).around(&inner));
        let answer = Packet::tcp(out_of_container(), target(WEB), CLIENT, SYN | ACK);
        let output = space.tc_container(&answer.frame());
        assert_eq!(output.verdict, TC_REDIRECT);
        let port = outer_port(&output.frame);
        let clamped = answer.rewritten(arriving(), ENTRY, CLIENT).with_mss(1412);
        check_frame(&output.frame, &to_peer(WEB, REPLY, port).around(&clamped));

        let data = Packet::tcp(out_of_container(), target(WEB), CLIENT, ACK);
        let output = space.tc_container(&data.frame());
        let restored = data.rewritten(arriving(), ENTRY, CLIENT);
        check_frame(&output.frame, &to_peer(WEB, REPLY, port).around(&restored));
    });
}

#[test]
fn with_direct_return_it_goes_to_the_client() {
    in_space(|space| {
        local(space);
        let inner = Packet::udp(arriving(), CLIENT, SocketAddrV4::new(PEER, DNS.port));
        space.tc_uplink(&from_peer(DNS, FORWARD_DIRECT).around(&inner));
        let answer = Packet::udp(out_of_container(), target(DNS), CLIENT);
        let output = space.tc_container(&answer.frame());
        assert_eq!(output.verdict, TC_REDIRECT);
        let expected = answer.rewritten(leaving_to(ROUTER_MAC), SocketAddrV4::new(PEER, DNS.port), CLIENT);
        check_frame(&output.frame, &expected.frame());
    });
}

#[test]
fn where_there_is_no_direct_way_it_goes_back_through_the_tunnel() {
    in_space(|space| {
        local(space);
        let unreachable = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 7), 40_000);
        let entry = SocketAddrV4::new(PEER, DNS.port);
        let inner = Packet::udp(arriving(), unreachable, entry);
        space.tc_uplink(&from_peer(DNS, FORWARD_DIRECT).around(&inner));
        let answer = Packet::udp(out_of_container(), target(DNS), unreachable);
        let output = space.tc_container(&answer.frame());
        assert_eq!(output.verdict, TC_REDIRECT);
        let port = outer_port(&output.frame);
        let restored = answer.rewritten(arriving(), entry, unreachable);
        check_frame(&output.frame, &to_peer(DNS, REPLY, port).around(&restored));
    });
}

#[test]
fn an_answer_out_of_the_tunnel_reaches_the_client_as_it_is() {
    in_space(|space| {
        let state = space.serving(Location::Remote(PEER));
        space.apply(&state);
        space.xdp(&Packet::tcp(arriving(), CLIENT, frontend(WEB), SYN).frame());
        let inner = Packet::tcp(out_of_container(), frontend(WEB), CLIENT, SYN | ACK);
        let frame = from_peer(WEB, REPLY).around(&inner);
        let expected = inner
            .rewritten(leaving_to(ROUTER_MAC), frontend(WEB), CLIENT)
            .frame();
        let by_xdp = space.xdp(&frame);
        assert_eq!(by_xdp.verdict, XDP_TX);
        check_frame(&by_xdp.frame, &expected);
        let by_tc = space.tc_uplink(&frame);
        assert_eq!(by_tc.verdict, TC_REDIRECT);
        check_frame(&by_tc.frame, &expected);
        let traffic = space.traffic(backend_key(WEB, 5));
        assert_eq!(
            (traffic.packets_out, traffic.bytes_out),
            (2, 2 * (expected.len() as u64 - 14))
        );
    });
}

#[test]
fn what_a_container_says_for_itself_is_left_alone() {
    in_space(|space| {
        local(space);
        for packet in [
            Packet::tcp(out_of_container(), target(WEB), CLIENT, ACK),
            Packet::udp(
                out_of_container(),
                SocketAddrV4::new(*target(WEB).ip(), 5000),
                CLIENT,
            ),
        ] {
            let output = space.tc_container(&packet.frame());
            assert_eq!(output.verdict, TC_UNSPEC);
            check_frame(&output.frame, &packet.frame());
        }
    });
}

#[test]
fn a_port_is_used_anew_only_after_its_flow_has_closed() {
    in_space(|space| {
        let state = space.serving(space.local());
        space.apply(&state);
        let from_client = |flags| Packet::tcp(arriving(), CLIENT, frontend(WEB), flags).frame();
        let from_container = |flags| Packet::tcp(out_of_container(), target(WEB), CLIENT, flags).frame();
        space.tc_uplink(&from_client(SYN));
        space.tc_uplink(&from_client(SYN));
        assert_eq!(space.traffic(backend_key(WEB, 5)).connections_total, 1);
        space.tc_uplink(&from_client(FIN | ACK));
        space.tc_container(&from_container(FIN | ACK));
        space.tc_uplink(&from_client(SYN));
        assert_eq!(space.traffic(backend_key(WEB, 5)).connections_total, 2);
    });
}
