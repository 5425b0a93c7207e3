//! Encapsulated packets that are dropped: malformed ones, and those of strangers.

use super::*;

#[test]
fn a_header_that_is_not_as_the_mesh_makes_it_is_bad() {
    let frame = encapsulated(&node(1), SYN);
    for (offset, bytes) in [
        (0, &[0x43][..]),   // version 1
        (0, &[0x02]),       // too short for the option
        (0, &[0x04]),       // another option
        (1, &[0x00]),       // no critical option
        (1, &[0xc0]),       // control
        (2, &[0x65, 0x58]), // Ethernet inside
        (8, &[0xff, 0x5b]), // another class
        (10, &[0x01]),      // not critical
        (10, &[0x80]),      // no kind
        (10, &[0x8f]),      // an unknown kind
        (11, &[0x01]),      // a shorter option
        (11, &[0x22]),      // reserved bits
    ] {
        check_dropped(
            &node(2),
            &with(frame.clone(), GENEVE + offset, bytes),
            DropReason::BadGeneve,
        );
    }
}

#[test]
fn a_stranger_is_dropped() {
    let mut frame = with(encapsulated(&node(1), SYN), OUTER + 12, &[10, 0, 0, 77]);
    fix_ip_checksum(&mut frame.bytes, OUTER);
    check_dropped(&node(2), &frame, DropReason::UnknownPeer);
}

#[test]
fn a_peer_that_has_left_is_a_stranger() {
    let mut tables = node(2);
    tables.peers.remove(&node_address(1).into());
    check_dropped(&tables, &encapsulated(&node(1), SYN), DropReason::UnknownPeer);
}

#[test]
fn a_frame_cut_anywhere_is_dropped() {
    let whole = encapsulated(&node(1), SYN);
    let tables = node(2);
    for length in OUTER + 28..whole.bytes.len() {
        let mut frame = whole.clone();
        frame.bytes.truncate(length);
        // Not even a packet: the kernel drops it.
        check_passes(&tables, &frame);
        // As a packet that really is so short.
        let mut frame = with(frame, OUTER + 2, &((length - OUTER) as u16).to_be_bytes());
        fix_ip_checksum(&mut frame.bytes, OUTER);
        let expect = if length < INNER {
            DropReason::Truncated
        } else {
            DropReason::BadGeneve
        };
        check_dropped(&tables, &frame, expect);
    }
    assert_eq!(tables.flow_count(), 0);
}

#[test]
fn an_outer_packet_shorter_than_its_headers_is_truncated() {
    let frame = with(encapsulated(&node(1), SYN), OUTER + 2, &47_u16.to_be_bytes());
    check_dropped(&node(2), &frame, DropReason::Truncated);
}

#[test]
fn a_packet_inside_that_is_none_is_bad() {
    let frame = encapsulated(&node(1), SYN);
    for (offset, bytes) in [
        (0, &[0x65][..]),   // version
        (0, &[0x46]),       // options
        (2, &[0xff, 0xff]), // length
        (20 + 12, &[0x10]), // TCP header length
    ] {
        check_dropped(
            &node(2),
            &with(frame.clone(), INNER + offset, bytes),
            DropReason::BadGeneve,
        );
    }
}

#[test]
fn a_packet_inside_with_an_address_that_no_wire_carries_is_bad() {
    let frame = encapsulated(&node(1), SYN);
    let at = |offset: usize, address: [u8; 4]| {
        let mut frame = with(frame.clone(), INNER + offset, &address);
        fix_ip_checksum(&mut frame.bytes, INNER);
        frame
    };
    for address in [
        [127, 0, 0, 1],
        [127, 255, 255, 255],
        [0, 0, 0, 0],
        [0, 1, 2, 3],
        [224, 0, 0, 1],
        [239, 255, 255, 255],
        [255, 255, 255, 255],
    ] {
        for offset in [12, 16] {
            check_dropped(&node(2), &at(offset, address), DropReason::BadGeneve);
        }
    }
    // The first and last of others; tasks' addresses of the orchestrator; the service address.
    for address in [
        [1, 0, 0, 1],
        [126, 255, 255, 255],
        [128, 0, 0, 1],
        [223, 255, 255, 255],
        [240, 0, 0, 1],
        [255, 255, 255, 254],
        [169, 254, 96, 1],
    ] {
        for offset in [12, 16] {
            assert_eq!(delivered_to(&node(2), &at(offset, address)), 1);
        }
    }
}
