//! Clients that a service's rules let in, drop or reject, at each hook.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};

use super::*;
use crate::{
    abi::SourceVerdicts,
    headers::{PROTOCOL_TCP, PROTOCOL_UDP},
    mapped::preferred,
    testing::{ACK, Replica, SYN, TestFrame, TestTables, at, decide, network, tcp, tcp_v6, udp},
    to_ipv4::{self, Next},
    verdict::Verdict,
};

const FRONTEND: &str = "10.0.0.1:9200";
const STRANGER: &str = "198.51.100.7:40000";
const DENIED: &str = "192.0.2.7:40000";
const NETWORK: Ipv6Address = Ipv6Address::of_ipv4(Be32::new(0xc000_0200));
const POLICY: u16 = 3;
const ACCEPT: SourceVerdicts = SourceVerdicts::new(SourceVerdict::ACCEPT, SourceVerdict::ACCEPT);

/// A node whose service has a remote and a local replica, and a policy by which one network gets these
/// verdicts and all others come in.
fn node(verdicts: SourceVerdicts, by_interface: Option<u32>) -> TestTables {
    let replicas = [Replica::on(1, 1), Replica::on(2, 2)];
    let mut tables = TestTables::node(1)
        .publish(PROTOCOL_TCP, 9200, &replicas)
        .publish(PROTOCOL_UDP, 9200, &replicas);
    for service in tables.services.values_mut() {
        service.policy = Policy::new(POLICY, by_interface.is_some());
    }
    let interface = by_interface.unwrap_or(0);
    for (source, verdicts) in [(NETWORK, verdicts), (Ipv6Address::default(), ACCEPT)] {
        tables
            .source_rules
            .insert((u32::from(POLICY), interface, source), verdicts);
    }
    tables
}

fn syn(source: &str) -> TestFrame {
    tcp(at(source), at(FRONTEND), SYN)
}

fn is_dropped(tables: &TestTables, hook: Hook, frame: &TestFrame) -> bool {
    matches!(
        decide(frame, tables, hook).verdict(),
        Verdict::Drop(DropReason::SourceDenied)
    )
}

fn is_rejected(tables: &TestTables, hook: Hook, frame: &TestFrame) -> bool {
    matches!(
        decide(frame, tables, hook).verdict(),
        Verdict::Refuse(DropReason::SourceRejected)
    )
}

#[test]
fn a_denied_client_opens_no_flow_and_others_do() {
    let drop = SourceVerdicts::new(SourceVerdict::DROP, SourceVerdict::DROP);
    for hook in [Hook::Xdp, Hook::TcUplink, Hook::TcContainer] {
        let tables = node(drop, None);
        for frame in [syn(DENIED), udp(at(DENIED), at(FRONTEND), b"hello")] {
            // Once for each replica.
            assert!(is_dropped(&tables, hook, &frame) && is_dropped(&tables, hook, &frame));
        }
        assert_eq!(tables.flow_count(), 0);
        decide(&syn(STRANGER), &tables, hook);
        assert!(tables.flow_count() > 0, "{hook:?}");
    }
}

#[test]
fn a_rejected_client_gets_an_answer() {
    let tables = node(
        SourceVerdicts::new(SourceVerdict::REJECT, SourceVerdict::ACCEPT),
        None,
    );
    for frame in [syn(DENIED), udp(at(DENIED), at(FRONTEND), b"hello")] {
        assert!(is_rejected(&tables, Hook::TcUplink, &frame));
    }
    assert_eq!(tables.flow_count(), 0);
}

#[test]
fn processes_of_the_node_always_come_in() {
    let tables = node(
        SourceVerdicts::new(SourceVerdict::DROP, SourceVerdict::DROP),
        None,
    );
    let frame = tcp(
        at(DENIED),
        SocketAddrV4::new(crate::testing::SERVICE_ADDRESS, 9200),
        SYN,
    );
    assert!(!is_dropped(&tables, Hook::TcMesh0, &frame));
    assert!(tables.flow_count() > 0);
}

#[test]
fn an_open_flow_costs_no_look_up_and_a_removed_one_is_what_the_rules_say() {
    for (open, dropped, rejected) in [
        (SourceVerdict::DROP, true, false),
        (SourceVerdict::REJECT, false, true),
        (SourceVerdict::ACCEPT, false, false),
    ] {
        let mut tables = node(ACCEPT, None);
        decide(&syn(DENIED), &tables, Hook::TcUplink);
        let flows = tables.flow_count();
        tables.source_rules.insert(
            (u32::from(POLICY), 0, NETWORK),
            SourceVerdicts::new(SourceVerdict::DROP, open),
        );
        let known = tcp(at(DENIED), at(FRONTEND), ACK);
        assert!(!is_dropped(&tables, Hook::TcUplink, &known));
        // Another tuple: as after its removal.
        let unknown = tcp(at("192.0.2.7:40001"), at(FRONTEND), ACK);
        assert_eq!(is_dropped(&tables, Hook::TcUplink, &unknown), dropped);
        assert_eq!(is_rejected(&tables, Hook::TcUplink, &unknown), rejected);
        assert_eq!(tables.flow_count(), flows);
    }
}

#[test]
fn rules_by_interface_hold_there_and_xdp_leaves_unknown_interfaces_to_tc() {
    let drop = SourceVerdicts::new(SourceVerdict::DROP, SourceVerdict::DROP);
    let tables = node(drop, Some(2));
    let mut frame = syn(DENIED);
    frame.interface = 2;
    assert!(is_dropped(&tables, Hook::Xdp, &frame) && is_dropped(&tables, Hook::TcUplink, &frame));
    frame.interface = 77;
    let by_xdp = decide(&frame, &tables, Hook::Xdp).verdict();
    assert!(matches!(by_xdp, Verdict::Pass));
    assert!(is_dropped(&tables, Hook::TcUplink, &frame));
    assert_eq!(tables.flow_count(), 0);
    let containers = node(drop, Some(SourceRule::CONTAINERS));
    assert!(is_dropped(&containers, Hook::TcContainer, &frame));
    frame = syn(STRANGER);
    decide(&frame, &containers, Hook::TcContainer);
    assert!(containers.flow_count() > 0);
}

#[test]
fn an_ipv6_client_is_judged_by_its_own_address() {
    const OWN: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 1);
    const DENIED: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 2, 0, 0, 0, 7);
    const OTHER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 3, 0, 0, 0, 7);
    let drop = SourceVerdicts::new(SourceVerdict::DROP, SourceVerdict::DROP);
    let mut tables = node(ACCEPT, None).with_ipv6(OWN, Ipv4Addr::new(252, 0, 0, 1));
    let mut deny = |of: Ipv6Address| {
        tables
            .source_rules
            .insert((u32::from(POLICY), 0, network(&of)), drop)
    };
    deny(DENIED.into());
    // What stands for the other one in the pipeline tells nothing.
    deny(Ipv6Address::of_ipv4(preferred(&OTHER.into())));
    let is_kept_out = |client: Ipv6Addr| {
        let (client, own) = (
            SocketAddrV6::new(client, 40_000, 0, 0),
            SocketAddrV6::new(OWN, 9200, 0, 0),
        );
        let mut frame = tcp_v6(client, own, SYN);
        assert_eq!(to_ipv4::run(&mut frame, &tables, Hook::TcUplink), Next::Pipeline);
        is_dropped(&tables, Hook::TcUplink, &frame)
    };
    assert!(is_kept_out(DENIED));
    assert!(!is_kept_out(OTHER));
}
