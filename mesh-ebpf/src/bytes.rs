//! Integers in network byte order as types of their own, so that no other order can be stored in a header or
//! a map by mistake.

use core::{fmt, mem::MaybeUninit};

/// A type without padding for which every bit pattern is valid.
///
/// # Safety
/// The implementor must be `repr(C)` or `repr(transparent)`, have alignment 1 or be read and written
/// unaligned only, contain no padding and accept every bit pattern.
pub unsafe trait Plain: Copy {}

// SAFETY: bytes have neither padding nor invalid patterns.
unsafe impl<const N: usize> Plain for [u8; N] {}

/// A type of whole, aligned 8 bytes of which all zeros are a value.
///
/// # Safety
/// The implementor's size and alignment are multiples of 8, and all zeros are a valid value.
pub unsafe trait Zeros {}

/// Makes a value that is all zeros, 8 bytes at a time. The compiler would call `memset`, which is a loop over
/// single bytes in eBPF: several instructions for each, and as many steps of the verifier.
#[inline(always)]
pub fn zeroed<T: Zeros>(memory: &mut MaybeUninit<T>) -> &mut T {
    let integers = memory.as_mut_ptr().cast::<u64>();
    // SAFETY: as many as the type has, aligned, and all zeros are a valid value (`Zeros`).
    unsafe {
        for index in 0..size_of::<T>() / size_of::<u64>() {
            integers.add(index).write_volatile(0);
        }
        memory.assume_init_mut()
    }
}

/// A 16-bit integer in network byte order.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Be16(u16);

impl Be16 {
    /// From host byte order.
    #[inline(always)]
    pub const fn new(value: u16) -> Self {
        Self(value.to_be())
    }

    /// To host byte order.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }

    /// The 16 bits as they lie in memory, for one's-complement sums, which do not depend on order.
    #[inline(always)]
    pub const fn raw(self) -> u16 {
        self.0
    }

    /// From the 16 bits as they lie in memory.
    #[inline(always)]
    pub const fn from_raw(raw: u16) -> Self {
        Self(raw)
    }
}

// SAFETY: transparent over u16; packet access is unaligned.
unsafe impl Plain for Be16 {}

impl fmt::Debug for Be16 {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.get(), formatter)
    }
}

/// A 32-bit integer, or an IPv4 address, in network byte order.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Be32(u32);

impl Be32 {
    /// From host byte order.
    #[inline(always)]
    pub const fn new(value: u32) -> Self {
        Self(value.to_be())
    }

    /// To host byte order.
    #[inline(always)]
    pub const fn get(self) -> u32 {
        u32::from_be(self.0)
    }

    /// The 32 bits as they lie in memory.
    #[inline(always)]
    pub const fn raw(self) -> u32 {
        self.0
    }

    /// From the 32 bits as they lie in memory.
    #[inline(always)]
    pub const fn from_raw(raw: u32) -> Self {
        Self(raw)
    }

    /// Whether it is all zeros (the unspecified address).
    #[inline(always)]
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }
}

// SAFETY: transparent over u32; packet access is unaligned.
unsafe impl Plain for Be32 {}

impl From<core::net::Ipv4Addr> for Be32 {
    fn from(address: core::net::Ipv4Addr) -> Self {
        Self(u32::from_ne_bytes(address.octets()))
    }
}

impl From<Be32> for core::net::Ipv4Addr {
    fn from(address: Be32) -> Self {
        Self::from(address.0.to_ne_bytes())
    }
}

impl fmt::Debug for Be32 {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&core::net::Ipv4Addr::from(*self), formatter)
    }
}
