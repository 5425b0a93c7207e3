//! The functions of templates: docker's, and those of Go that lists need. Pure.

use serde_json::Value;

use super::{
    LABELS, NANOSECONDS, TemplateError,
    values::{is_true, print},
};
use crate::meshctl::output::people::capitalised;

/// Functions that make a text look different; a header stays as it is.
pub(super) fn is_shaping(function: &str) -> bool {
    matches!(
        function,
        "json" | "upper" | "lower" | "title" | "truncate" | "join" | "split" | "pad" | "println"
    )
}

/// A value as JSON.
pub(crate) fn json(value: &Value) -> String {
    shown(value).to_string()
}

/// A value without what is only for templates.
pub(crate) fn shown(value: &Value) -> Value {
    match value {
        Value::Object(map) => match map.get(NANOSECONDS) {
            Some(count) => count.clone(),
            None => Value::Object(
                map.iter()
                    .filter(|(key, _)| *key != LABELS)
                    .map(|(key, value)| (key.clone(), shown(value)))
                    .collect(),
            ),
        },
        Value::Array(list) => Value::Array(list.iter().map(shown).collect()),
        value => value.clone(),
    }
}

pub(super) fn call(function: &str, arguments: &[Value]) -> Result<Value, TemplateError> {
    let wrong = |why| TemplateError::Function {
        function: function.to_owned(),
        why,
    };
    let text = |value: &Value| {
        let mut text = String::new();
        print(value, &mut text);
        text
    };
    Ok(match (function, arguments) {
        ("json", [value]) => Value::String(json(value)),
        ("upper", [value]) => text(value).to_uppercase().into(),
        ("lower", [value]) => text(value).to_lowercase().into(),
        ("title", [value]) => capitalised(&text(value)).into(),
        ("println", values) => {
            let words: Vec<String> = values.iter().map(text).collect();
            format!("{}\n", words.join(" ")).into()
        }
        ("len", [Value::Array(list)]) => list.len().into(),
        ("len", [Value::Object(map)]) => map.len().into(),
        ("len", [Value::String(text)]) => text.len().into(),
        ("join", [Value::Array(list), separator]) => {
            let words: Vec<String> = list.iter().map(text).collect();
            words.join(&text(separator)).into()
        }
        ("split", [subject, separator]) => {
            let (subject, separator) = (text(subject), text(separator));
            subject
                .split(separator.as_str())
                .map(str::to_owned)
                .collect::<Vec<_>>()
                .into()
        }
        ("truncate", [subject, Value::Number(length)]) => {
            let length = length.as_u64().and_then(|length| usize::try_from(length).ok());
            text(subject)
                .chars()
                .take(length.unwrap_or(usize::MAX))
                .collect::<String>()
                .into()
        }
        ("index", [collection, keys @ ..]) => {
            let mut found = collection;
            for key in keys {
                found = match (found, key) {
                    (Value::Array(list), Value::Number(index)) => index
                        .as_u64()
                        .and_then(|index| list.get(usize::try_from(index).ok()?))
                        .ok_or_else(|| wrong("was asked for an element that the list has not"))?,
                    (Value::Object(map), Value::String(key)) => map.get(key).unwrap_or(&Value::Null),
                    _ => return Err(wrong("needs a list and a number, or a map and a name")),
                };
            }
            found.clone()
        }
        ("eq", [first, others @ ..]) if !others.is_empty() => others.contains(first).into(),
        ("ne", [first, second]) => (first != second).into(),
        ("not", [value]) => (!is_true(value)).into(),
        ("and", [first, others @ ..]) => {
            let all = std::iter::once(first).chain(others);
            all.clone()
                .find(|value| !is_true(value))
                .or(all.last())
                .cloned()
                .unwrap_or(Value::Null)
        }
        ("or", [first, others @ ..]) => {
            let all = std::iter::once(first).chain(others);
            all.clone()
                .find(|value| is_true(value))
                .or(all.last())
                .cloned()
                .unwrap_or(Value::Null)
        }
        (
            "json" | "upper" | "lower" | "title" | "len" | "join" | "split" | "truncate" | "index" | "eq"
            | "ne" | "not" | "and" | "or",
            _,
        ) => return Err(wrong("has other arguments")),
        _ => {
            return Err(wrong(
                "is not known; there are json, upper, lower, title, join, split, truncate, len, index, eq, ne, not, \
                 and, or, println",
            ));
        }
    })
}
