//! Writing and reading nfnetlink's attributes: numbers are big-endian, texts end in a zero byte. Knows no
//! message.

use netlink_packet_core::{NLA_F_NESTED, NlasIterator};

/// A sequence of attributes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes(Vec<u8>);

impl Attributes {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        // The length of an attribute is a 16-bit number. Everything written here is far shorter: names are
        // bounded, and elements are sent in portions.
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(crate) fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub(crate) fn byte(self, kind: u16, value: u8) -> Self {
        self.bytes(kind, &[value])
    }

    pub(crate) fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(crate) fn long(self, kind: u16, value: u64) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(crate) fn nested(self, kind: u16, value: Self) -> Self {
        self.bytes(kind | NLA_F_NESTED, &value.0)
    }

    /// Appends all items of a list, each with the same kind.
    pub(crate) fn list(self, kind: u16, values: impl IntoIterator<Item = Self>) -> Self {
        values
            .into_iter()
            .fold(self, |attributes, value| attributes.nested(kind, value))
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// The value of the first attribute of a kind.
pub(crate) fn find(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    all(attributes, kind).next()
}

/// The values of all attributes of a kind.
pub(crate) fn all(attributes: &[u8], kind: u16) -> impl Iterator<Item = &[u8]> {
    let mut rest = attributes;
    // The crate's iterator borrows its attributes for as long as it lives, hence the offsets.
    std::iter::from_fn(move || {
        loop {
            let attribute = NlasIterator::new(rest).next()?.ok()?;
            let (found, length) = (attribute.kind(), 4 + attribute.value_length());
            let value = rest.get(4..length)?;
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            if found == kind {
                return Some(value);
            }
        }
    })
}

/// A text without its zero byte.
pub(crate) fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_end_matches('\0').to_owned()
}

/// A 64-bit number.
pub(crate) fn long(value: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(value.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let inner = Attributes::new().long(1, 7).text(2, "mesh");
        let bytes = Attributes::new()
            .byte(1, 9)
            .list(3, [inner.clone(), inner])
            .number(4, 0x0102_0304)
            .into_bytes();
        assert_eq!(find(&bytes, 1), Some(&[9][..]));
        assert_eq!(find(&bytes, 4), Some(&[1, 2, 3, 4][..]));
        assert_eq!(find(&bytes, 5), None);
        let lists: Vec<&[u8]> = all(&bytes, 3).collect();
        assert_eq!(lists.len(), 2);
        assert_eq!(find(lists[1], 1).and_then(long), Some(7));
        assert_eq!(find(lists[1], 2).map(text).as_deref(), Some("mesh"));
    }

    #[test]
    fn a_malformed_attribute_ends_the_list() {
        for bytes in [&[][..], &[0; 3], &[0; 8], &[255; 8], &[9, 0, 1, 0, 1]] {
            assert_eq!(find(bytes, 1), None, "{bytes:?}");
        }
    }
}
