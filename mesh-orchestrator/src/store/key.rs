//! Keys such as `/services/<id>`, and the prefixes by which they are listed and watched. Plain data; depends
//! on nothing of ours.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize};

/// The longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 512;

/// The name of one stored object: two or more segments, each starting with a slash.
///
/// Keys are ordered by their bytes, as in every store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Key(String);

/// A string that cannot be a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    /// Not of the form `/kind/name`.
    #[error("the key {0:?} must be two or more segments such as /services/web, none of them empty")]
    Shape(String),
    /// A character that is not allowed in a key.
    #[error(
        "the key {key:?} contains {character:?}; allowed are ASCII letters, digits and the characters . _ - : @ + ="
    )]
    Character {
        /// The whole string.
        key: String,
        /// What is not allowed.
        character: char,
    },
    /// Longer than [`MAX_KEY_BYTES`].
    #[error("a key of {0} bytes is too long; the limit is {MAX_KEY_BYTES}")]
    TooLong(usize),
}

impl Key {
    /// A key from its segments, without the slashes: `Key::new(["services", id])`.
    ///
    /// # Errors
    /// When a segment is empty or has a character that no key may have, or there are fewer than two.
    pub fn new<'a>(segments: impl IntoIterator<Item = &'a str>) -> Result<Self, InvalidKey> {
        let mut text = String::new();
        for segment in segments {
            text.push('/');
            // A slash would make two segments of one, so that a name could refer to another kind of object.
            if let Some(character) = segment.chars().find(|character| !is_allowed(*character)) {
                return Err(InvalidKey::Character {
                    key: segment.to_owned(),
                    character,
                });
            }
            text.push_str(segment);
        }
        text.parse()
    }

    /// The whole key, with its slashes.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The segments, without the slashes.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.0.split('/').skip(1)
    }

    /// The last segment: the object's own name within its kind.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }
}

fn is_allowed(character: char) -> bool {
    character.is_ascii_alphanumeric() || "._-:@+=".contains(character)
}

impl FromStr for Key {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        if text.len() > MAX_KEY_BYTES {
            return Err(InvalidKey::TooLong(text.len()));
        }
        let shape = || InvalidKey::Shape(text.to_owned());
        let rest = text.strip_prefix('/').ok_or_else(shape)?;
        if !rest.contains('/') || rest.split('/').any(str::is_empty) {
            return Err(shape());
        }
        match rest
            .chars()
            .find(|character| *character != '/' && !is_allowed(*character))
        {
            Some(character) => Err(InvalidKey::Character {
                key: text.to_owned(),
                character,
            }),
            None => Ok(Self(text.to_owned())),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// A prefix of keys, in whole segments.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix(String);

impl Prefix {
    /// Every key.
    #[must_use]
    pub fn everything() -> Self {
        Self("/".to_owned())
    }

    /// All keys that share all but the last segment with this one.
    pub(super) fn around(key: &Key) -> Self {
        let end = key.0.rfind('/').map_or(0, |slash| slash + 1);
        Self(key.0[..end].to_owned())
    }

    /// All keys below constant segments, which are known to be valid: `/ephemeral/nodes/`.
    pub(super) fn of_ours(path: &'static str) -> Self {
        Self(path.to_owned())
    }

    /// All keys below these segments: `Prefix::new(["services"])` has `/services/web` but neither
    /// `/services-old/web` nor `/services` itself.
    ///
    /// # Errors
    /// When a segment is empty or has a character that no key may have.
    pub fn new<'a>(segments: impl IntoIterator<Item = &'a str>) -> Result<Self, InvalidKey> {
        let mut text = "/".to_owned();
        for segment in segments {
            if segment.is_empty() {
                return Err(InvalidKey::Shape(text));
            }
            if let Some(character) = segment.chars().find(|character| !is_allowed(*character)) {
                return Err(InvalidKey::Character {
                    key: segment.to_owned(),
                    character,
                });
            }
            text.push_str(segment);
            text.push('/');
        }
        Ok(Self(text))
    }

    /// The string that every key below it starts with; ends with a slash.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a key is below it.
    #[must_use]
    pub fn contains(&self, key: &Key) -> bool {
        key.0.starts_with(&self.0)
    }

    /// The first string after all keys below it.
    #[must_use]
    pub fn end(&self) -> String {
        // The last character is always a slash, and '0' is the next one.
        let mut end = self.0.clone();
        end.pop();
        end.push('0');
        end
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_key_is_two_or_more_segments_of_allowed_characters() {
        assert_eq!(Key::new(["services", "web"]).unwrap().as_str(), "/services/web");
        assert_eq!("/a/b/c".parse::<Key>().unwrap().name(), "c");
        for wrong in [
            "",
            "/",
            "/services",
            "services/web",
            "/services/",
            "//web",
            "/a/b c",
            "/a/ü",
        ] {
            assert!(wrong.parse::<Key>().is_err(), "{wrong:?}");
        }
        assert!(matches!(
            Key::new(["services", &"x".repeat(600)]),
            Err(InvalidKey::TooLong(_))
        ));
    }

    #[test]
    fn a_name_cannot_refer_to_another_kind() {
        assert!(Key::new(["services", "../secrets/x"]).is_err());
        assert!(Prefix::new(["services/"]).is_err());
    }

    #[test]
    fn a_prefix_contains_whole_segments_only() {
        let prefix = Prefix::new(["services"]).unwrap();
        assert!(prefix.contains(&"/services/web".parse().unwrap()));
        assert!(!prefix.contains(&"/services-old/web".parse().unwrap()));
        assert!(Prefix::everything().contains(&"/a/b".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn keys_below_a_prefix_are_those_between_its_ends(
            prefix in prop::collection::vec("[a-c.0-]{1,2}", 0..3),
            key in "(/[a-c.0-]{1,2}){2,4}",
        ) {
            let prefix = Prefix::new(prefix.iter().map(String::as_str)).unwrap();
            let key: Key = key.parse().unwrap();
            let between = prefix.as_str() <= key.as_str() && key.as_str() < prefix.end().as_str();
            prop_assert_eq!(prefix.contains(&key), between);
        }
    }
}
