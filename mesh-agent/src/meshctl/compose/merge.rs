//! Several compose files as one: the later one's values count, lists are joined. Pure.

use serde_json::{Map, Value};

/// Puts `over` on top of `base`.
pub(super) fn merge(base: &mut Value, over: Value) {
    merge_at(base, over, &mut Vec::new());
}

fn merge_at(base: &mut Value, over: Value, path: &mut Vec<String>) {
    let key = path.last().map_or("", String::as_str);
    match (&mut *base, over) {
        (_, Value::Null) => {}
        // A command is one thing, not a list of things.
        (base, over @ Value::Array(_)) if matches!(key, "command" | "entrypoint" | "test") => *base = over,
        (base, over) if is_pairs(key) => {
            let mut pairs = as_map(std::mem::take(base));
            pairs.extend(as_map(over));
            *base = Value::Object(pairs);
        }
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                path.push(key.clone());
                match base.get_mut(&key) {
                    Some(known) => merge_at(known, value, path),
                    None => {
                        base.insert(key, value);
                    }
                }
                path.pop();
            }
        }
        (Value::Array(base), Value::Array(over)) => {
            for item in over {
                if let Some(name) = identity(key, &item) {
                    base.retain(|known| identity(key, known).as_ref() != Some(&name));
                }
                if !base.contains(&item) {
                    base.push(item);
                }
            }
        }
        (base, over) => *base = over,
    }
}

/// What may be a map or a list of `name=value`.
fn is_pairs(key: &str) -> bool {
    matches!(key, "environment" | "labels" | "sysctls")
}

fn as_map(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        Value::Array(list) => list
            .into_iter()
            .filter_map(|item| {
                let text = item.as_str()?;
                Some(match text.split_once('=') {
                    Some((name, value)) => (name.to_owned(), value.into()),
                    None => (text.to_owned(), Value::Null),
                })
            })
            .collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Map::new(),
    }
}

/// What an item of a list replaces: a mount with the same target, a file of the same source.
fn identity(key: &str, item: &Value) -> Option<String> {
    let text = |name: &str| {
        item.get(name)
            .map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned))
    };
    match (key, item) {
        ("volumes", Value::String(short)) => {
            let mut parts = short.split(':');
            let first = parts.next();
            parts.next().or(first).map(str::to_owned)
        }
        ("volumes", Value::Object(_)) => text("target"),
        ("secrets" | "configs", Value::String(name)) => Some(name.clone()),
        ("secrets" | "configs", Value::Object(_)) => text("source"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn merged(mut base: Value, over: Value) -> Value {
        merge(&mut base, over);
        base
    }

    #[test]
    fn the_later_file_counts_and_lists_are_joined() {
        let base = json!({"services": {"web": {
            "image": "nginx:1",
            "command": ["a", "b"],
            "environment": ["A=1", "B=1"],
            "ports": ["80:80"],
            "volumes": ["data:/data", "logs:/logs"],
            "secrets": ["key"],
            "deploy": {"replicas": 1, "labels": {"x": "1"}},
        }}});
        let over = json!({"services": {"web": {
            "image": "nginx:2",
            "command": ["c"],
            "environment": {"B": "2", "C": null},
            "ports": ["443:443", "80:80"],
            "volumes": [{"type": "bind", "source": "/srv", "target": "/data"}],
            "secrets": [{"source": "key", "mode": 256}],
            "deploy": {"replicas": 3, "labels": ["y=2"]},
        }, "db": {"image": "postgres"}}});
        assert_eq!(
            merged(base, over),
            json!({"services": {"web": {
                "image": "nginx:2",
                "command": ["c"],
                "environment": {"A": "1", "B": "2", "C": null},
                "ports": ["80:80", "443:443"],
                "volumes": ["logs:/logs", {"type": "bind", "source": "/srv", "target": "/data"}],
                "secrets": [{"source": "key", "mode": 256}],
                "deploy": {"replicas": 3, "labels": {"x": "1", "y": "2"}},
            }, "db": {"image": "postgres"}}})
        );
    }

    proptest! {
        #[test]
        fn a_file_on_top_of_itself_changes_nothing(keys in proptest::collection::btree_map("[a-z]{1,6}", 0_u32..9, 0..6)) {
            let document = json!({"services": {"web": keys}});
            prop_assert_eq!(merged(document.clone(), document.clone()), document);
        }
    }
}
