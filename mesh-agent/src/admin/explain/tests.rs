//! What is asked of the data path, and the sentences that become of its answers.

use std::{collections::BTreeMap, sync::Arc};

use super::*;
use crate::{
    admin::view::fixture,
    datapath::{InterfaceMode, flow_list::FlowState},
    model::{Cluster, Desired, HostInterface, NodePolicy, Protocol},
};

const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);

/// The fixture with the uplinks eth0 (2, XDP) and eth1 (3).
fn view() -> View {
    let (mut view, _) = fixture::two_nodes();
    let mut desired = Desired::clone(&view.desired);
    let uplink = |index| HostInterface {
        index,
        mac: None,
        mtu: 1500,
        has_vlans: false,
    };
    desired.uplinks = [("eth0".to_owned(), uplink(2)), ("eth1".to_owned(), uplink(3))].into();
    desired.container_interfaces = [9].into();
    view.desired = Arc::new(desired);
    view.modes = vec![InterfaceMode {
        interface: "eth0".to_owned(),
        mode: Mode::XdpNative,
        reason: String::new(),
    }];
    view
}

fn query(source: Ipv4Addr, interface: Option<&str>) -> ExplainQuery {
    ExplainQuery {
        source: source.into(),
        source_port: None,
        destination: "192.168.0.1:9200".parse().unwrap(),
        protocol: Protocol::Tcp,
        interface: interface.map(str::to_owned),
    }
}

fn ask(source: Ipv4Addr, interface: Option<&str>, way_back: Option<u32>) -> Result<PacketIngress, String> {
    let index_of = |name: &str| (name == "veth9").then_some(9);
    question(&view(), &query(source, interface), index_of, |_| way_back).map(|question| question.ingress)
}

#[test]
fn where_a_packet_enters_follows_from_its_source() {
    let by = |interface, has_xdp| Ok(PacketIngress::Uplink { interface, has_xdp });
    assert_eq!(ask(CLIENT, None, Some(3)), by(3, false), "the way back");
    assert_eq!(
        ask(CLIENT, None, Some(77)),
        by(2, true),
        "there is none by an uplink"
    );
    assert_eq!(ask(CLIENT, Some("eth0"), Some(3)), by(2, true));
    let container = Ok(PacketIngress::Container { interface: 9 });
    assert_eq!(
        ask(Ipv4Addr::new(172, 18, 0, 3), None, None),
        container,
        "web.1's"
    );
    assert_eq!(ask(CLIENT, Some("veth9"), None), container);
    assert_eq!(ask(Ipv4Addr::LOCALHOST, None, None), Ok(PacketIngress::Host));
    assert_eq!(
        ask(Ipv4Addr::new(192, 168, 0, 1), None, None),
        Ok(PacketIngress::Host)
    );
    let error = ask(CLIENT, Some("eth7"), None).unwrap_err();
    assert!(
        error.contains("eth7") && error.contains("the uplinks are eth0, eth1"),
        "{error}"
    );
}

fn web(last: u8) -> BackendKey {
    BackendKey {
        service: ServiceKey {
            protocol: Protocol::Tcp,
            port: 9200,
        },
        address: Ipv4Addr::new(10, 0, 0, last),
    }
}

/// A new flow to web.2, on the other node.
fn forwarded() -> Explanation {
    Explanation {
        hooks: vec![("xdp".to_owned(), "forward".to_owned())],
        is_published: true,
        service: Some(web(6).service),
        is_closed: false,
        is_answer: false,
        flow: None,
        rules: Some(SourceVerdict::Accept),
        choice: Some(Chosen {
            how: "rotate".to_owned(),
            slots: vec![(1, Some(web(6)))],
            ring_length: 2,
            has_affinity: false,
            is_forecast: true,
            is_flooded: false,
        }),
        unanswered: BTreeMap::new(),
        backend: Some(web(6)),
        presented: None,
        outcome: Outcome::Forwarded(Tunnelled {
            peer: Ipv4Addr::new(192, 168, 0, 2),
            interface: Some(2),
            mtu: 1444,
            has_key: true,
            is_direct: false,
        }),
    }
}

fn explained(view: &View, found: &Explanation) -> (Explained, BTreeMap<String, String>) {
    let query = query(CLIENT, Some("eth0"));
    let question = question(view, &query, |_| None, |_| None).unwrap();
    let answer = answer(view, &query, &question, found);
    let steps = answer.steps.iter();
    let steps = steps
        .map(|step| (step.step.clone(), step.detail.clone()))
        .collect();
    (answer, steps)
}

#[test]
fn a_new_connection_is_explained_from_interface_to_way_back() {
    let (answer, steps) = explained(&view(), &forwarded());
    let expected = [
        ("interface", "it arrives by eth0, an uplink"),
        ("hooks", "xdp: forward"),
        ("port", "tcp/9200 is published by web"),
        ("frontend", "192.168.0.1 is answered"),
        ("flow", "none yet: the packet would open one"),
        ("source rules", "192.0.2.7 may come in"),
        (
            "algorithm",
            "rr (rotate): slot 1 of 2 (a forecast: it depends on what comes first)",
        ),
        ("health", "nothing is known against the replica"),
        ("replica", "web.2, 10.0.0.6:80, active"),
        ("node", "n2 (192.168.0.2), answers probes"),
        ("tunnel", "Geneve, with the cluster's key, by interface 2"),
        ("MTU", "packets of up to 1444 bytes fit into the tunnel"),
        (
            "way back",
            "through the tunnel to this node, and from here to the client",
        ),
        ("outcome", "sent to web.2 on n2"),
    ];
    let order: Vec<_> = answer.steps.iter().map(|step| step.step.as_str()).collect();
    assert_eq!(order, expected.map(|(step, _)| step));
    for (step, detail) in expected {
        // The fixture's next hop to n2 is not resolved.
        if step != "health" {
            assert_eq!(steps[step], detail, "{step}");
        }
    }
    assert_eq!(steps["health"], "the next hop to 192.168.0.2 is not resolved yet");
    assert_eq!(answer.outcome, ExplainedOutcome::Forwarded);
    assert!(answer.is_forecast && answer.is_port_assumed);
    assert_eq!(answer.backend.unwrap().task, "web.2");
}

#[test]
fn a_known_flow_and_failing_replicas_are_named() {
    let known = Explanation {
        flow: Some(KnownFlow {
            backend: Some(web(5)),
            state: FlowState::Open,
            idle_seconds: 3,
        }),
        rules: None,
        choice: None,
        backend: Some(web(5)),
        outcome: Outcome::Delivered { interface: 9 },
        ..forwarded()
    };
    let (answer, steps) = explained(&view(), &known);
    assert_eq!(
        steps["flow"],
        "there is one to web.1, open, idle for 3 s: its next packet"
    );
    assert_eq!(steps["source rules"], "not asked for the packets of a known flow");
    assert_eq!(steps["outcome"], "delivered to web.1");
    assert!(!answer.is_forecast && !steps.contains_key("algorithm"));
    let loyal = Explanation {
        choice: forwarded().choice.map(|choice| Chosen {
            has_affinity: true,
            ..choice
        }),
        ..forwarded()
    };
    let (_, steps) = explained(&view(), &loyal);
    assert!(
        steps["algorithm"].contains("mesh.affinity"),
        "{}",
        steps["algorithm"]
    );
    let failing = Explanation {
        unanswered: [(web(5), 3), (web(6), 2)].into(),
        ..forwarded()
    };
    let (_, steps) = explained(&view(), &failing);
    let expected = "passed over where others answer: web.1 (3 connections unanswered)";
    assert!(steps["health"].starts_with(expected), "{}", steps["health"]);
    assert!(!steps["health"].contains("web.2"), "{}", steps["health"]);
}

#[test]
fn whose_rule_keeps_a_client_out_is_named() {
    let denied = Explanation {
        rules: Some(SourceVerdict::Drop),
        choice: None,
        backend: None,
        outcome: Outcome::Dropped {
            reason: "source_denied".to_owned(),
        },
        ..forwarded()
    };
    let (answer, steps) = explained(&view(), &denied);
    let firewall = "the client is dropped, by the host's firewall (chain DOCKER-USER)";
    assert_eq!(steps["source rules"], firewall);
    assert_eq!(answer.reason.as_deref(), Some("source_denied"));
    assert_eq!(steps["outcome"], "dropped without an answer (source_denied)");

    let mut by_label = view();
    let mut cluster = Cluster::clone(&by_label.source.cluster);
    let web = cluster.services.get_mut("web-id").unwrap();
    web.clients.deny = vec!["192.0.2.0/24".parse().unwrap()];
    by_label.source.cluster = cluster.into();
    let (_, steps) = explained(&by_label, &denied);
    assert!(
        steps["source rules"].contains("mesh.deny"),
        "{}",
        steps["source rules"]
    );

    let mut by_node = view();
    let rules = vec!["deny 9200 from 192.0.2.0/24".parse().unwrap()];
    by_node.policy = Arc::new(NodePolicy::new(rules));
    let policy = by_node.policy.of(Protocol::Tcp, 9200, &BTreeMap::new()).unwrap();
    let verdict = policy.verdicts(Ingress::Any, CLIENT.into()).opening;
    let denied = Explanation {
        rules: Some(verdict),
        ..denied
    };
    let (_, steps) = explained(&by_node, &denied);
    assert!(
        steps["source rules"].contains("setting policy"),
        "{}",
        steps["source rules"]
    );
}

#[test]
fn a_port_that_no_one_publishes_is_left_to_the_kernel() {
    let unknown = Explanation {
        is_published: false,
        service: None,
        rules: None,
        choice: None,
        backend: None,
        outcome: Outcome::Passed,
        ..forwarded()
    };
    let (answer, steps) = explained(&view(), &unknown);
    let order: Vec<_> = answer.steps.iter().map(|step| step.step.as_str()).collect();
    assert_eq!(order, ["interface", "hooks", "port", "outcome"]);
    assert_eq!(steps["port"], "no service publishes tcp/9200");
    assert_eq!(answer.outcome, ExplainedOutcome::LeftToKernel);
}

#[test]
fn for_another_nodes_address_that_node_is_to_be_asked() {
    let not_here = Explanation {
        service: None,
        rules: None,
        choice: None,
        backend: None,
        outcome: Outcome::Passed,
        ..forwarded()
    };
    let (_, steps) = explained(&view(), &not_here);
    assert!(
        steps["frontend"].starts_with("192.168.0.1 is not answered"),
        "{}",
        steps["frontend"]
    );
    let view = view();
    let query = ExplainQuery {
        destination: "192.168.0.2:9200".parse().unwrap(),
        ..query(CLIENT, Some("eth0"))
    };
    let question = question(&view, &query, |_| None, |_| None).unwrap();
    let answer = answer(&view, &query, &question, &not_here);
    let frontend = answer.steps.iter().find(|step| step.step == "frontend").unwrap();
    assert!(
        frontend.detail.ends_with("ask it (--node n2)"),
        "{}",
        frontend.detail
    );
}

#[test]
fn an_ipv6_packet_is_explained_by_what_stands_for_its_addresses() {
    let own = "2001:db8::1".parse().unwrap();
    let mut view = view();
    let mut desired = Desired::clone(&view.desired);
    desired.own_ipv6.insert(own, Ipv4Addr::new(252, 1, 2, 3));
    view.desired = Arc::new(desired);
    let mut cluster = Cluster::clone(&view.source.cluster);
    let web = cluster.services.get_mut("web-id").unwrap();
    web.clients.deny = vec!["2001:db8:0:9::/64".parse().unwrap()];
    view.source.cluster = cluster.into();
    let found = |rules| Explanation {
        rules: Some(rules),
        ..forwarded()
    };
    let rules_of = |answer: Explained| {
        let step = answer.steps.into_iter().find(|step| step.step == "source rules");
        step.unwrap().detail
    };
    let ask_with = |found: &Explanation, source: &str, destination: &str| {
        let query = ExplainQuery {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            ..query(CLIENT, None)
        };
        let question = question(&view, &query, |_| None, |_| None)?;
        let answer = answer(&view, &query, &question, found);
        Ok::<_, String>((question, answer))
    };
    let ask = |source: &str, destination: &str| ask_with(&found(SourceVerdict::Accept), source, destination);
    let (question, answer) = ask("2001:db8::99", "[2001:db8::1]:9200").unwrap();
    assert_eq!(question.destination, "252.1.2.3:9200".parse().unwrap());
    assert_eq!(question.source.ip().octets()[0] & 0xfc, 248);
    assert_eq!(answer.source, "[2001:db8::99]:50000".parse().unwrap());
    let step = &answer.steps[0];
    assert!(
        step.step == "ip version" && step.detail.contains("252.1.2.3"),
        "{step:?}"
    );
    assert_eq!(rules_of(answer), "2001:db8::99 may come in");
    let drop = found(SourceVerdict::Drop);
    let (_, answer) = ask_with(&drop, "2001:db8:0:9::1", "[2001:db8::1]:9200").unwrap();
    let denied = rules_of(answer);
    assert!(denied.contains("mesh.deny"), "{denied}");
    // A process of the node.
    let (question, _) = ask("2001:db8::1", "[2001:db8::1]:9200").unwrap();
    assert_eq!(question.ingress, PacketIngress::Host);
    for (destination, expected) in [
        ("[2001:db8::2]:9200", "answers at no IPv6 address 2001:db8::2"),
        ("192.168.0.1:9200", "must both be IPv4 or both IPv6"),
    ] {
        let error = ask("2001:db8::99", destination).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}
