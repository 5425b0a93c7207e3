//! The labels that limit a service's new connections. Pure.

use super::LabelError;
use crate::{docker::api::Labels, model::Limits};

/// New connections per second and node at most.
const MAX_NEW: &str = "mesh.max-new-connections";
/// The same of one client's address.
const MAX_NEW_PER_SOURCE: &str = "mesh.max-new-connections-per-source";
/// New connections per second and node past which they get no flow entries until they are open.
const FLOOD: &str = "mesh.flood-limit";
/// The largest limit: more than any node can take.
const LARGEST: u32 = 1_000_000_000;

/// The limits that a service's labels ask for, and what of them is invalid.
pub(super) fn limits(name: &str, labels: &Labels) -> (Limits, Vec<LabelError>) {
    let mut errors = Vec::new();
    let mut number = |label: &str, smallest: u32, instead: &str| {
        let text = labels.get(label)?;
        let number = text.trim().parse().ok();
        let number = number.filter(|number| (smallest..=LARGEST).contains(number));
        if number.is_none() {
            let expected = format!("a number per second from {smallest} to {LARGEST}");
            errors.push(LabelError::of_service(name, label, text, expected, instead));
        }
        number
    };
    let limits = Limits {
        max_new: number(MAX_NEW, 1, "no limit"),
        max_new_per_source: number(MAX_NEW_PER_SOURCE, 1, "no limit"),
        flood: number(FLOOD, 0, "the node's own"),
    };
    (limits, errors)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> (Limits, Vec<String>) {
        let labels = pairs
            .iter()
            .map(|(label, value)| ((*label).to_owned(), (*value).to_owned()))
            .collect();
        let (limits, errors) = limits("web", &labels);
        (limits, errors.iter().map(LabelError::to_string).collect())
    }

    #[test]
    fn a_service_without_labels_has_no_limits_of_its_own() {
        assert_eq!(of(&[]), (Limits::default(), vec![]));
    }

    #[test]
    fn limits_are_numbers_per_second() {
        let (limits, errors) = of(&[
            ("mesh.max-new-connections", "1000"),
            ("mesh.max-new-connections-per-source", " 20 "),
            ("mesh.flood-limit", "0"),
        ]);
        assert_eq!(
            (limits.max_new, limits.max_new_per_source, limits.flood),
            (Some(1000), Some(20), Some(0))
        );
        assert!(errors.is_empty(), "{errors:?}");
    }

    #[test]
    fn an_invalid_limit_is_reported_and_the_default_applies() {
        for (label, value, instead) in [
            ("mesh.max-new-connections", "0", "no limit"),
            ("mesh.max-new-connections-per-source", "many", "no limit"),
            ("mesh.flood-limit", "-1", "the node's own"),
        ] {
            let (limits, errors) = of(&[(label, value)]);
            assert_eq!(limits, Limits::default());
            assert_eq!(errors.len(), 1);
            assert!(
                errors[0].contains(&format!("{label}={value}")) && errors[0].ends_with(instead),
                "{errors:?}"
            );
        }
    }
}
