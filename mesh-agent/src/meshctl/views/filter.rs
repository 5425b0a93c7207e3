//! `--filter key=value`: what of a list is shown. Values of one key are alternatives, labels must all be
//! there. Pure.

use std::collections::BTreeMap;

use crate::meshctl::flags::UsageError;

/// What was asked for, by key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    wanted: BTreeMap<String, Vec<String>>,
}

impl Filter {
    /// Reads what was given.
    ///
    /// # Errors
    /// If a key is none of those that the list has.
    pub(crate) fn parse(given: &[String], keys: &[&str]) -> Result<Self, UsageError> {
        let mut wanted: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for text in given {
            let Some((key, value)) = text.split_once('=') else {
                return Err(UsageError::flag(
                    "filter",
                    format!("{text:?}: use key=value with one of {}", keys.join(", ")),
                ));
            };
            let (key, value) = (key.trim().to_lowercase(), value.trim());
            if !keys.contains(&key.as_str()) {
                return Err(UsageError::Line(format!(
                    "invalid filter {text:?}: use key=value with one of {}",
                    keys.join(", ")
                )));
            }
            wanted.entry(key).or_default().push(value.to_owned());
        }
        Ok(Self { wanted })
    }

    /// Whether the key was not given, or one of its values is equal.
    pub(crate) fn is(&self, key: &str, value: &str) -> bool {
        self.any(key, |wanted| wanted == value)
    }

    /// Whether the key was not given, or one of its values begins the text.
    pub(crate) fn begins(&self, key: &str, text: &str) -> bool {
        self.any(key, |wanted| text.starts_with(wanted))
    }

    /// Whether the key was not given, or one of its values passes.
    pub(crate) fn any(&self, key: &str, passes: impl Fn(&str) -> bool) -> bool {
        self.wanted
            .get(key)
            .is_none_or(|values| values.iter().any(|value| passes(value)))
    }

    /// Whether all labels asked for, each with its value if one was given, are there.
    pub(crate) fn labels(&self, key: &str, labels: &BTreeMap<String, String>) -> bool {
        self.wanted.get(key).is_none_or(|values| {
            values.iter().all(|wanted| match wanted.split_once('=') {
                Some((name, value)) => labels.get(name).is_some_and(|label| label == value),
                None => labels.contains_key(wanted),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(given: &[&str]) -> Result<Filter, UsageError> {
        let given: Vec<String> = given.iter().map(|text| (*text).to_owned()).collect();
        Filter::parse(&given, &["name", "label"])
    }

    #[test]
    fn values_of_one_key_are_alternatives_and_labels_must_all_be_there() {
        let labels = BTreeMap::from([("a".to_owned(), "1".to_owned()), ("b".to_owned(), String::new())]);
        let names = filter(&["name=web", "name=db"]).unwrap();
        assert!(names.begins("name", "web-1") && names.is("name", "db") && !names.is("name", "web-1"));
        assert!(names.labels("label", &labels));
        assert!(
            filter(&["label=a=1", "label=b"])
                .unwrap()
                .labels("label", &labels)
        );
        assert!(!filter(&["label=a=2"]).unwrap().labels("label", &labels));
        assert!(
            !filter(&["label=a=1", "label=c"])
                .unwrap()
                .labels("label", &labels)
        );
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_known_ones() {
        let error = filter(&["colour=red"]).unwrap_err().to_string();
        assert!(error.contains("name, label"), "{error}");
        assert!(filter(&["name"]).is_err());
    }
}
