//! Hashes that spread what they are given.

/// Lets every bit affect all others (MurmurHash3's finalizer).
#[inline(always)]
pub fn mix(mut bits: u32) -> u32 {
    bits ^= bits >> 16;
    bits = bits.wrapping_mul(0x85eb_ca6b);
    bits ^= bits >> 13;
    bits = bits.wrapping_mul(0xc2b2_ae35);
    bits ^ bits >> 16
}
