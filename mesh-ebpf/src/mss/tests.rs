//! Options as senders and mischief lay them out. The checksum is compared with a full computation each
//! time (`view`).

use proptest::prelude::*;

use super::*;
use crate::testing::{SYN, Segment, TestFrame, at, tcp, view};

const MTU: u16 = 1452;
const CLAMPED: [u8; 2] = 1412_u16.to_be_bytes();

fn syn(options: &[u8]) -> TestFrame {
    let segment = Segment {
        flags: SYN,
        sequence: 77,
        options,
        ..Segment::default()
    };
    tcp(at("192.0.2.7:40000"), at("10.0.0.1:9200"), segment)
}

/// Clamps a SYN of the given options, and compares all of it but the options with what it was.
fn check(options: &[u8], expect: &[u8]) {
    for unfinished in [false, true] {
        let mut frame = syn(options);
        if unfinished {
            frame = frame.unfinished();
        }
        let mut expected = view(&frame);
        clamp(&mut frame, MTU).expect("a SYN");
        expected.options[..expect.len()].copy_from_slice(expect);
        assert_eq!(view(&frame), expected, "of {options:?}, unfinished: {unfinished}");
    }
}

fn check_unchanged(options: &[u8]) {
    check(options, options);
}

#[test]
fn the_first_option_is_lowered() {
    check(&[2, 4, 0x05, 0xb4], &[2, 4, CLAMPED[0], CLAMPED[1]]);
}

#[test]
fn an_option_behind_others_is_lowered() {
    // Window scale, no-operation, "SACK permitted", timestamps, then MSS.
    let before = [3, 3, 7, 1, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0];
    check(
        &[&before[..], &[2, 4, 0xff, 0xff]].concat(),
        &[&before[..], &[2, 4], &CLAMPED].concat(),
    );
}

#[test]
fn an_option_at_an_odd_offset_is_lowered() {
    for nothings in 1..6 {
        let before = vec![1; nothings];
        check(
            &[&before[..], &[2, 4, 0x23, 0x45, 1]].concat(),
            &[&before[..], &[2, 4], &CLAMPED].concat(),
        );
    }
}

#[test]
fn an_option_at_the_very_end_of_forty_bytes_is_lowered() {
    let before = [254, 36].into_iter().chain([0x5a; 34]).collect::<Vec<_>>();
    check(
        &[&before[..], &[2, 4, 0x23, 0x45]].concat(),
        &[&before[..], &[2, 4], &CLAMPED].concat(),
    );
}

#[test]
fn a_value_small_enough_stays() {
    check_unchanged(&[2, 4, CLAMPED[0], CLAMPED[1]]);
    check_unchanged(&[2, 4, 0, 0]);
    check_unchanged(&[2, 4, 0x02, 0x18]);
}

#[test]
fn a_value_one_too_large_is_lowered() {
    check(
        &[2, 4, CLAMPED[0], CLAMPED[1] + 1],
        &[2, 4, CLAMPED[0], CLAMPED[1]],
    );
}

#[test]
fn a_syn_without_the_option_stays() {
    check_unchanged(&[]);
    check_unchanged(&[1, 3, 3, 7]);
    check_unchanged(&[4, 2, 1, 1]);
}

#[test]
fn nothing_behind_the_end_of_the_list_is_touched() {
    check_unchanged(&[0, 0, 0, 0, 2, 4, 0xff, 0xff]);
}

#[test]
fn garbage_lengths_end_the_search() {
    check_unchanged(&[3, 0, 0, 0, 2, 4, 0xff, 0xff]);
    check_unchanged(&[3, 1, 0, 0, 2, 4, 0xff, 0xff]);
    check_unchanged(&[3, 255, 0, 0, 2, 4, 0xff, 0xff]);
    // Lengths that no option can have, congruent to small ones modulo 64 and 256.
    check_unchanged(&[3, 68, 0, 0, 2, 4, 0xff, 0xff]);
    check_unchanged(&[3, 132, 0, 0, 2, 4, 0xff, 0xff]);
    check_unchanged(&[2, 0, 0xff, 0xff]);
}

#[test]
fn an_option_of_the_right_kind_but_another_length_is_skipped() {
    check(
        &[2, 3, 0xff, 2, 4, 0xff, 0xff],
        &[2, 3, 0xff, 2, 4, CLAMPED[0], CLAMPED[1]],
    );
}

#[test]
fn an_option_cut_off_by_the_header_is_left() {
    check_unchanged(&[1, 2, 4, 0xff]);
    // The header ends before the value, the payload begins with what looks like it.
    let segment = Segment {
        flags: SYN,
        options: &[1, 1, 2, 4],
        payload: &[0xff; 4],
        ..Segment::default()
    };
    let mut frame = tcp(at("192.0.2.7:40000"), at("10.0.0.1:9200"), segment);
    let before = frame.bytes.clone();
    clamp(&mut frame, MTU).expect("a SYN");
    assert_eq!(frame.bytes, before);
}

#[test]
fn a_frame_that_ends_within_its_options_is_left() {
    let whole = syn(&[1, 1, 1, 1, 2, 4, 0xff, 0xff]);
    for length in 0..whole.bytes.len() {
        let mut frame = whole.clone();
        frame.bytes.truncate(length);
        let before = frame.bytes.clone();
        clamp(&mut frame, MTU).expect("nothing to do");
        assert_eq!(frame.bytes, before, "cut at {length}");
    }
}

#[test]
fn a_tiny_mtu_asks_for_no_negative_size() {
    let mut frame = syn(&[2, 4, 0x05, 0xb4]);
    clamp(&mut frame, 10).expect("a SYN");
    assert_eq!(view(&frame).options, [2, 4, 0, 0]);
}

/// The offset of the MSS option's value, by RFC 9293, 3.1.
fn value_offset(options: &[u8]) -> Option<usize> {
    let mut offset = 0;
    loop {
        match *options.get(offset)? {
            OPTION_END => return None,
            OPTION_NOTHING => offset += 1,
            kind => {
                let length = usize::from(*options.get(offset + 1)?);
                if length < 2 || offset + length > options.len() {
                    return None;
                }
                if kind == OPTION_MSS && length == 4 {
                    return Some(offset + 2);
                }
                offset += length;
            }
        }
    }
}

fn byte() -> impl Strategy<Value = u8> {
    prop_oneof![3 => 0..8_u8, 1 => Just(1), 1 => Just(2), 1 => Just(4), 1 => any::<u8>()]
}

proptest! {
    #[test]
    fn nothing_but_the_value_and_the_checksum_ever_changes(
        mut options in proptest::collection::vec(byte(), 0..=40),
        mtu in 40..2000_u16,
        unfinished in any::<bool>(),
    ) {
        options.truncate(options.len() / 4 * 4);
        let mut frame = syn(&options);
        if unfinished {
            frame = frame.unfinished();
        }
        let before = frame.bytes.clone();
        clamp(&mut frame, mtu).expect("a SYN");
        view(&frame);
        let checksum = L4_OFFSET + TCP_CHECKSUM_OFFSET;
        let value = value_offset(&options).map(|offset| L4_OFFSET + TCP_LENGTH + offset);
        for (offset, (old, new)) in before.iter().zip(&frame.bytes).enumerate() {
            let may = (checksum..checksum + 2).contains(&offset)
                || value.is_some_and(|value| (value..value + 2).contains(&offset));
            prop_assert!(may || old == new, "byte {} of {:?}", offset, options);
        }
    }
}
