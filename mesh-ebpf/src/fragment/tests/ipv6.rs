//! Fragments from and to IPv6 clients.

use super::*;
use crate::{
    abi::MappedClient,
    headers::{IPV6_FRAGMENT, IPV6_LENGTH},
    mapped_tables::MappedTables,
    testing::{at_v6, udp_v6},
    to_ipv4,
};

const IPV6_CLIENT: &str = "[2001:db8::99]:40000";
const IPV6_FRONTEND: &str = "[2001:db8::1]:9200";

/// The same as [`fragments`] from an IPv6 client.
fn fragments_v6(source: &str, destination: &str, length: usize) -> Vec<TestFrame> {
    let whole = udp_v6(at_v6(source), at_v6(destination), &payload(length)).bytes;
    let (headers, rest) = whole.split_at(IP + IPV6_LENGTH);
    let step = 1448;
    let count = rest.len().div_ceil(step);
    rest.chunks(step)
        .enumerate()
        .map(|(index, part)| {
            let field = (index * step) as u16 | u16::from(index + 1 < count);
            let [high, low] = field.to_be_bytes();
            let extension = [PROTOCOL_UDP, 0, high, low, 0x12, 0x34, 0x4d, 0x53];
            let mut bytes = [headers, &extension, part].concat();
            bytes[IP + 4..IP + 6].copy_from_slice(&((part.len() + 8) as u16).to_be_bytes());
            bytes[IP + 6] = IPV6_FRAGMENT;
            TestFrame::new(bytes).routed(CLIENT_ROUTE)
        })
        .collect()
}

fn nodes_v6(replica: u8) -> (TestTables, TestTables) {
    let (entry, other) = nodes(replica);
    let own = "2001:db8::1".parse().unwrap();
    (entry.with_ipv6(own, "252.1.2.3".parse().unwrap()), other)
}

/// What the entry node sends on of an IPv6 client's fragments. What it leaves to the kernel is as it came.
fn through_v6(entry: &TestTables, sent: Vec<TestFrame>, action: Action) -> Vec<TestFrame> {
    let mut left = Vec::new();
    for mut frame in sent {
        let before = frame.bytes.clone();
        match to_ipv4::run(&mut frame, entry, Hook::TcUplink) {
            to_ipv4::Next::Pass => assert_eq!(frame.bytes, before),
            to_ipv4::Next::Drop => panic!("it is dropped"),
            _ => left.extend(through(entry, Hook::TcUplink, vec![frame], action)),
        }
    }
    left
}

#[test]
fn an_ipv6_clients_fragments_arrive_in_any_order() {
    for replica in [1, 2] {
        for (length, is_reversed) in [(1453, false), (8192, false), (1453, true), (60_000, true)] {
            let (entry, other) = nodes_v6(replica);
            let action = if replica == 1 { INTO_CONTAINER } else { TO_PEER };
            let mut sent = fragments_v6(IPV6_CLIENT, IPV6_FRONTEND, length);
            if is_reversed {
                sent.reverse();
            }
            let mut there = through_v6(&entry, sent, action);
            if replica == 2 {
                there = through(&other, Hook::TcUplink, received(&there), INTO_CONTAINER);
            }
            let got = view(&together(&there).expect("all fragments"));
            assert!(is_mapped_client((*got.source.ip()).into()), "{got:?}");
            assert_eq!((got.source.port(), got.destination), (40_000, at(CONTAINER)));
            assert_eq!(got.payload, payload(length));
        }
    }
}

#[test]
fn an_unknown_ipv6_clients_fragment_follows_no_packet_of_another_client() {
    let (entry, _) = nodes_v6(1);
    let mut sent = fragments_v6(IPV6_CLIENT, IPV6_FRONTEND, 4000);
    let client = at_v6(IPV6_CLIENT).ip().to_owned();
    let another = MappedClient {
        address: "2001:db8::98".parse::<std::net::Ipv6Addr>().unwrap().into(),
        interface: 2,
        padding: 0,
    };
    MappedTables::map_client(&entry, &another, crate::mapped::preferred(&client.into()));
    let first = sent.remove(0);
    assert!(through_v6(&entry, sent, INTO_CONTAINER).is_empty());
    assert_eq!(
        through_v6(&entry, vec![first], INTO_CONTAINER).len(),
        1,
        "nothing was kept"
    );
}

#[test]
fn answers_in_fragments_leave_room_for_the_header_that_says_so_to_an_ipv6_client() {
    for replica in [1, 2] {
        let (entry, other) = nodes_v6(replica);
        let there = through_v6(
            &entry,
            vec![udp_v6(at_v6(IPV6_CLIENT), at_v6(IPV6_FRONTEND), b"?")],
            if replica == 1 { INTO_CONTAINER } else { TO_PEER },
        );
        let question = match replica {
            1 => view(&there[0]),
            _ => view(&through(&other, Hook::TcUplink, received(&there), INTO_CONTAINER)[0]),
        };
        for (mtu, needed) in [(1396, 1404), (1388, 1396)] {
            // A way that is known is not looked up again within a moment.
            entry.clock.set(entry.clock.get() + (1 << 28));
            let mut answer = fragments(question.destination, question.source, 2000, mtu).swap_remove(0);
            let hook = if replica == 1 {
                Hook::TcContainer
            } else {
                Hook::TcUplink
            };
            if replica == 2 {
                run(&other, Hook::TcContainer, &mut answer);
                answer = answer.received();
            }
            run(&entry, hook, &mut answer);
            let (_, _, asked) = answer.asked.get().expect("a way is looked up");
            assert_eq!(asked, needed, "an answer of {mtu} bytes by {replica}");
        }
    }
}

#[test]
fn an_ipv6_packet_of_one_fragment_is_a_whole_one() {
    let (entry, _) = nodes_v6(1);
    let sent = fragments_v6(IPV6_CLIENT, IPV6_FRONTEND, 100);
    assert_eq!(sent.len(), 1);
    let there = through_v6(&entry, sent, INTO_CONTAINER);
    assert_eq!(there[0].bytes[IP + 6] & 0x3f, 0, "no fragment");
    assert_eq!(view(&there[0]).payload, payload(100));
}

#[test]
fn ipv6_fragments_of_others_pass_unchanged_and_note_no_client() {
    let (entry, _) = nodes_v6(1);
    for sent in [
        fragments_v6(IPV6_CLIENT, "[2001:db8::1]:9201", 4000),
        fragments_v6(IPV6_CLIENT, "[2001:db8::2]:9200", 4000),
        fragments_v6("[fe80::9]:40000", IPV6_FRONTEND, 4000),
        fragments_v6(IPV6_CLIENT, IPV6_FRONTEND, 4000).split_off(1),
    ] {
        assert!(through_v6(&entry, sent, INTO_CONTAINER).is_empty());
        assert_eq!(entry.mapped_clients(), 0);
    }
}

#[test]
fn an_ipv6_fragment_that_is_longer_than_its_frame_is_not_sent_on() {
    let (entry, _) = nodes_v6(1);
    let sent = fragments_v6(IPV6_CLIENT, IPV6_FRONTEND, 4000);
    let mut first = sent[0].clone();
    first.bytes.truncate(200);
    assert_eq!(
        to_ipv4::run(&mut first, &entry, Hook::TcUplink),
        to_ipv4::Next::Drop
    );
    let (entry, _) = nodes_v6(1);
    through_v6(&entry, vec![sent[0].clone()], INTO_CONTAINER);
    // It would end behind the longest packet, and look like a carrier.
    let mut last = sent[1].clone();
    last.bytes[IP + IPV6_LENGTH + 2..IP + IPV6_LENGTH + 4].copy_from_slice(&[0xff, 0xf9]);
    assert_eq!(
        to_ipv4::run(&mut last, &entry, Hook::TcUplink),
        to_ipv4::Next::Pass
    );
    let mut later = sent[1].clone();
    later.bytes.truncate(200);
    assert_eq!(
        to_ipv4::run(&mut later, &entry, Hook::TcUplink),
        to_ipv4::Next::Pass
    );
}

#[test]
fn fragments_for_an_ipv6_client_leave_room_for_the_header_that_says_so() {
    let (entry, _) = nodes(1);
    for (client, most) in [("248.1.2.3:40000", 1472), ("192.0.2.7:40000", 1480)] {
        let mut frame = udp(at("252.1.2.3:5353"), at(client), &payload(1472));
        frame.bytes[IP + 6] = 0;
        fix_ip_checksum(&mut frame.bytes, IP);
        assert_eq!(split(&mut frame, &entry, 1480), Ok(Action::Again));
        let first = &frame.again[0];
        let length = first.bytes.len() - IP;
        assert!((most - 8..=most).contains(&length), "{client}: {length}");
        assert!(together(&[first.clone(), frame.clone()]).is_some());
    }
}
