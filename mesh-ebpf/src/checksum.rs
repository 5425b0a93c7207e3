//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624). Imports `bytes` and
//! `headers`.
//!
//! The checksum is the complement of the one's-complement sum of 16-bit words. That sum does not care
//! in which byte order it is computed, as long as every word is in the same, so all sums here are over
//! words as they lie in memory. A [`Difference`] is the sum of new words and complemented old ones: what
//! must be added to a sum when the old words are replaced by the new. The kernel's
//! `bpf_l4_csum_replace` takes the same number when its `size` is 0.

use crate::{
    bytes::{Be16, Be32},
    headers::Ipv4,
};

/// What a replacement of words changes in a one's-complement sum; not folded.
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
