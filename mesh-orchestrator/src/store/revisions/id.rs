//! Identifiers of revisions. Plain data; depends on nothing of ours.

use std::{fmt, str::FromStr};

use crate::by_text::by_text;

/// Identifies one revision of one object, as CouchDB's `_rev` does: `3-9f2c04ab`. The second part is a hash
/// of the content, so that an identifier is never reused, not even when an object is removed and created
/// again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RevisionId {
    /// 1 for the first.
    pub number: u64,
    pub(super) digest: u32,
}

/// A string that is not a revision identifier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a revision identifier; one looks like 3-9f2c04ab")]
pub struct InvalidRevision(String);

impl fmt::Display for RevisionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}-{:08x}", self.number, self.digest)
    }
}

impl FromStr for RevisionId {
    type Err = InvalidRevision;

    fn from_str(text: &str) -> Result<Self, InvalidRevision> {
        let parsed = text.split_once('-').and_then(|(number, digest)| {
            (digest.len() == 8).then_some(())?;
            Some(Self {
                number: number.parse().ok()?,
                digest: u32::from_str_radix(digest, 16).ok()?,
            })
        });
        parsed.ok_or_else(|| InvalidRevision(text.to_owned()))
    }
}

by_text!(RevisionId, "^[0-9]+-[0-9a-f]{8}$", "One revision of one object.");

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_revision_reads_as_it_is_written(number: u64, digest: u32) {
            let revision = RevisionId { number, digest };
            prop_assert_eq!(revision.to_string().parse(), Ok(revision));
        }
    }

    #[test]
    fn other_strings_are_not_revisions() {
        for wrong in [
            "",
            "3",
            "3-",
            "-9f2c04ab",
            "3-9f2c04",
            "x-9f2c04ab",
            "3-9f2c04abc",
        ] {
            assert!(wrong.parse::<RevisionId>().is_err(), "{wrong:?}");
        }
    }
}
