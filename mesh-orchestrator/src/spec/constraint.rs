//! Placement constraints: `node.labels.zone == a`. They know no nodes: the caller looks up the key's value.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::SpecError;

/// The keys that constraints and spread preferences may use.
const KEYS: &str = "one of node.id, node.hostname, node.ip, node.role, node.platform.os, node.platform.arch, \
                    node.labels.<name>, engine.labels.<name>";

/// A condition on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Constraint {
    /// The attribute of the node.
    pub key: String,
    /// The comparison.
    pub operator: Operator,
    /// The value to compare with. Like Docker's, the comparison ignores case.
    pub value: String,
}

/// How a constraint compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
}

impl Constraint {
    /// Whether it holds on a node where the key has this value (empty if the node has none).
    #[must_use]
    pub fn holds(&self, actual: &str) -> bool {
        let equal = self.value.eq_ignore_ascii_case(actual);
        match self.operator {
            Operator::Equal => equal,
            Operator::NotEqual => !equal,
        }
    }
}

/// Checks the key of a constraint or a spread preference.
///
/// # Errors
/// If the key is unknown. The error lists the known keys.
pub fn check_key(field: &str, key: &str) -> Result<(), SpecError> {
    let known = matches!(
        key,
        "node.id" | "node.hostname" | "node.ip" | "node.role" | "node.platform.os" | "node.platform.arch"
    ) || ["node.labels.", "engine.labels."]
        .iter()
        .any(|prefix| key.strip_prefix(prefix).is_some_and(is_label));
    if known {
        Ok(())
    } else {
        Err(SpecError::invalid(field, key, KEYS))
    }
}

fn is_label(name: &str) -> bool {
    !name.is_empty()
        && name
            .chars()
            .all(|character| character.is_ascii_alphanumeric() || matches!(character, '.' | '-' | '_' | '/'))
}

impl FromStr for Constraint {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let field = "task_template.placement.constraints";
        let (key, operator, value) = text
            .split_once("==")
            .map(|(key, value)| (key, Operator::Equal, value))
            .or_else(|| {
                text.split_once("!=")
                    .map(|(key, value)| (key, Operator::NotEqual, value))
            })
            .ok_or_else(|| SpecError::invalid(field, text, "<key>==<value> or <key>!=<value>"))?;
        let (key, value) = (key.trim(), value.trim());
        check_key(field, key)?;
        if value.is_empty() || value.chars().any(char::is_control) {
            return Err(SpecError::invalid(
                field,
                text,
                "<key>==<value> or <key>!=<value> with a non-empty value",
            ));
        }
        Ok(Self {
            key: key.into(),
            operator,
            value: value.into(),
        })
    }
}

impl TryFrom<String> for Constraint {
    type Error = SpecError;

    fn try_from(text: String) -> Result<Self, SpecError> {
        text.parse()
    }
}

impl JsonSchema for Constraint {
    fn schema_name() -> Cow<'static, str> {
        "Constraint".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A condition on a node: `node.labels.zone==a`, or with `!=`.",
        })
    }
}

impl From<Constraint> for String {
    fn from(constraint: Constraint) -> Self {
        constraint.to_string()
    }
}

impl fmt::Display for Constraint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let operator = match self.operator {
            Operator::Equal => "==",
            Operator::NotEqual => "!=",
        };
        write!(formatter, "{}{operator}{}", self.key, self.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_operators_with_and_without_spaces() {
        let constraint: Constraint = "node.labels.zone != a".parse().unwrap();
        assert!(constraint.holds("b") && constraint.holds("") && !constraint.holds("A"));
        assert_eq!(constraint.to_string(), "node.labels.zone!=a");
        assert_eq!(
            "node.role==manager".parse::<Constraint>().unwrap().operator,
            Operator::Equal
        );
    }

    #[test]
    fn the_error_for_an_unknown_key_lists_the_known_keys() {
        for text in [
            "node.name==a",
            "zone==a",
            "node.labels.==a",
            "node.id=a",
            "node.id==",
        ] {
            assert!(text.parse::<Constraint>().is_err(), "{text}");
        }
        let error = "node.name==a".parse::<Constraint>().unwrap_err().to_string();
        assert!(
            error.contains("\"node.name\"") && error.contains("node.hostname"),
            "{error}"
        );
    }
}
