//! Packets in fragments, put together again where they arrive.

use std::net::SocketAddrV4;

use proptest::prelude::*;

use super::*;
use crate::{
    exceptional,
    headers::{OUTER_LENGTH, PROTOCOL_UDP},
    testing::{
        CLIENT_ROUTE, INNER_MTU, Replica, SERVICE_ADDRESS, TestFrame, TestTables, at, fix_ip_checksum,
        ip_checksum_is_right, run, run_layer3, run_until_gone, udp, view,
    },
};

mod ipv6;

const CLIENT: &str = "192.0.2.7:40000";
const FRONTEND: &str = "10.0.0.1:9200";
const CONTAINER: &str = "172.18.0.1:80";
const IP: usize = ETHERNET_LENGTH;

/// Node 1 is the entry node; the replica is on the given node.
fn nodes(replica: u8) -> (TestTables, TestTables) {
    let node = |number| TestTables::node(number).publish(PROTOCOL_UDP, 9200, &[Replica::on(replica, 1)]);
    (node(1), node(2))
}

fn payload(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 7 + index / 251) as u8).collect()
}

/// A datagram as its sender's kernel cuts it for an MTU of so many bytes.
fn fragments(source: SocketAddrV4, destination: SocketAddrV4, length: usize, mtu: usize) -> Vec<TestFrame> {
    let whole = udp(source, destination, &payload(length)).bytes;
    let (headers, rest) = whole.split_at(IP + IPV4_LENGTH);
    let step = (mtu - IPV4_LENGTH) & !7;
    let count = rest.len().div_ceil(step);
    rest.chunks(step)
        .enumerate()
        .map(|(index, part)| {
            let mut bytes = [headers, part].concat();
            let more = if index + 1 < count { 0x2000 } else { 0 };
            let fragment = (index * step / 8) as u16 | more;
            bytes[IP + 2..IP + 4].copy_from_slice(&((part.len() + IPV4_LENGTH) as u16).to_be_bytes());
            bytes[IP + 4..IP + 6].copy_from_slice(&0x4d53_u16.to_be_bytes());
            bytes[IP + 6..IP + 8].copy_from_slice(&fragment.to_be_bytes());
            fix_ip_checksum(&mut bytes, IP);
            TestFrame::new(bytes).routed(CLIENT_ROUTE)
        })
        .collect()
}

/// The datagram that its receiver puts together, with every checksum checked, or nothing if parts are
/// missing.
fn together(frames: &[TestFrame]) -> Option<TestFrame> {
    let mut parts = Vec::new();
    for frame in frames {
        assert!(ip_checksum_is_right(&frame.bytes, IP));
        let word = |offset: usize| {
            usize::from(frame.bytes[IP + offset]) << 8 | usize::from(frame.bytes[IP + offset + 1])
        };
        let (length, fragment) = (word(2), word(6));
        assert!(fragment & 0x4000 == 0);
        parts.push((
            (fragment & 0x1fff) * 8,
            fragment & 0x2000 != 0,
            &frame.bytes[IP + IPV4_LENGTH..IP + length],
        ));
    }
    parts.sort();
    let mut bytes = frames.first()?.bytes[..IP + IPV4_LENGTH].to_vec();
    for (offset, _, part) in &parts {
        if bytes.len() != IP + IPV4_LENGTH + offset {
            return None;
        }
        bytes.extend_from_slice(part);
    }
    if parts.last()?.1 {
        return None;
    }
    let length = (bytes.len() - IP) as u16;
    bytes[IP + 2..IP + 4].copy_from_slice(&length.to_be_bytes());
    bytes[IP + 6..IP + 8].fill(0);
    fix_ip_checksum(&mut bytes, IP);
    Some(TestFrame::new(bytes))
}

#[test]
fn what_is_to_be_split_is_dropped_if_its_flow_is_another_ones_by_now() {
    let (entry_node, backend_node) = nodes(2);
    let mut frame = udp(at(CLIENT), at(FRONTEND), b"x");
    run(&entry_node, Hook::TcUplink, &mut frame);
    run(&backend_node, Hook::TcUplink, &mut frame);
    let whole = udp(at(CLIENT), at(FRONTEND), &payload(1500));
    let first = fragments(at(CLIENT), at(FRONTEND), 3000, 1500).swap_remove(0);
    for (count, mut frame) in [(1, whole), (2, first)] {
        let action = exceptional::run(&mut frame, &backend_node, Hook::TcUplink);
        assert!(matches!(action, Action::Drop), "{action:?}");
        assert_eq!(backend_node.drops(Hook::TcUplink, DropReason::UnknownFlow), count);
    }
}

/// What leaves a hook by `action` when these frames arrive; nothing else leaves it but what passes.
#[track_caller]
fn through(tables: &TestTables, hook: Hook, frames: Vec<TestFrame>, action: Action) -> Vec<TestFrame> {
    let mut left = Vec::new();
    for frame in frames {
        for (how, frame) in run_until_gone(tables, hook, frame) {
            if how == action {
                left.push(frame);
            } else {
                assert_eq!(how, Action::Pass);
            }
        }
    }
    assert_eq!(tables.all_drops(), 0);
    left
}

const INTO_CONTAINER: Action = Action::IntoContainer { interface: 101 };
const TO_PEER: Action = Action::Transmit { interface: 2 };
const TO_CLIENT: Action = Action::Transmit { interface: 3 };

/// What the other node receives; each of them fits into the tunnel.
fn received(frames: &[TestFrame]) -> Vec<TestFrame> {
    for frame in frames {
        assert!(
            frame.bytes.len() <= IP + OUTER_LENGTH + usize::from(INNER_MTU),
            "{}",
            frame.bytes.len()
        );
    }
    frames
        .iter()
        .map(|frame| frame.received().routed(CLIENT_ROUTE))
        .collect()
}

/// A client's datagram arrives in fragments at the container, and the same back.
#[track_caller]
fn check(replica: u8, length: usize, order: impl Fn(&mut Vec<TestFrame>)) {
    let (entry, other) = nodes(replica);
    let mut sent = fragments(at(CLIENT), at(FRONTEND), length, 1500);
    order(&mut sent);
    let there = if replica == 1 {
        through(&entry, Hook::TcUplink, sent, INTO_CONTAINER)
    } else {
        let encapsulated = through(&entry, Hook::TcUplink, sent, TO_PEER);
        through(&other, Hook::TcUplink, received(&encapsulated), INTO_CONTAINER)
    };
    let got = view(&together(&there).expect("all fragments"));
    assert_eq!((got.source, got.destination), (at(CLIENT), at(CONTAINER)));
    assert_eq!(got.payload, payload(length));

    let answer = fragments(got.destination, got.source, length, 1500);
    let back = if replica == 1 {
        through(&entry, Hook::TcContainer, answer, TO_CLIENT)
    } else {
        let encapsulated = through(&other, Hook::TcContainer, answer, TO_PEER);
        through(&entry, Hook::TcUplink, received(&encapsulated), TO_CLIENT)
    };
    let got = view(&together(&back).expect("all fragments"));
    assert_eq!((got.source, got.destination), (at(FRONTEND), at(CLIENT)));
    assert_eq!(got.payload, payload(length));
}

#[test]
fn datagrams_of_any_size_arrive_both_ways() {
    for replica in [1, 2] {
        for length in [1473, 1500, 2952, 8192, 65_507] {
            check(replica, length, |_| {});
        }
    }
}

#[test]
fn the_last_fragment_may_come_first() {
    for replica in [1, 2] {
        for length in [1473, 8192, 65_507] {
            check(replica, length, |frames| frames.reverse());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn fragments_may_come_in_any_order(
        length in 1473..20_000_usize,
        replica in 1..=2_u8,
        keys in proptest::collection::vec(any::<u32>(), 20),
    ) {
        check(replica, length, |frames| {
            let mut keyed: Vec<_> = frames.drain(..).enumerate().collect();
            keyed.sort_by_key(|(index, _)| keys[*index]);
            frames.extend(keyed.into_iter().map(|(_, frame)| frame));
        });
    }
}

#[test]
fn a_local_process_sends_fragments_too() {
    let (entry, other) = nodes(2);
    let service = SocketAddrV4::new(SERVICE_ADDRESS, 9200);
    let sent = fragments(at("10.0.0.1:40000"), service, 9000, usize::from(INNER_MTU));
    let encapsulated = through(&entry, Hook::TcMesh0, sent, TO_PEER);
    let there = through(&other, Hook::TcUplink, received(&encapsulated), INTO_CONTAINER);
    let got = view(&together(&there).expect("all fragments"));
    assert_eq!((got.source, got.payload), (at("10.0.0.1:40000"), payload(9000)));
}

#[test]
fn a_layer_3_device_brings_fragments_in_any_order() {
    let (entry, _) = nodes(1);
    let mut sent = fragments(at(CLIENT), at(FRONTEND), 4000, 1400);
    sent.reverse();
    let mut arriving: std::collections::VecDeque<_> = sent.into();
    let mut there = Vec::new();
    while let Some(mut packet) = arriving.pop_front() {
        packet
            .bytes
            .drain(..if packet.bytes[12..14] == [8, 0] { IP } else { 0 });
        let action = run_layer3(&entry, Hook::TcUplink, &mut packet);
        arriving.extend(packet.again.drain(..));
        match action {
            Action::IntoContainer { .. } => there.push(packet),
            action => assert_eq!(action, Action::Pass),
        }
    }
    let got = view(&together(&there).expect("all fragments"));
    assert_eq!((got.destination, got.payload), (at(CONTAINER), payload(4000)));
}

#[test]
fn others_fragments_pass_unchanged_in_any_order() {
    for (source, destination, hook) in [
        (CLIENT, "10.0.0.1:53", Hook::TcUplink),
        (CLIENT, "10.0.0.77:9200", Hook::TcUplink),
        ("172.18.0.1:81", CLIENT, Hook::TcContainer),
    ] {
        let (entry, _) = nodes(1);
        for backwards in [false, true] {
            let mut sent = fragments(at(source), at(destination), 8000, 1500);
            if backwards {
                sent.reverse();
            }
            for frame in sent {
                let left = run_until_gone(&entry, hook, frame.clone());
                assert_eq!(left.len(), 1, "{destination}");
                assert_eq!(
                    (left[0].0, &left[0].1.bytes),
                    (Action::Pass, &frame.bytes),
                    "{destination}"
                );
            }
        }
        assert_eq!(entry.all_drops(), 0);
    }
}

#[test]
fn fragments_whose_first_one_never_comes_are_kept_in_bounds() {
    let (entry, _) = nodes(1);
    let sent = fragments(at(CLIENT), at(FRONTEND), 65_507, 300);
    let count = sent.len();
    assert!(count > 200);
    let left = through(&entry, Hook::TcUplink, sent[1..].to_vec(), INTO_CONTAINER);
    assert!(left.is_empty());
    assert_eq!(entry.held_count() as u64, HELD_PER_DATAGRAM);
}

#[test]
fn a_number_that_is_used_again_later_is_of_another_packet() {
    let (entry, _) = nodes(1);
    let sent = fragments(at(CLIENT), at(FRONTEND), 3000, 1500);
    assert_eq!(
        through(&entry, Hook::TcUplink, sent.clone(), INTO_CONTAINER).len(),
        3
    );
    entry.clock.set(LIFETIME);
    let left = through(&entry, Hook::TcUplink, sent[1..].to_vec(), INTO_CONTAINER);
    assert!(left.is_empty(), "it passes, and waits");
    assert_eq!(entry.held_count(), 2);
}

#[test]
fn a_peers_later_fragment_without_its_first_is_dropped_and_counted() {
    let (entry, other) = nodes(2);
    let sent = fragments(at(CLIENT), at(FRONTEND), 3000, 1500);
    let encapsulated = through(&entry, Hook::TcUplink, sent, TO_PEER);
    let mut later = encapsulated[1].received();
    assert_eq!(
        crate::testing::run(&other, Hook::TcUplink, &mut later),
        Action::Drop
    );
    assert_eq!(other.drops(Hook::TcUplink, DropReason::Fragment), 1);
}

#[test]
fn a_datagram_is_split_if_its_sender_allows_it() {
    let (entry, other) = nodes(2);
    for (frame, is_split) in [
        (udp(at(CLIENT), at(FRONTEND), &payload(1472)), true),
        // The hardware would finish the checksum of each part.
        (udp(at(CLIENT), at(FRONTEND), &payload(1472)).unfinished(), false),
    ] {
        let mut frame = frame;
        frame.bytes[IP + 6] = 0;
        fix_ip_checksum(&mut frame.bytes, IP);
        if is_split {
            let encapsulated = through(&entry, Hook::TcUplink, vec![frame], TO_PEER);
            assert_eq!(encapsulated.len(), 2);
            let there = through(&other, Hook::TcUplink, received(&encapsulated), INTO_CONTAINER);
            assert_eq!(
                view(&together(&there).expect("all fragments")).payload,
                payload(1472)
            );
        } else {
            assert_eq!(run_until_gone(&entry, Hook::TcUplink, frame)[0].0, Action::Answer);
        }
    }
}

#[test]
fn fragments_that_must_not_be_split_are_answered() {
    let (entry, _) = nodes(2);
    let mut sent = fragments(at(CLIENT), at(FRONTEND), 3000, 1500);
    sent[0].bytes[IP + 6] |= 0x40;
    fix_ip_checksum(&mut sent[0].bytes, IP);
    let left = run_until_gone(&entry, Hook::TcUplink, sent.remove(0));
    assert_eq!(left[0].0, Action::Answer);
    assert_eq!(entry.drops(Hook::TcUplink, DropReason::TooBig), 1);
}

#[test]
fn a_forged_carrier_passes_unchanged() {
    let (entry, _) = nodes(1);
    let sent = fragments(at(CLIENT), at(FRONTEND), 8000, 1500);
    assert_eq!(
        through(&entry, Hook::TcUplink, sent[1..].to_vec(), INTO_CONTAINER).len(),
        0
    );
    let mut forged = sent[1].clone();
    forged.bytes[IP + 6..IP + 8].copy_from_slice(&CARRIER.to_be_bytes());
    fix_ip_checksum(&mut forged.bytes, IP);
    let left = run_until_gone(&entry, Hook::TcUplink, forged.clone());
    assert_eq!((left[0].0, &left[0].1.bytes), (Action::Pass, &forged.bytes));
    assert_eq!(entry.all_drops(), 0);
}

#[test]
fn a_fragment_with_the_numbers_of_a_replicas_answer_passes_at_an_uplink() {
    let (entry, _) = nodes(1);
    let mut question = udp(at(CLIENT), at(FRONTEND), b"query");
    crate::testing::run(&entry, Hook::TcUplink, &mut question);
    let answer = fragments(at(CONTAINER), at(CLIENT), 3000, 1500);
    through(&entry, Hook::TcContainer, answer.clone(), TO_CLIENT);
    let mut elsewhere = answer[1].clone();
    assert_eq!(
        crate::testing::run(&entry, Hook::TcUplink, &mut elsewhere),
        Action::Pass
    );
    assert_eq!(elsewhere.bytes, answer[1].bytes);
}

/// A fragment of the same packet that begins elsewhere.
fn moved(fragment: &TestFrame, offset: u16) -> TestFrame {
    let mut moved = fragment.clone();
    moved.bytes[IP + 6..IP + 8].copy_from_slice(&((offset / 8) | 0x2000).to_be_bytes());
    fix_ip_checksum(&mut moved.bytes, IP);
    moved
}

#[test]
fn a_fragment_that_overlaps_the_first_one_is_dropped_in_any_order() {
    for replica in [1, 2] {
        let action = if replica == 1 { INTO_CONTAINER } else { TO_PEER };
        // Into the tunnel, 1,424 bytes of the first one go on as such.
        for offset in [8, 16, 1416] {
            for comes_first in [false, true] {
                let (entry, _) = nodes(replica);
                let sent = fragments(at(CLIENT), at(FRONTEND), 3000, 1500);
                let overlapping = moved(&sent[1], offset);
                let mut arriving = sent.clone();
                arriving.insert(usize::from(!comes_first), overlapping);
                let left: Vec<_> = (arriving.into_iter())
                    .flat_map(|frame| run_until_gone(&entry, Hook::TcUplink, frame))
                    .filter(|(how, _)| *how == action)
                    .collect();
                let whole = if replica == 1 { 3 } else { 5 };
                assert_eq!(left.len(), whole, "{replica} {offset} {comes_first}");
                assert_eq!(entry.drops(Hook::TcUplink, DropReason::FragmentOverlap), 1);
                assert_eq!(entry.all_drops(), 1);
            }
        }
    }
}

#[test]
fn a_peers_fragment_that_overlaps_the_first_one_is_dropped() {
    let (entry, other) = nodes(2);
    let sent = fragments(at(CLIENT), at(FRONTEND), 3000, 1400);
    let encapsulated = through(&entry, Hook::TcUplink, sent, TO_PEER);
    let mut arriving = received(&encapsulated);
    let later = IP + OUTER_LENGTH + 6;
    arriving[1].bytes[later..later + 2].copy_from_slice(&0x2001_u16.to_be_bytes());
    fix_ip_checksum(&mut arriving[1].bytes, IP + OUTER_LENGTH);
    for mut frame in arriving {
        run(&other, Hook::TcUplink, &mut frame);
    }
    assert_eq!(other.drops(Hook::TcUplink, DropReason::FragmentOverlap), 1);
}

#[test]
fn others_fragments_may_overlap() {
    let (entry, _) = nodes(1);
    let sent = fragments(at(CLIENT), at("10.0.0.1:53"), 3000, 1500);
    for frame in [sent[0].clone(), moved(&sent[1], 8)] {
        assert_eq!(run_until_gone(&entry, Hook::TcUplink, frame)[0].0, Action::Pass);
    }
    assert_eq!(entry.all_drops(), 0);
}
