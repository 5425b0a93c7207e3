//! Values as Go's templates treat them: their truth and their text. Pure.

use std::{fmt::Write as _, time::Duration};

use serde_json::Value;

use super::NANOSECONDS;
use crate::meshctl::output::people::go_duration;

/// Whether a value counts as true.
pub(super) fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(truth) => *truth,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// As Go prints values: `[a b]`, `map[k:v]`.
pub(super) fn print(value: &Value, text: &mut String) {
    match value {
        Value::Null => text.push_str("<no value>"),
        Value::String(string) => text.push_str(string),
        Value::Bool(_) | Value::Number(_) => {
            // Writing to a string cannot fail.
            let _ = write!(text, "{value}");
        }
        Value::Array(list) => {
            text.push('[');
            for (index, item) in list.iter().enumerate() {
                if index > 0 {
                    text.push(' ');
                }
                print(item, text);
            }
            text.push(']');
        }
        Value::Object(map) if map.contains_key(NANOSECONDS) => {
            let count = map[NANOSECONDS].as_u64().unwrap_or_default();
            text.push_str(&go_duration(Duration::from_nanos(count)));
        }
        Value::Object(map) => {
            text.push_str("map[");
            for (index, (key, item)) in map.iter().enumerate() {
                if index > 0 {
                    text.push(' ');
                }
                text.push_str(key);
                text.push(':');
                print(item, text);
            }
            text.push(']');
        }
    }
}
