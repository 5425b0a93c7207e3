//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! The checksum is the complement of the one's-complement sum of 16-bit words. The sum does not depend on the
//! byte order as long as all words have the same, so all sums here are over words as they are in memory. A
//! [`Difference`] is the sum of the new words and the complements of the old ones, which is what must be
//! added to a sum when the new words replace the old ones. The kernel's
//! `bpf_l4_csum_replace` takes the same number when its `size` is 0.

use crate::{
    abi::Ipv6Address,
    bytes::{Be16, Be32},
    headers::Ipv4,
};

/// The change of a one's-complement sum by the replacement of 16-bit words; not folded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Difference(u32);

impl Difference {
    /// No change.
    pub const NONE: Self = Self(0);

    /// Replaces a 16-bit word.
    #[inline(always)]
    pub const fn replace16(self, old: Be16, new: Be16) -> Self {
        Self(self.0 + (!old.raw()) as u32 + new.raw() as u32)
    }

    /// Replaces a 32-bit word.
    #[inline(always)]
    pub const fn replace32(self, old: Be32, new: Be32) -> Self {
        let (old, new) = (!old.raw(), new.raw());
        Self(self.0 + (old & 0xffff) + (old >> 16) + (new & 0xffff) + (new >> 16))
    }

    /// Replaces an IPv6 address. An IPv4 address sums as one with zeros behind it.
    #[inline(always)]
    pub const fn replace128(self, old: &Ipv6Address, new: &Ipv6Address) -> Self {
        self.replace32(old.0[0], new.0[0])
            .replace32(old.0[1], new.0[1])
            .replace32(old.0[2], new.0[2])
            .replace32(old.0[3], new.0[3])
    }

    /// The number that `bpf_l4_csum_replace` takes.
    #[inline(always)]
    pub const fn raw(self) -> u32 {
        self.0
    }

    /// Whether nothing was replaced.
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// Both changes.
    #[inline(always)]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}

/// The checksum after a change of the words it covers.
#[inline(always)]
pub const fn updated(checksum: Be16, difference: Difference) -> Be16 {
    finish((!checksum.raw()) as u32 + fold(difference.0) as u32)
}

/// Complements and folds a sum into a checksum.
#[inline(always)]
pub const fn finish(sum: u32) -> Be16 {
    Be16::from_raw(!fold(sum))
}

/// Folds a 32-bit one's-complement sum into 16 bits.
#[inline(always)]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// The sum of a 32-bit word's halves.
#[inline(always)]
pub const fn sum32(word: Be32) -> u32 {
    (word.raw() & 0xffff) + (word.raw() >> 16)
}

/// The checksum of an IPv4 header without options, its checksum field taken as zero.
#[inline(always)]
pub fn ipv4(header: &Ipv4) -> Be16 {
    let first = u16::from_ne_bytes([header.version_and_length, header.service_type]);
    let fifth = u16::from_ne_bytes([header.time_to_live, header.protocol]);
    let (length, identification, fragment) = (header.total_length, header.identification, header.fragment);
    finish(
        u32::from(first)
            + u32::from(length.raw())
            + u32::from(identification.raw())
            + u32::from(fragment.raw())
            + u32::from(fifth)
            + sum32(header.source)
            + sum32(header.destination),
    )
}

/// The sum of the pseudo header of TCP and UDP over IPv4. `length` is that of the L4 header and payload.
#[inline(always)]
pub fn pseudo_header(source: Be32, destination: Be32, protocol: u8, length: u16) -> u32 {
    sum32(source)
        + sum32(destination)
        + u32::from(Be16::new(u16::from(protocol)).raw())
        + u32::from(Be16::new(length).raw())
}

/// The sum of bytes as 16-bit words, an odd last byte padded with zero. For fixed, small inputs.
#[inline(always)]
pub fn sum_bytes<const N: usize>(bytes: &[u8; N]) -> u32 {
    let mut sum = 0;
    let mut index = 0;
    while index + 1 < N {
        sum += u32::from(u16::from_ne_bytes([bytes[index], bytes[index + 1]]));
        index += 2;
    }
    if N % 2 == 1 {
        sum += u32::from(u16::from_ne_bytes([bytes[N - 1], 0]));
    }
    sum
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The sum by RFC 1071's definition, word by word in network order.
    fn reference(words: &[u16]) -> u16 {
        let mut sum: u64 = words.iter().copied().map(u64::from).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn the_example_of_rfc_1071_sums_to_ddf2() {
        let sum = sum_bytes(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(Be16::from_raw(fold(sum)).get(), 0xddf2);
        assert_eq!(finish(sum).get(), 0x220d);
    }

    #[test]
    fn an_odd_last_byte_is_padded_behind() {
        assert_eq!(
            fold(sum_bytes(&[0x12, 0x34, 0x56])),
            fold(sum_bytes(&[0x12, 0x34, 0x56, 0]))
        );
        assert_eq!(sum_bytes::<0>(&[]), 0);
    }

    #[test]
    fn the_example_of_rfc_1624_updates_to_zero() {
        let difference = Difference::NONE.replace16(Be16::new(0x5555), Be16::new(0x3285));
        assert_eq!(updated(Be16::new(0xdd2f), difference).get(), 0);
    }

    #[test]
    fn no_change_changes_nothing() {
        assert!(Difference::NONE.is_none());
        for checksum in [0, 1, 0x1234, 0xfffe] {
            assert_eq!(updated(Be16::new(checksum), Difference::NONE).get(), checksum);
            let same = Difference::NONE.replace32(Be32::new(0xfffe_0001), Be32::new(0xfffe_0001));
            assert_eq!(updated(Be16::new(checksum), same).get(), checksum);
        }
    }

    #[test]
    fn folding_leaves_no_carry_behind() {
        assert_eq!(fold(0xffff_ffff), 0xffff);
        assert_eq!(fold(0x0001_ffff), 1);
        assert_eq!(fold(0xffff), 0xffff);
        assert_eq!(fold(0), 0);
    }

    #[test]
    fn an_ipv4_header_has_the_published_checksum() {
        let mut header = Ipv4 {
            version_and_length: 0x45,
            service_type: 0,
            total_length: Be16::new(0x73),
            identification: Be16::new(0),
            fragment: Be16::new(0x4000),
            time_to_live: 64,
            protocol: 17,
            checksum: Be16::new(0),
            source: Be32::new(0xc0a8_0001),
            destination: Be32::new(0xc0a8_00c7),
        };
        assert_eq!(ipv4(&header).get(), 0xb861);
        header.checksum = Be16::new(0x1234);
        assert_eq!(
            ipv4(&header).get(),
            0xb861,
            "the checksum field itself does not count"
        );
    }

    fn word() -> impl Strategy<Value = u16> {
        prop_oneof![Just(0), Just(0xffff), Just(1), Just(0xfffe), any::<u16>()]
    }

    proptest! {
        /// Like every header, with at least one word that is not zero: version and length.
        #[test]
        fn an_update_equals_a_full_computation(
            mut words in proptest::collection::vec(word(), 4..40),
            new16 in word(),
            new32 in (word(), word()),
        ) {
            words[0] = 0x4500;
            let old = Be16::new(reference(&words));
            let new = u32::from(new32.0) << 16 | u32::from(new32.1);
            let old32 = u32::from(words[2]) << 16 | u32::from(words[3]);
            let difference = Difference::NONE
                .replace16(Be16::new(words[1]), Be16::new(new16))
                .replace32(Be32::new(old32), Be32::new(new));
            (words[1], words[2], words[3]) = (new16, new32.0, new32.1);
            prop_assert_eq!(updated(old, difference).get(), reference(&words));
        }

        #[test]
        fn two_updates_at_once_equal_one_after_the_other(
            checksum in word(), words in proptest::array::uniform4(word()),
        ) {
            let [a, b, c, d] = words.map(Be16::new);
            let first = Difference::NONE.replace16(a, b);
            let second = Difference::NONE.replace16(c, d);
            let checksum = Be16::new(checksum);
            let once = updated(checksum, first.and(second));
            let twice = updated(updated(checksum, first), second);
            // Zero has two forms in one's complement.
            prop_assert!(once == twice || fold(once.raw().into()) % 0xffff == fold(twice.raw().into()) % 0xffff);
        }

        #[test]
        fn the_pseudo_header_sums_as_its_words(
            source in any::<u32>(), destination in any::<u32>(), protocol in any::<u8>(), length in any::<u16>(),
        ) {
            let sum = pseudo_header(Be32::new(source), Be32::new(destination), protocol, length);
            let words = [
                (source >> 16) as u16, source as u16, (destination >> 16) as u16, destination as u16,
                u16::from(protocol), length,
            ];
            prop_assert_eq!(finish(sum).get(), reference(&words));
        }

        #[test]
        fn bytes_sum_as_words(bytes in proptest::array::uniform8(any::<u8>())) {
            let words: Vec<u16> = bytes.chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect();
            prop_assert_eq!(finish(sum_bytes(&bytes)).get(), reference(&words));
        }
    }
}
