//! Probes and their answers.

use std::net::SocketAddrV4;

use super::*;
use crate::{
    abi::Hook,
    testing::{GENEVE_PORT, TestFrame, TestTables, VNI, at, decide, node_address, run, udp, view},
    verdict::{Action, Verdict},
};

const HOOKS: [Hook; 2] = [Hook::Xdp, Hook::TcUplink];
const NONCE: [u8; 8] = [1, 2, 3, 4, 5, 6, 7, 8];
/// Offset of the option's type in the payload.
const KIND: usize = 10;

fn payload(kind: GeneveKind) -> Vec<u8> {
    let mut bytes = vec![3, 0x40, 8, 0];
    bytes.extend(VNI.to_be_bytes());
    bytes.extend([0xff, 0x5a, kind as u8, 2]);
    bytes.extend(NONCE);
    bytes
}

fn mesh_port(node: u8) -> SocketAddrV4 {
    SocketAddrV4::new(node_address(node), GENEVE_PORT)
}

fn probe(padding: usize) -> TestFrame {
    let mut bytes = payload(GeneveKind::Probe);
    bytes.resize(bytes.len() + padding, 0xaa);
    udp(mesh_port(1), mesh_port(2), &bytes)
}

#[track_caller]
fn check_answered(probe: &TestFrame) {
    for hook in HOOKS {
        let mut frame = probe.clone();
        assert_eq!(run(&TestTables::node(2), hook, &mut frame), Action::Answer);
        // `view` asserts the checksums.
        let (before, after) = (view(probe), view(&frame));
        assert_eq!((after.source, after.destination), (mesh_port(2), mesh_port(1)));
        let mut expected = before.payload;
        expected[KIND] = GeneveKind::ProbeAnswer as u8;
        assert_eq!(after.payload, expected, "only the kind changes");
        assert_eq!(frame.bytes[..6], probe.bytes[6..12]);
        assert_eq!(frame.bytes[6..12], probe.bytes[..6]);
    }
}

#[test]
fn a_peers_probe_is_turned_round() {
    check_answered(&probe(0));
}

#[test]
fn a_padded_probe_comes_back_whole() {
    check_answered(&probe(1400));
}

#[test]
fn a_probe_may_have_no_checksum_or_an_unfinished_one() {
    check_answered(&probe(0).without_checksum());
    check_answered(&probe(0).unfinished());
}

#[test]
fn an_answer_is_left_to_the_agent_and_never_answered() {
    let answer = udp(mesh_port(1), mesh_port(2), &payload(GeneveKind::ProbeAnswer));
    let tables = TestTables::node(2);
    for hook in HOOKS {
        let decision = decide(&answer, &tables, hook).verdict();
        assert!(matches!(decision, Verdict::Pass), "{decision:?}");
    }
}

#[test]
fn a_stranger_gets_no_answer() {
    let tables = TestTables::node(2);
    for kind in [GeneveKind::Probe, GeneveKind::ProbeAnswer] {
        let stranger = udp(at("10.0.0.99:6081"), mesh_port(2), &payload(kind));
        for hook in HOOKS {
            let decision = decide(&stranger, &tables, hook).verdict();
            assert!(
                matches!(decision, Verdict::Drop(DropReason::UnknownPeer)),
                "{decision:?}"
            );
        }
    }
}

#[test]
fn an_answer_goes_to_no_other_port_than_the_meshs() {
    let tables = TestTables::node(2);
    let other = SocketAddrV4::new(node_address(1), 53);
    let frame = udp(other, mesh_port(2), &payload(GeneveKind::Probe));
    for hook in HOOKS {
        let decision = decide(&frame, &tables, hook).verdict();
        assert!(
            matches!(decision, Verdict::Drop(DropReason::BadGeneve)),
            "{decision:?}"
        );
    }
}

#[test]
fn a_probe_that_is_cut_short_is_dropped() {
    let tables = TestTables::node(2);
    let whole = payload(GeneveKind::Probe);
    for length in 8..whole.len() {
        let frame = udp(mesh_port(1), mesh_port(2), &whole[..length]);
        for hook in HOOKS {
            let decision = decide(&frame, &tables, hook).verdict();
            assert!(
                matches!(decision, Verdict::Drop(DropReason::Truncated)),
                "{length}: {decision:?}"
            );
        }
    }
}
