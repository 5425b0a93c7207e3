//! Which clients may come in to a service, as its labels say. Pure.

use serde::{Deserialize, Serialize};

use super::{Prefix, SourceRules, SourceVerdict, SourceVerdicts};

/// The prefixes of those who may come in and of those who may not. The longest one that has a client's
/// address decides; of two equal ones, that of those who may not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clients {
    /// Who may. If there are none, everyone else may.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<Prefix>,
    /// Who may not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<Prefix>,
}

impl Clients {
    /// Whether everyone may.
    #[must_use]
    pub fn are_all(&self) -> bool {
        *self == Self::default()
    }

    /// The same as rules. Packets of those who may not are dropped.
    #[must_use]
    pub fn rules(&self) -> SourceRules {
        let verdicts = |verdict| move |prefix: &Prefix| (*prefix, SourceVerdicts::both(verdict));
        let others = if self.allow.is_empty() {
            SourceVerdict::Accept
        } else {
            SourceVerdict::Drop
        };
        let mut rules = SourceRules::from([(Prefix::ALL, SourceVerdicts::both(others))]);
        rules.extend(self.allow.iter().map(verdicts(SourceVerdict::Accept)));
        rules.extend(self.deny.iter().map(verdicts(SourceVerdict::Drop)));
        rules
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Ingress, SourcePolicy};

    fn verdict(allow: &[&str], deny: &[&str], client: &str) -> SourceVerdict {
        let prefixes = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let clients = Clients {
            allow: prefixes(allow),
            deny: prefixes(deny),
        };
        SourcePolicy::new([(Ingress::Any, clients.rules())])
            .map_or_else(SourceVerdicts::default, |policy| {
                policy.verdicts(Ingress::Any, client.parse().unwrap())
            })
            .opening
    }

    #[test]
    fn the_longest_prefix_decides_and_denies_where_two_are_equal() {
        use SourceVerdict::{Accept, Drop};
        for (allow, deny, client, expected) in [
            (&[][..], &[][..], "192.0.2.7", Accept),
            (&["192.0.2.0/24"], &[], "192.0.2.7", Accept),
            (&["192.0.2.0/24"], &[], "198.51.100.7", Drop),
            (&[], &["192.0.2.0/24"], "192.0.2.7", Drop),
            (&[], &["192.0.2.0/24"], "198.51.100.7", Accept),
            (&["192.0.2.0/24"], &["192.0.2.7"], "192.0.2.7", Drop),
            (&["192.0.2.7"], &["192.0.2.0/24"], "192.0.2.7", Accept),
            (&["192.0.2.7"], &["192.0.2.7"], "192.0.2.7", Drop),
            (&["2001:db8::/32"], &[], "192.0.2.7", Drop),
        ] {
            assert_eq!(
                verdict(allow, deny, client),
                expected,
                "{allow:?} {deny:?} {client}"
            );
        }
    }
}
