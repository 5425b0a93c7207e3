//! What `explain` says of a packet, and what the programs do with it: for random tuples the two agree, and to
//! ask changes nothing.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4},
    sync::Arc,
};

use mesh_agent::{
    datapath::{
        Datapath as _,
        explain::{Explanation, Outcome, PacketIngress, Question},
        flow_list::FlowState,
    },
    model::{
        Algorithm, Balance, Ingress, Location, Protocol, SourcePolicy, SourceRules, SourceVerdict,
        SourceVerdicts,
    },
};
use mesh_agent_testing::{
    cluster::{
        CONTAINER, DNS, NODE, PEER, SERVICE_ADDRESS, WEB, arriving, backend_key, from_peer_about, frontend,
        out_of_container, serve, target,
    },
    frames::{ACK, FIN, Packet, REPLY, RST, SYN},
    node::{Node, on_a_node_with},
    run::{Entry, Output, TC_REDIRECT, TC_SHOT, TC_UNSPEC, XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX},
};

/// Backends 1 to 4 on the peer, and 5 here.
const LOCAL: u8 = 5;

/// What can be seen of a packet's fate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    Passed,
    Dropped,
    Refused,
    /// To the replica of this number.
    Delivered(u8),
    Forwarded(u8),
}

/// Numbers that are the same in every run (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn client(&mut self) -> SocketAddrV4 {
        let address = Ipv4Addr::new(192, 0, 2 + self.below(4) as u8, 1 + self.below(6) as u8);
        SocketAddrV4::new(address, 40_000 + self.below(40) as u16)
    }

    fn destination(&mut self) -> SocketAddrV4 {
        match self.below(12) {
            0 => SocketAddrV4::new(NODE, 9201),
            1 => SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 77), WEB.port),
            2 | 3 => frontend(DNS),
            _ => frontend(WEB),
        }
    }
}

fn serving(node: &mut Node, balance: Balance) {
    let mut state = node.without_services();
    let local = node.local();
    for key in [WEB, DNS] {
        let remote = (1..LOCAL).map(|number| (number, Location::Remote(PEER)));
        let backends: Vec<_> = remote.chain([(LOCAL, local)]).collect();
        serve(&mut state, key, &backends);
    }
    let rules = [
        ("192.0.3.0/24", SourceVerdict::Drop),
        ("192.0.4.0/24", SourceVerdict::Reject),
    ];
    let rules = rules.map(|(prefix, verdict)| (prefix.parse().unwrap(), SourceVerdicts::both(verdict)));
    let policy = SourcePolicy::new([(Ingress::Any, SourceRules::from(rules))]);
    for service in state.services.values_mut() {
        service.balance = balance;
        service.policy = policy.clone().map(Arc::new);
    }
    node.apply(&Node::without_flood_limit(&state));
}

fn explain(node: &mut Node, question: &Question) -> Explanation {
    let explained = node.datapath().explain(question);
    explained.unwrap_or_else(|error| panic!("{question:?}: {}", mesh_support::error_chain(&error)))
}

fn predicted(explanation: &Explanation) -> Fate {
    let replica = explanation.backend.map_or(0, |key| key.address.octets()[3]);
    match explanation.outcome {
        Outcome::Passed => Fate::Passed,
        Outcome::Dropped { .. } => Fate::Dropped,
        Outcome::Refused { .. } => Fate::Refused,
        Outcome::Delivered { .. } => Fate::Delivered(replica),
        Outcome::Forwarded(_) => Fate::Forwarded(replica),
        Outcome::Reply => panic!("{explanation:?}"),
    }
}

/// A packet that opens its flow or, where `explain` knows that flow, its next.
fn packet(question: &Question, explanation: &Explanation) -> Packet {
    let macs = match question.ingress {
        PacketIngress::Container { .. } => out_of_container(),
        PacketIngress::Uplink { .. } | PacketIngress::Host => arriving(),
    };
    let goes_on = |flow: &mesh_agent::datapath::explain::KnownFlow| flow.state != FlowState::Closed;
    let flags = if explanation.flow.as_ref().is_some_and(goes_on) {
        ACK
    } else {
        SYN
    };
    match question.protocol {
        Protocol::Tcp => Packet::tcp(macs, question.source, question.destination, flags),
        // A datagram that is shorter than an ICMP error is refused without one.
        Protocol::Udp => Packet {
            payload: vec![0; 40],
            ..Packet::udp(macs, question.source, question.destination)
        },
    }
}

/// What the programs do with it.
fn actual(node: &mut Node, question: &Question, frame: &[u8]) -> Fate {
    let entries: &[Entry] = match question.ingress {
        PacketIngress::Uplink { has_xdp: true, .. } => &[Entry::Xdp, Entry::Uplink],
        PacketIngress::Uplink { has_xdp: false, .. } => &[Entry::Uplink],
        PacketIngress::Container { .. } => &[Entry::Container],
        PacketIngress::Host => &[Entry::Local],
    };
    let mut fate = Fate::Passed;
    for entry in entries {
        let output = node.feed(*entry, frame).unwrap();
        fate = match (*entry, output.verdict) {
            (Entry::Xdp, XDP_DROP) => Fate::Dropped,
            (Entry::Xdp, XDP_PASS) => continue,
            (Entry::Xdp, XDP_TX | XDP_REDIRECT) => sent(&output),
            (Entry::Xdp, other) => panic!("XDP's verdict {other}"),
            (_, TC_SHOT) => Fate::Dropped,
            (_, TC_UNSPEC) => Fate::Passed,
            (_, TC_REDIRECT) => sent(&output),
            (_, other) => panic!("tc's verdict {other}"),
        };
        break;
    }
    fate
}

fn sent(output: &Output) -> Fate {
    let frame = &output.frame;
    // A frame to the tunnel's port has the replica's ingress address in its Geneve option.
    if frame[23] == 17 && frame[36..38] == 6081_u16.to_be_bytes() {
        Fate::Forwarded(frame[57])
    } else if frame[30..34] == CONTAINER.octets() {
        Fate::Delivered(LOCAL)
    } else {
        Fate::Refused
    }
}

/// Asks and looks, again and again; returns how often there was each fate.
fn compare(balance: Balance, has_xdp: bool, seed: u64) -> BTreeMap<Fate, usize> {
    let mut fates = BTreeMap::new();
    on_a_node_with(None, 4096, |node| {
        serving(node, balance);
        let mut random = Random(seed);
        let interface = node.uplink;
        for number in 0..2000 {
            let destination = random.destination();
            let question = Question {
                ipv6_client: None,
                protocol: if destination.port() == DNS.port {
                    Protocol::Udp
                } else {
                    Protocol::Tcp
                },
                source: random.client(),
                destination,
                ingress: PacketIngress::Uplink { interface, has_xdp },
            };
            let explanation = explain(node, &question);
            assert_eq!(
                at_any_time(explain(node, &question)),
                at_any_time(explanation.clone()),
                "to ask has changed something"
            );
            let packet = packet(&question, &explanation);
            let actual = actual(node, &question, &packet.frame());
            assert_eq!(
                predicted(&explanation),
                actual,
                "packet {number}: {question:?}: {explanation:#?}"
            );
            *fates.entry(actual).or_default() += 1;
            answer(node, &question, actual);
            // Some clients are done.
            if random.below(8) == 0 && question.protocol == Protocol::Tcp {
                let flags = if random.below(2) == 0 { RST } else { FIN | ACK };
                let end = Packet::tcp(arriving(), question.source, question.destination, flags);
                actual_end(node, &end);
            }
        }
    });
    fates
}

/// Without what changes by itself from one second to the next.
fn at_any_time(mut explanation: Explanation) -> Explanation {
    if let Some(flow) = &mut explanation.flow {
        flow.idle_seconds = 0;
    }
    explanation
}

/// A replica that leaves connections unanswered would be passed over from some moment on.
fn answer(node: &mut Node, question: &Question, fate: Fate) {
    let (client, service) = (question.source, question.destination);
    match fate {
        _ if question.protocol == Protocol::Udp => {}
        Fate::Forwarded(replica) => {
            let answer = Packet::tcp(arriving(), service, client, SYN | ACK);
            node.xdp(&from_peer_about(replica, WEB, REPLY).around(&answer));
        }
        Fate::Delivered(_) => {
            let answer = Packet::tcp(out_of_container(), target(WEB), client, SYN | ACK);
            node.tc_container(&answer.frame());
        }
        Fate::Passed | Fate::Dropped | Fate::Refused => {}
    }
}

fn actual_end(node: &mut Node, end: &Packet) {
    if node.xdp(&end.frame()).verdict == XDP_PASS {
        node.tc_uplink(&end.frame());
    }
}

#[test]
fn it_agrees_with_the_programs_about_random_tuples() {
    let by = |algorithm| Balance {
        algorithm,
        ..Balance::default()
    };
    let with_affinity = Balance {
        affinity: Some(60),
        ..Balance::default()
    };
    let local_first = Balance {
        prefer_local: true,
        ..by(Algorithm::RoundRobin)
    };
    let everywhere = || (1..LOCAL).map(Fate::Forwarded).collect();
    let cases: [(Balance, Vec<Fate>); 4] = [
        (by(Algorithm::RoundRobin), everywhere()),
        (by(Algorithm::Maglev), everywhere()),
        (with_affinity, everywhere()),
        (local_first, Vec::new()),
    ];
    for (seed, (balance, elsewhere)) in (1..).zip(cases) {
        for has_xdp in [true, false] {
            let fates = compare(balance, has_xdp, seed);
            let all = [Fate::Passed, Fate::Dropped, Fate::Refused, Fate::Delivered(LOCAL)];
            for fate in all.iter().chain(&elsewhere) {
                let times = fates.get(fate).copied().unwrap_or_default();
                assert!(times > 20, "{balance:?}: {fate:?} only {times} times: {fates:?}");
            }
        }
    }
}

#[test]
fn it_says_by_what_each_decision_is_made() {
    on_a_node_with(None, 4096, |node| {
        serving(node, Balance::default());
        let interface = node.uplink;
        let ask = |node: &mut Node, client: &str, destination: SocketAddrV4| {
            let question = Question {
                ipv6_client: None,
                protocol: Protocol::Tcp,
                source: client.parse().unwrap(),
                destination,
                ingress: PacketIngress::Uplink {
                    interface,
                    has_xdp: true,
                },
            };
            explain(node, &question)
        };
        let client = "192.0.2.7:40000";
        let new = ask(node, client, frontend(WEB));
        assert_eq!((new.is_published, new.service, new.flow), (true, Some(WEB), None));
        assert_eq!(new.rules, Some(SourceVerdict::Accept));
        let choice = new.choice.unwrap();
        assert_eq!(
            (choice.how.as_str(), choice.is_forecast, choice.is_flooded),
            ("rotate", true, false)
        );
        assert_eq!(choice.slots[0].1, new.backend);
        let Outcome::Forwarded(way) = new.outcome else {
            panic!("{:?}", new.outcome);
        };
        assert_eq!(
            (way.peer, way.interface, way.is_direct),
            (PEER, Some(interface), false)
        );
        assert!((1400..1500).contains(&way.mtu), "{way:?}");

        // The connection is opened, to the replica that was forecast.
        let replica = node.connect(WEB, client.parse().unwrap());
        assert_eq!(Some(backend_key(WEB, replica)), new.backend);
        let known = ask(node, client, frontend(WEB));
        let flow = known.flow.unwrap();
        assert_eq!((flow.backend, flow.state), (new.backend, FlowState::Open));
        assert_eq!((known.choice, known.backend), (None, new.backend));

        let denied = ask(node, "192.0.3.7:40000", frontend(WEB));
        assert_eq!(denied.rules, Some(SourceVerdict::Drop));
        let reason = "source_denied".to_owned();
        assert_eq!(denied.outcome, Outcome::Dropped { reason });
        let unknown = ask(node, client, SocketAddrV4::new(NODE, 9201));
        assert_eq!((unknown.is_published, unknown.service), (false, None));
        assert_eq!(unknown.outcome, Outcome::Passed);
    });
}

#[test]
fn it_sees_what_containers_and_local_processes_send_where_the_programs_do() {
    on_a_node_with(None, 4096, |node| {
        serving(node, Balance::default());
        let interface = node.container;
        for number in 0..20 {
            let question = Question {
                ipv6_client: None,
                protocol: Protocol::Tcp,
                source: SocketAddrV4::new(CONTAINER, 41_000 + number),
                destination: frontend(WEB),
                ingress: PacketIngress::Container { interface },
            };
            let explanation = explain(node, &question);
            let frame = packet(&question, &explanation).frame();
            assert_eq!(
                predicted(&explanation),
                actual(node, &question, &frame),
                "{explanation:#?}"
            );
            assert!(
                explanation
                    .presented
                    .is_some_and(|presented| *presented.ip() == NODE)
            );

            let question = Question {
                ipv6_client: None,
                source: SocketAddrV4::new(NODE, 42_000 + number),
                ingress: PacketIngress::Host,
                ..question
            };
            let explanation = explain(node, &question);
            // As the socket hook redirects it.
            let redirected = Question {
                ipv6_client: None,
                destination: SocketAddrV4::new(SERVICE_ADDRESS, WEB.port),
                ..question
            };
            let frame = packet(&redirected, &explanation).frame();
            assert_eq!(
                predicted(&explanation),
                actual(node, &redirected, &frame),
                "{explanation:#?}"
            );
            assert_eq!(explanation.rules, None, "no rule is about local processes");
        }
    });
}
