//! Values made of several: `key=value` lists, environment files, one line of comma-separated fields. Pure.

use std::collections::BTreeMap;

/// Label names with values; a name alone has an empty one. The last of one name counts.
pub(crate) fn labels(list: &[String]) -> Result<BTreeMap<String, String>, String> {
    list.iter().map(|text| label(text)).collect()
}

/// One label: `name=value`, or `name`.
pub(crate) fn label(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    if name.is_empty() {
        return Err(format!("{text:?} is no label: use name=value"));
    }
    Ok((name.to_owned(), value.to_owned()))
}

/// Environment variables of files and flags, in order, each name once (the last counts). A name without a
/// value takes that of `environment`; if there is none there, the container goes without.
pub(crate) fn environment(
    list: impl IntoIterator<Item = String>,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<String>, String> {
    let mut variables: Vec<String> = Vec::new();
    for variable in list {
        let (name, value) = match variable.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (variable.as_str(), environment(&variable)),
        };
        if name.is_empty() {
            return Err(format!(
                "{variable:?} is no environment variable: use NAME=value or NAME"
            ));
        }
        variables.retain(|other| name_of(other) != name);
        variables.push(match value {
            Some(value) => format!("{name}={value}"),
            None => name.to_owned(),
        });
    }
    Ok(variables)
}

/// The name of an environment variable as a specification has it.
pub(crate) fn name_of(variable: &str) -> &str {
    variable.split_once('=').map_or(variable, |(name, _)| name)
}

/// The variables in an environment file by docker's rules: one a line, `#` begins a line's comment, no
/// quotes, values are taken as they stand.
pub(crate) fn environment_file(text: &str) -> Result<Vec<String>, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut variables = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let name = name_of(line);
        if name.trim_end().is_empty() || name.contains(char::is_whitespace) {
            return Err(format!(
                "line {}: {name:?} is no name of an environment variable: use NAME=value or NAME",
                index + 1
            ));
        }
        variables.push(line.to_owned());
    }
    Ok(variables)
}

/// One line of comma-separated fields; one in double quotes may have commas in it.
pub(crate) fn comma_separated(text: &str) -> Result<Vec<String>, String> {
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        let field = if let Some(quoted) = rest.strip_prefix('"') {
            let (field, after) =
                until_quote(quoted).ok_or_else(|| format!("{text:?} has no closing quote"))?;
            rest = after;
            field
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            let (field, after) = rest.split_at(end);
            rest = after;
            field.to_owned()
        };
        fields.push(field);
        match rest.strip_prefix(',') {
            Some(after) => rest = after,
            None if rest.is_empty() => return Ok(fields),
            None => {
                return Err(format!(
                    "{text:?} has something between a closing quote and the comma"
                ));
            }
        }
    }
}

/// A truth as docker's flags and fields have it.
pub(crate) fn truth(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("{text:?} is neither true nor false")),
    }
}

/// Two quotes in a row stand for one.
fn until_quote(text: &str) -> Option<(String, &str)> {
    let mut field = String::new();
    let mut rest = text;
    loop {
        let (part, after) = rest.split_once('"')?;
        field.push_str(part);
        match after.strip_prefix('"') {
            Some(after) => {
                field.push('"');
                rest = after;
            }
            None => return Some((field, after)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn labels_may_have_no_value_but_a_name() {
        let expected = BTreeMap::from([("a".into(), "1=2".into()), ("b".into(), String::new())]);
        assert_eq!(labels(&strings(&["a=0", "b", "a=1=2"])), Ok(expected));
        assert!(labels(&strings(&["=x"])).is_err());
    }

    #[test]
    fn a_variable_without_a_value_takes_the_callers() {
        let caller = |name: &str| (name == "HOME").then(|| "/root".to_owned());
        let given = strings(&["A=1", "HOME", "NONE", "A=2", "E="]);
        assert_eq!(
            environment(given, &caller),
            Ok(strings(&["HOME=/root", "NONE", "A=2", "E="]))
        );
        assert!(environment(strings(&["=1"]), &caller).is_err());
    }

    #[test]
    fn environment_files_are_taken_as_they_stand() {
        assert_eq!(
            environment_file("\u{feff}# hello\nA=1 # no comment\r\n\n  B=\"x\"\nC\n"),
            Ok(strings(&["A=1 # no comment", "B=\"x\"", "C"]))
        );
        let error = environment_file("A=1\nB C=2\n").unwrap_err();
        assert!(error.starts_with("line 2: \"B C\""), "{error}");
    }

    #[test]
    fn quoted_fields_keep_their_commas() {
        assert_eq!(
            comma_separated("type=volume,\"a=b,c\",\"d=\"\"e\"\"\""),
            Ok(strings(&["type=volume", "a=b,c", "d=\"e\""]))
        );
        assert!(comma_separated("\"open").is_err());
        assert!(comma_separated("\"a\"b").is_err());
    }
}
