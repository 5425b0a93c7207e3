//! The keys by which nodes know that a packet in the tunnel is a node's.

use core::fmt;

/// Keys that are valid at a time: the one that is sent, and the one before it.
pub const KEY_COUNT: usize = 2;

/// The keys that this node accepts, one entry.
///
/// While it holds none, it can tell no packet from another, and accepts those without a key and with any.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Keys {
    /// Their bytes as they are on the wire; zero where there is none.
    pub values: [u64; KEY_COUNT],
    /// Their public names, by which nodes tell each other what they hold.
    pub ids: [u32; KEY_COUNT],
}

impl Keys {
    /// Whether this node holds no key.
    #[inline(always)]
    pub const fn is_empty(&self) -> bool {
        self.values[0] == 0 && self.values[1] == 0
    }

    /// Whether a packet's key is one of these.
    #[inline(always)]
    pub const fn contain(&self, key: u64) -> bool {
        key != 0 && (key == self.values[0] || key == self.values[1])
    }

    /// The key that [`super::NextHop::key`] names; 0 for none.
    #[inline(always)]
    pub const fn named(&self, number: u16) -> u64 {
        match number {
            1 => self.values[0],
            2 => self.values[1],
            _ => 0,
        }
    }
}

/// Without the keys, which must not reach a log.
impl fmt::Debug for Keys {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Keys")
            .field("ids", &self.ids)
            .finish_non_exhaustive()
    }
}

const _: () = assert!(size_of::<Keys>() == 24);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_one_of_those_held_and_never_zero() {
        let keys = Keys {
            values: [7, 0],
            ids: [1, 0],
        };
        assert!(keys.contain(7) && !keys.contain(8) && !keys.contain(0));
        assert!(!keys.is_empty() && Keys::default().is_empty());
        assert_eq!([0, 1, 2, 3].map(|number| keys.named(number)), [0, 7, 0, 0]);
    }

    #[test]
    fn no_key_is_printed() {
        let keys = Keys {
            values: [0x1234_5678, 0x8765_4321],
            ids: [11, 22],
        };
        let text = format!("{keys:?} {keys:#?}");
        assert!(text.contains("11"), "{text}");
        for value in keys.values {
            assert!(!text.contains(&value.to_string()), "{text}");
        }
    }
}
