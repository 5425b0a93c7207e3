//! Arbitrary frames, at every hook: nothing panics, what passes is unchanged, and what is sent has correct IP
//! headers.

use proptest::prelude::*;

use super::*;
use crate::{
    headers::OUTER_LENGTH,
    testing::{fix_ip_checksum, ip_checksum_is_right},
};

/// The other replica; its number is its own, as both are in one service.
const THERE: Replica = Replica::on(2, 2);
const INNER: usize = ETHERNET_LENGTH + OUTER_LENGTH;

/// A node with flows of every origin.
fn busy_node() -> TestTables {
    let replicas = [LOCAL, THERE];
    let tables = TestTables::node(1)
        .publish(PROTOCOL_TCP, 9200, &replicas)
        .publish(PROTOCOL_UDP, 9200, &replicas);
    for (hook, frame) in valid_frames() {
        run(&tables, hook, &mut frame.routed(CLIENT_ROUTE));
    }
    tables
}

/// Valid frames, to be corrupted, and the hooks that they arrive at.
fn valid_frames() -> Vec<(Hook, TestFrame)> {
    let service = SocketAddrV4::new(SERVICE_ADDRESS, 9200);
    let options = Segment {
        flags: SYN,
        options: &[1, 1, 1, 2, 4, 0x05, 0xb4, 0],
        ..Segment::default()
    };
    let mut frames = vec![
        (Hook::TcUplink, tcp(at(CLIENT), at(FRONTEND), options.clone())),
        (
            Hook::TcUplink,
            tcp(at("192.0.2.8:40000"), at(FRONTEND), options.clone()),
        ),
        (Hook::TcUplink, udp(at(CLIENT), at(FRONTEND), b"hello")),
        (Hook::TcUplink, udp(at("192.0.2.8:40000"), at(FRONTEND), b"hello")),
        (Hook::TcMesh0, tcp(at("10.0.0.1:40000"), service, SYN)),
        (Hook::TcMesh0, tcp(at("10.0.0.1:40001"), service, SYN)),
        (Hook::TcContainer, tcp(at("172.18.0.9:40000"), at(FRONTEND), SYN)),
        (Hook::TcContainer, tcp(at("172.18.0.9:40001"), at(FRONTEND), SYN)),
        (Hook::TcContainer, tcp(at("172.18.0.1:80"), at(CLIENT), SYN | ACK)),
        (Hook::TcContainer, udp(at("172.18.0.1:80"), at(CLIENT), b"hello")),
    ];
    // From node 2: a client's packet for the replica here, and replies of the one there.
    let replicas = [LOCAL, THERE];
    let peer = TestTables::node(2)
        .publish(PROTOCOL_TCP, 9200, &replicas)
        .publish(PROTOCOL_UDP, 9200, &replicas);
    let mut frame = tcp(at(CLIENT), at("10.0.0.2:9200"), SYN);
    assert_eq!(run(&peer, Hook::TcUplink, &mut frame), TO_PEER);
    frames.push((Hook::TcUplink, frame));
    let entry_node = node(1, THERE);
    let mut frame = tcp(at("192.0.2.8:40000"), at(FRONTEND), options);
    assert_eq!(run(&entry_node, Hook::TcUplink, &mut frame), TO_PEER);
    let mut frame = frame.received();
    run(&peer, Hook::TcUplink, &mut frame);
    let mut reply = reply_to(&view(&frame), SYN | ACK, b"");
    assert_eq!(run(&peer, Hook::TcContainer, &mut reply), TO_PEER);
    frames.push((Hook::TcUplink, reply.received()));
    frames
}

/// Runs a frame, and checks what holds for any.
fn check(tables: &TestTables, hook: Hook, frame: &TestFrame) -> Result<(), TestCaseError> {
    let outer_is_right = ip_checksum_is_right(&frame.bytes, ETHERNET_LENGTH);
    let inner_is_right = ip_checksum_is_right(&frame.bytes, INNER);
    let mut after = frame.clone();
    match run(tables, hook, &mut after) {
        Action::Pass => prop_assert_eq!(&after.bytes, &frame.bytes, "passed, but written to"),
        Action::Drop | Action::Again => {}
        Action::Split { .. } => prop_assert!(false, "the program that is called splits it"),
        Action::Exceptional => prop_assert!(false, "the program that is called does not call another"),
        // Made by us.
        Action::Answer => prop_assert!(ip_checksum_is_right(&after.bytes, ETHERNET_LENGTH)),
        action @ (Action::Transmit { .. }
        | Action::IntoContainer { .. }
        | Action::IntoHost { .. }
        | Action::Route { .. }) => {
            let grown = after.bytes.len() as i64 - frame.bytes.len() as i64;
            prop_assert!(
                grown == 0 || grown.unsigned_abs() == OUTER_LENGTH as u64,
                "{:?}",
                action
            );
            let right = ip_checksum_is_right(&after.bytes, ETHERNET_LENGTH);
            let expected = match grown {
                0 => outer_is_right,
                48 => {
                    let inner = ip_checksum_is_right(&after.bytes, INNER);
                    prop_assert!(inner || !outer_is_right, "{:?}", action);
                    true
                }
                _ => inner_is_right,
            };
            prop_assert!(right || !expected, "{:?}", action);
        }
    }
    Ok(())
}

#[test]
fn the_frames_to_be_corrupted_are_served() {
    let tables = busy_node();
    assert_eq!(tables.all_drops(), 0);
    for (hook, frame) in valid_frames() {
        let action = run(&tables, hook, &mut frame.routed(CLIENT_ROUTE));
        assert!(
            !matches!(action, Action::Pass | Action::Drop),
            "at {hook:?}: {action:?}"
        );
    }
}

/// `cargo xtask fuzz` tries more.
fn config() -> ProptestConfig {
    let cases = std::env::var("MESH_FUZZ_CASES").ok();
    ProptestConfig::with_cases(cases.map_or(2000, |cases| cases.parse().expect("a number")))
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn arbitrary_bytes_do_no_harm(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        is_ipv4 in any::<bool>(),
    ) {
        let mut frame = TestFrame::new(bytes).routed(CLIENT_ROUTE);
        if is_ipv4 && frame.bytes.len() > ETHERNET_LENGTH {
            frame.bytes[12..15].copy_from_slice(&[0x08, 0x00, 0x45]);
        }
        let tables = busy_node();
        for hook in Hook::ALL {
            check(&tables, hook, &frame)?;
        }
    }

    #[test]
    fn spoilt_frames_do_no_harm(
        which in any::<prop::sample::Index>(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        length in prop::option::weighted(0.3, any::<prop::sample::Index>()),
        fixed in any::<bool>(),
        way in prop_oneof![
            Just(CLIENT_ROUTE), Just(Route::Unresolved { interface: 4 }), Just(Route::Unreachable)
        ],
        aggregated in any::<bool>(),
        elastic in prop::bool::weighted(0.9),
    ) {
        let mut frames = valid_frames();
        let (_, mut frame) = frames.swap_remove(which.index(frames.len()));
        for (offset, byte) in changes {
            // The headers are the interesting part.
            let offset = offset.index(frame.bytes.len().min(130));
            frame.bytes[offset] = byte;
        }
        if let Some(length) = length {
            frame.bytes.truncate(length.index(frame.bytes.len()));
        }
        if fixed {
            fix_ip_checksum(&mut frame.bytes, ETHERNET_LENGTH);
            if frame.bytes.len() > INNER {
                fix_ip_checksum(&mut frame.bytes, INNER);
            }
        }
        if aggregated {
            (frame.segments, frame.segment_size) = (2, 1400);
        }
        frame.elastic = elastic;
        let frame = frame.routed(way);
        let tables = busy_node();
        for hook in Hook::ALL {
            check(&tables, hook, &frame)?;
        }
    }
}
