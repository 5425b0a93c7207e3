//! Which flows are over, active or denied.

use std::{net::Ipv4Addr, sync::Arc};

use mesh_ebpf::{
    abi::{Endpoint, Opening},
    bytes::Be16,
    headers::PROTOCOL_UDP,
};

use super::*;
use crate::model::{Ingress, SourcePolicy, SourceRules, SourceVerdict, SourceVerdicts};

fn check(protocol: u8, flow: Flow, idle: u32, current: bool, expected: Fate) {
    check_limited(IdleLimits::default(), protocol, flow, idle, current, expected);
}

fn check_limited(limits: IdleLimits, protocol: u8, flow: Flow, idle: u32, current: bool, expected: Fate) {
    let key = FlowKey {
        protocol: u32::from(protocol),
        ..FlowKey::default()
    };
    let flow = Flow {
        seen: 1000,
        role: Role::FORWARD,
        ..flow
    };
    assert_eq!(
        fate(&key, &flow, 1000 + idle, current, limits),
        expected,
        "{flow:?} idle {idle}"
    );
}

#[test]
fn an_open_connection_is_active_until_its_keep_alive_would_have_failed() {
    let open = Flow {
        origin: Origin::UPLINK,
        opening: Opening::OPEN,
        ..Flow::default()
    };
    check(PROTOCOL_TCP, open, 0, true, Fate::Active);
    check(PROTOCOL_TCP, open, TCP_IDLE, true, Fate::Active);
    check(PROTOCOL_TCP, open, TCP_IDLE + 1, true, Fate::Over);
}

#[test]
fn a_connection_that_does_not_get_to_talk_is_not_active_and_over_after_a_minute() {
    for opening in [Opening::asked(0), Opening::ANSWERED] {
        let half_open = Flow {
            origin: Origin::UPLINK,
            opening,
            ..Flow::default()
        };
        check(PROTOCOL_TCP, half_open, HALF_OPEN_IDLE, true, Fate::Kept);
        check(PROTOCOL_TCP, half_open, HALF_OPEN_IDLE + 1, true, Fate::Over);
    }
}

#[test]
fn a_closed_connection_lingers_and_is_removed() {
    let reset = Flow {
        origin: Origin::UPLINK,
        from_backend: Progress::RESET,
        ..Flow::default()
    };
    check(PROTOCOL_TCP, reset, CLOSED_LINGER, true, Fate::Kept);
    check(PROTOCOL_TCP, reset, CLOSED_LINGER + 1, true, Fate::Over);
    let half = Flow {
        origin: Origin::UPLINK,
        opening: Opening::OPEN,
        from_client: Progress::FINISHED,
        ..Flow::default()
    };
    check(PROTOCOL_TCP, half, CLOSED_LINGER + 1, true, Fate::Active);
    check(PROTOCOL_TCP, half, HALF_CLOSED_IDLE + 1, true, Fate::Over);
}

#[test]
fn udp_is_active_for_half_a_minute() {
    let flow = Flow {
        origin: Origin::UPLINK,
        ..Flow::default()
    };
    check(PROTOCOL_UDP, flow, UDP_ACTIVE, true, Fate::Active);
    check(PROTOCOL_UDP, flow, UDP_ACTIVE + 1, true, Fate::Kept);
    check(PROTOCOL_UDP, flow, UDP_IDLE + 1, true, Fate::Over);
}

#[test]
fn labels_shorten_and_lengthen_how_long_a_flow_may_be_idle() {
    let open = Flow {
        origin: Origin::UPLINK,
        opening: Opening::OPEN,
        ..Flow::default()
    };
    let half_closed = Flow {
        from_client: Progress::FINISHED,
        ..open
    };
    let half_open = Flow {
        opening: Opening::ANSWERED,
        ..open
    };
    let limits = |seconds| IdleLimits {
        tcp: Some(seconds),
        udp: Some(seconds),
    };
    let check = check_limited;
    check(limits(20), PROTOCOL_TCP, open, 20, true, Fate::Active);
    check(limits(20), PROTOCOL_TCP, open, 21, true, Fate::Over);
    check(limits(20), PROTOCOL_TCP, half_closed, 21, true, Fate::Over);
    check(
        limits(20),
        PROTOCOL_TCP,
        half_open,
        HALF_OPEN_IDLE,
        true,
        Fate::Kept,
    );
    check(limits(20), PROTOCOL_UDP, open, 20, true, Fate::Active);
    check(limits(20), PROTOCOL_UDP, open, 21, true, Fate::Over);
    check(limits(86_400), PROTOCOL_TCP, open, 86_400, true, Fate::Active);
    check(limits(86_400), PROTOCOL_TCP, open, 86_401, true, Fate::Over);
    let half_closed_idle = HALF_CLOSED_IDLE + 1;
    check(
        limits(86_400),
        PROTOCOL_TCP,
        half_closed,
        half_closed_idle,
        true,
        Fate::Over,
    );
    check(limits(86_400), PROTOCOL_UDP, open, 86_400, true, Fate::Kept);
    check(limits(86_400), PROTOCOL_UDP, open, 86_401, true, Fate::Over);
}

#[test]
fn a_connection_of_another_entry_node_is_open_for_its_replica_only() {
    let flow = Flow {
        origin: Origin::TUNNEL,
        opening: Opening::OPEN,
        ..Flow::default()
    };
    check(PROTOCOL_TCP, flow, 0, true, Fate::Delivered);
    check(PROTOCOL_UDP, flow, UDP_ACTIVE, true, Fate::Delivered);
    check(PROTOCOL_UDP, flow, UDP_ACTIVE + 1, true, Fate::Kept);
    let closed = Flow {
        from_backend: Progress::RESET,
        ..flow
    };
    check(PROTOCOL_TCP, closed, 0, true, Fate::Kept);
}

#[test]
fn a_flow_whose_backend_is_gone_is_kept_to_be_refused() {
    let flow = Flow {
        origin: Origin::UPLINK,
        ..Flow::default()
    };
    check(PROTOCOL_TCP, flow, 0, false, Fate::Kept);
    check(PROTOCOL_TCP, flow, HALF_CLOSED_IDLE + 1, false, Fate::Over);
}

#[test]
fn an_open_flow_ends_when_the_rules_are_against_its_client() {
    let drop = SourceVerdicts::both(SourceVerdict::Drop);
    let denied = ["192.0.2.0/24", "2001:db8::/32"].map(|prefix| (prefix.parse().unwrap(), drop));
    let rules = SourceRules::from(denied);
    let policy = Arc::new(SourcePolicy::new([(Ingress::Any, rules)]).unwrap());
    let ipv6_clients = [([248, 1, 2, 3], "2001:db8::7"), ([248, 1, 2, 4], "2001:db9::7")];
    let ipv6_clients = ipv6_clients.map(|(mapped, client)| {
        let mapped = Be32::from(Ipv4Addr::from(mapped));
        (mapped, client.parse().unwrap())
    });
    let ipv6_clients = BTreeMap::from(ipv6_clients);
    let service = ServiceKey {
        protocol: crate::model::Protocol::Tcp,
        port: 9200,
    };
    let closed = Ipv4Addr::new(198, 51, 100, 1);
    let access = Access {
        policy: Some(policy),
        closed: [closed].into(),
    };
    let access = BTreeMap::from([(service, access)]);
    let denied_at = |address: Ipv4Addr, port, client: [u8; 4], origin| {
        let key = FlowKey {
            protocol: u32::from(PROTOCOL_TCP),
            ..FlowKey::default()
        };
        let flow = Flow {
            frontend: Endpoint::new(address.into(), Be16::new(port)),
            client: Endpoint::new(Ipv4Addr::from(client).into(), Be16::new(40_000)),
            origin,
            ..Flow::default()
        };
        is_denied(&access, &ipv6_clients, &key, &flow)
    };
    let open = Ipv4Addr::new(198, 51, 100, 2);
    let denied = |port, client, origin| denied_at(open, port, client, origin);
    assert!(denied_at(closed, 9200, [192, 0, 3, 7], Origin::UPLINK));
    assert!(!denied_at(closed, 9201, [192, 0, 3, 7], Origin::UPLINK));
    assert!(!denied_at(closed, 9200, [192, 0, 3, 7], Origin::TUNNEL));
    assert!(denied(9200, [192, 0, 2, 7], Origin::UPLINK));
    assert!(denied(9200, [192, 0, 2, 7], Origin::CONTAINER));
    assert!(!denied(9200, [192, 0, 2, 7], Origin::MESH0));
    assert!(!denied(9200, [192, 0, 2, 7], Origin::TUNNEL));
    assert!(!denied(9200, [192, 0, 3, 7], Origin::UPLINK));
    assert!(!denied(9201, [192, 0, 2, 7], Origin::UPLINK));
    assert!(denied(9200, [248, 1, 2, 3], Origin::UPLINK), "an IPv6 client");
    assert!(!denied(9200, [248, 1, 2, 4], Origin::UPLINK), "another one");
}
