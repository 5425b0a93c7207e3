//! The difference between two JSON documents, field by field. Pure; depends on nothing of ours.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One field that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Difference {
    /// Where: `container.env[2]`.
    pub path: String,
    /// The old value; `None` if there was no such field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Value>,
    /// The new value; `None` if there is no such field any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Value>,
}

/// The differences between two documents, in the order of field names.
#[must_use]
pub fn diff(from: &Value, to: &Value) -> Vec<Difference> {
    let mut differences = Vec::new();
    collect(String::new(), Some(from), Some(to), &mut differences);
    differences
}

fn collect(path: String, from: Option<&Value>, to: Option<&Value>, differences: &mut Vec<Difference>) {
    match (from, to) {
        (Some(from), Some(to)) if from == to => {}
        (Some(Value::Object(from)), Some(Value::Object(to))) => {
            let mut names: Vec<&String> = from.keys().chain(to.keys()).collect();
            names.sort_unstable();
            names.dedup();
            for name in names {
                let path = if path.is_empty() {
                    name.clone()
                } else {
                    format!("{path}.{name}")
                };
                collect(path, from.get(name), to.get(name), differences);
            }
        }
        (Some(Value::Array(from)), Some(Value::Array(to))) => {
            for index in 0..from.len().max(to.len()) {
                collect(
                    format!("{path}[{index}]"),
                    from.get(index),
                    to.get(index),
                    differences,
                );
            }
        }
        _ => differences.push(Difference {
            path,
            from: from.cloned(),
            to: to.cloned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn each_difference_names_the_path_of_its_field() {
        let from =
            json!({"image": "web:1", "env": ["A=1", "B=2"], "limits": {"memory": 1, "cpu": 2}, "gone": null});
        let to = json!({"image": "web:2", "env": ["A=1"], "limits": {"memory": 1, "cpu": 3}, "new": true});
        let differences: Vec<String> = diff(&from, &to)
            .into_iter()
            .map(|one| {
                format!(
                    "{} {:?} {:?}",
                    one.path,
                    one.from.map(|v| v.to_string()),
                    one.to.map(|v| v.to_string())
                )
            })
            .collect();
        assert_eq!(
            differences,
            [
                r#"env[1] Some("\"B=2\"") None"#,
                r#"gone Some("null") None"#,
                r#"image Some("\"web:1\"") Some("\"web:2\"")"#,
                r#"limits.cpu Some("2") Some("3")"#,
                r#"new None Some("true")"#,
            ]
        );
    }

    fn document() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (0..3).prop_map(Value::from)
        ];
        leaf.prop_recursive(3, 16, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::btree_map("[a-c]", inner, 0..3)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn there_is_a_difference_exactly_where_two_documents_differ(from in document(), to in document()) {
            prop_assert_eq!(diff(&from, &to).is_empty(), from == to);
            prop_assert_eq!(diff(&from, &to).len(), diff(&to, &from).len());
        }
    }
}
