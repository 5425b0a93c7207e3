//! `${VARIABLE:-default}` in a compose file's values. Pure.

use serde_json::Value;

use super::ComposeError;

/// Replaces variables in all texts of a document; keys stay as they are.
pub(super) fn interpolate(
    value: &mut Value,
    path: &str,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<(), ComposeError> {
    match value {
        Value::String(text) => {
            if text.contains('$') {
                *text = expand(text, variable).map_err(|why| ComposeError::refused(path, why))?;
            }
            Ok(())
        }
        Value::Array(list) => list
            .iter_mut()
            .enumerate()
            .try_for_each(|(index, item)| interpolate(item, &format!("{path}[{index}]"), variable)),
        Value::Object(map) => map.iter_mut().try_for_each(|(key, item)| {
            let path = if path.is_empty() {
                key.clone()
            } else {
                format!("{path}.{key}")
            };
            interpolate(item, &path, variable)
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
    }
}

/// One text; `$$` stands for a dollar.
fn expand(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        expanded.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            expanded.push('$');
            rest = after;
        } else if let Some(inner) = after.strip_prefix('{') {
            let end = closing_brace(inner).ok_or_else(|| format!("{text:?} has a \"${{\" without \"}}\""))?;
            expanded.push_str(&substitution(&inner[..end], variable)?);
            rest = &inner[end + 1..];
        } else {
            let end = after
                .find(|character: char| !is_name(character))
                .unwrap_or(after.len());
            let name = &after[..end];
            if name.is_empty() || name.starts_with(|character: char| character.is_ascii_digit()) {
                return Err(format!(
                    "{text:?} has a \"$\" without a variable's name: write \"$$\" for a dollar"
                ));
            }
            expanded.push_str(&variable(name).unwrap_or_default());
            rest = &after[end..];
        }
    }
    expanded.push_str(rest);
    Ok(expanded)
}

/// The brace that closes the one before the text; defaults may have variables of their own.
fn closing_brace(text: &str) -> Option<usize> {
    let mut depth = 1_u32;
    let mut previous = ' ';
    for (index, character) in text.char_indices() {
        match character {
            '{' if previous == '$' => depth += 1,
            '}' => {
                depth -= 1;
                if depth == 0 {
                    return Some(index);
                }
            }
            _ => {}
        }
        previous = character;
    }
    None
}

/// What stands between `${` and `}`.
fn substitution(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let end = text
        .find(|character: char| !is_name(character))
        .unwrap_or(text.len());
    let (name, operation) = text.split_at(end);
    if name.is_empty() || name.starts_with(|character: char| character.is_ascii_digit()) {
        return Err(format!("\"${{{text}}}\" has no variable's name"));
    }
    let value = variable(name);
    // With a colon, an empty variable is as good as none.
    let (operation, value) = match operation.strip_prefix(':') {
        Some(operation) => (operation, value.filter(|value| !value.is_empty())),
        None => (operation, value),
    };
    let mut characters = operation.chars();
    match (characters.next(), characters.as_str(), value) {
        (None, _, value) if text.len() == end => Ok(value.unwrap_or_default()),
        (Some('-'), _, Some(value)) | (Some('?'), _, Some(value)) => Ok(value),
        (Some('-'), default, None) | (Some('+'), default, Some(_)) => expand(default, variable),
        (Some('+'), _, None) => Ok(String::new()),
        (Some('?'), message, None) => Err(format!(
            "the variable {name} is needed{}{}",
            if message.is_empty() { "" } else { ": " },
            expand(message, variable)?
        )),
        _ => Err(format!(
            "\"${{{text}}}\" is not understood: use ${{NAME}}, ${{NAME:-default}}, ${{NAME:?message}} or ${{NAME:+value}}"
        )),
    }
}

fn is_name(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '_'
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn variable(name: &str) -> Option<String> {
        match name {
            "TAG" => Some("1.27".into()),
            "EMPTY" => Some(String::new()),
            _ => None,
        }
    }

    #[test]
    fn variables_have_composes_forms() {
        for (text, expected) in [
            ("nginx:$TAG", "nginx:1.27"),
            ("nginx:${TAG}-alpine", "nginx:1.27-alpine"),
            ("${NONE:-x}", "x"),
            ("${EMPTY:-x}", "x"),
            ("${EMPTY-x}", ""),
            ("${NONE-x}", "x"),
            ("${TAG:+set}${NONE:+set}", "set"),
            ("${NONE:-${TAG}}", "1.27"),
            ("${NONE:-a}b}", "ab}"),
            ("$$TAG costs 5$$", "$TAG costs 5$"),
            ("${NONE}$NONE", ""),
        ] {
            assert_eq!(expand(text, &variable).as_deref(), Ok(expected), "{text}");
        }
        for text in [
            "${NONE:?tell me}",
            "${NONE?}",
            "${",
            "$",
            "${}",
            "${1}",
            "$1",
            "${TAG:x}",
            "${TAG:}",
            "${A B}",
        ] {
            assert!(expand(text, &variable).is_err(), "{text}");
        }
        assert!(
            expand("${NONE:?tell me}", &variable)
                .unwrap_err()
                .ends_with("tell me")
        );
    }

    #[test]
    fn a_refusal_names_the_place() {
        let mut document = serde_json::json!({"services": {"web": {"ports": ["${PORT:?}"]}}});
        let error = interpolate(&mut document, "", &variable).unwrap_err().to_string();
        assert_eq!(error, "services.web.ports[0]: the variable PORT is needed");
    }

    proptest! {
        #[test]
        fn a_text_without_dollars_stays_and_no_text_panics(text in "[a-zA-Z{}:?+$-]{0,20}") {
            let expanded = expand(&text, &variable);
            if !text.contains('$') {
                prop_assert_eq!(expanded, Ok(text));
            }
        }
    }
}
