//! The labels that say which clients may come in to a service. Pure.

use super::LabelError;
use crate::{
    docker::api::Labels,
    model::{Clients, Prefix},
};

/// The prefixes of those who may; without it, everyone may.
const ALLOW: &str = "mesh.allow";
/// The prefixes of those who may not.
const DENY: &str = "mesh.deny";

/// Which clients a service's labels let in, and what of the labels is invalid.
pub(super) fn clients(name: &str, labels: &Labels) -> (Clients, Vec<LabelError>) {
    let mut errors = Vec::new();
    let mut prefixes = |label: &str| -> Vec<Prefix> {
        let value = labels.get(label).map_or("", String::as_str);
        let parts = value.split([',', ' ']).filter(|part| !part.is_empty());
        parts
            .filter_map(|part| {
                let prefix = part.parse().ok();
                if prefix.is_none() {
                    let expected = "addresses and prefixes such as 192.0.2.0/24";
                    errors.push(LabelError::of_service(name, label, part, expected, "the others"));
                }
                prefix
            })
            .collect()
    };
    let clients = Clients {
        allow: prefixes(ALLOW),
        deny: prefixes(DENY),
    };
    (clients, errors)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> (Clients, Vec<String>) {
        let labels = pairs
            .iter()
            .map(|(label, value)| ((*label).to_owned(), (*value).to_owned()))
            .collect();
        let (clients, errors) = clients("web", &labels);
        (clients, errors.iter().map(LabelError::to_string).collect())
    }

    fn prefixes(texts: &[&str]) -> Vec<Prefix> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_service_without_labels_lets_everyone_in() {
        assert_eq!(of(&[]), (Clients::default(), vec![]));
        assert_eq!(of(&[("mesh.allow", " ")]), (Clients::default(), vec![]));
    }

    #[test]
    fn prefixes_are_separated_by_commas_or_blanks() {
        let (clients, errors) = of(&[
            ("mesh.allow", "192.0.2.0/24, 198.51.100.7"),
            ("mesh.deny", "2001:db8::/32 192.0.2.9"),
        ]);
        assert_eq!(clients.allow, prefixes(&["192.0.2.0/24", "198.51.100.7"]));
        assert_eq!(clients.deny, prefixes(&["2001:db8::/32", "192.0.2.9"]));
        assert!(errors.is_empty());
    }

    #[test]
    fn what_is_no_prefix_is_reported_and_the_others_hold() {
        let (clients, errors) = of(&[("mesh.deny", "192.0.2.0/33,198.51.100.7")]);
        assert_eq!(clients.deny, prefixes(&["198.51.100.7"]));
        assert_eq!(
            errors,
            [
                "label mesh.deny=192.0.2.0/33 of service web: expected addresses and prefixes such as 192.0.2.0/24; \
              using the others"
            ]
        );
    }
}
