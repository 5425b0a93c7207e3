//! The part of Go's templates that `--format` needs: fields, `if`, `range`, pipes and docker's functions, over
//! a JSON value. Pure.

use std::fmt::Write as _;

use serde_json::Value;

/// Why a template cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TemplateError {
    /// It is not written as templates are.
    #[error("the template is not understood at {at:?}: {why}")]
    Syntax {
        /// Where.
        at: String,
        /// What is wrong there.
        why: String,
    },
    /// A field that nothing has.
    #[error("the template asks for {field:?}, which there is not; there are {}", known.join(", "))]
    UnknownField {
        /// As written.
        field: String,
        /// The fields that there are.
        known: Vec<String>,
    },
    /// A function got something it is not for.
    #[error("the template's function {function} {why}")]
    Function {
        /// Its name.
        function: String,
        /// What it is for.
        why: &'static str,
    },
}

/// A template that was understood.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    nodes: Vec<Node>,
}

#[derive(Clone, Debug)]
enum Node {
    Text(String),
    Print(Pipeline),
    If(Pipeline, Vec<Node>, Vec<Node>),
    Range(Pipeline, Vec<Node>, Vec<Node>),
}

/// Each command gets the result of the one before as its last argument.
type Pipeline = Vec<Vec<Term>>;

#[derive(Clone, Debug)]
enum Term {
    /// `.A.B`; none is the value itself.
    Field(Vec<String>),
    /// `$.A.B`: of the whole, inside `range`.
    Root(Vec<String>),
    Literal(Value),
    Word(String),
    Group(Pipeline),
}

/// What functions do in a table's header: names stay as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Row {
    /// The names of the columns.
    Header,
    /// Values.
    Values,
}

impl Template {
    /// Reads a template. `\t` and `\n` stand for what they do in Go.
    ///
    /// # Errors
    /// Names the place.
    pub(crate) fn parse(text: &str) -> Result<Self, TemplateError> {
        let text = text.replace("\\t", "\t").replace("\\n", "\n");
        let mut pieces = split(&text)?.into_iter();
        let (nodes, end) = block(&mut pieces)?;
        match end {
            None => Ok(Self { nodes }),
            Some(word) => Err(syntax(&word, "nothing is open that it could end")),
        }
    }

    /// The text for one value.
    ///
    /// # Errors
    /// If it asks for a field that the value has not, or uses a function wrongly.
    pub(crate) fn render(&self, value: &Value, row: Row) -> Result<String, TemplateError> {
        let mut text = String::new();
        let scope = Scope { root: value, row };
        scope.write(&self.nodes, value, &mut text)?;
        Ok(text)
    }
}

enum Piece {
    Text(String),
    Action(String),
}

fn syntax(at: &str, why: impl Into<String>) -> TemplateError {
    TemplateError::Syntax {
        at: at.to_owned(),
        why: why.into(),
    }
}

/// Texts and actions; `{{-` and `-}}` eat the spaces on their side.
fn split(text: &str) -> Result<Vec<Piece>, TemplateError> {
    let mut pieces = Vec::new();
    let mut rest = text;
    let mut trim = false;
    loop {
        let (before, after) = rest
            .split_once("{{")
            .map_or((rest, None), |(before, after)| (before, Some(after)));
        let before = if trim { before.trim_start() } else { before };
        let Some(after) = after else {
            pieces.push(Piece::Text(before.to_owned()));
            return Ok(pieces);
        };
        let (action, tail) = after
            .split_once("}}")
            .ok_or_else(|| syntax(after, "the action is not closed by }}"))?;
        let (before, action) = match action.strip_prefix("- ") {
            Some(action) => (before.trim_end(), action),
            None => (before, action),
        };
        let action = match action.strip_suffix(" -") {
            Some(action) => {
                trim = true;
                action
            }
            None => {
                trim = false;
                action
            }
        };
        pieces.push(Piece::Text(before.to_owned()));
        pieces.push(Piece::Action(action.trim().to_owned()));
        rest = tail;
    }
}

/// Nodes up to the end of the block, and the word that ends it (`end`, `else`); none at the template's end.
fn block(pieces: &mut impl Iterator<Item = Piece>) -> Result<(Vec<Node>, Option<String>), TemplateError> {
    let mut nodes = Vec::new();
    while let Some(piece) = pieces.next() {
        let action = match piece {
            Piece::Text(text) => {
                nodes.push(Node::Text(text));
                continue;
            }
            Piece::Action(action) => action,
        };
        let (word, rest) = action.split_once(' ').unwrap_or((&action, ""));
        match word {
            "end" | "else" => return Ok((nodes, Some(action))),
            "if" | "range" => {
                let subject = pipeline(rest)?;
                let (first, second) = branches(pieces, &action)?;
                nodes.push(if word == "if" {
                    Node::If(subject, first, second)
                } else {
                    Node::Range(subject, first, second)
                });
            }
            _ if action.starts_with("/*") => {}
            "with" | "template" | "define" | "block" | "break" | "continue" => {
                return Err(syntax(
                    &action,
                    "of Go's actions only if, else, range and end are known",
                ));
            }
            _ => nodes.push(Node::Print(pipeline(&action)?)),
        }
    }
    Ok((nodes, None))
}

fn branches(
    pieces: &mut impl Iterator<Item = Piece>,
    opened: &str,
) -> Result<(Vec<Node>, Vec<Node>), TemplateError> {
    let unclosed = || syntax(opened, "it has no {{end}}");
    let (first, end) = block(pieces)?;
    let end = end.ok_or_else(unclosed)?;
    if end == "end" {
        return Ok((first, Vec::new()));
    }
    if let Some(condition) = end.strip_prefix("else if ") {
        let (then, otherwise) = branches(pieces, &end)?;
        return Ok((first, vec![Node::If(pipeline(condition)?, then, otherwise)]));
    }
    let (second, end) = block(pieces)?;
    match end.ok_or_else(unclosed)?.as_str() {
        "end" => Ok((first, second)),
        other => Err(syntax(other, "an else has been there before")),
    }
}

fn pipeline(text: &str) -> Result<Pipeline, TemplateError> {
    let mut rest = text;
    let pipeline = commands(&mut rest, text)?;
    if rest.is_empty() {
        Ok(pipeline)
    } else {
        Err(syntax(text, "a bracket is closed that was not opened"))
    }
}

/// Commands up to the end or a closing bracket.
fn commands(rest: &mut &str, whole: &str) -> Result<Pipeline, TemplateError> {
    let mut pipeline = vec![Vec::new()];
    loop {
        *rest = rest.trim_start();
        let Some(first) = rest.chars().next() else { break };
        match first {
            ')' => break,
            '|' => {
                *rest = &rest[1..];
                pipeline.push(Vec::new());
                continue;
            }
            _ => {}
        }
        let term = term(rest, whole)?;
        if let Some(command) = pipeline.last_mut() {
            command.push(term);
        }
    }
    if pipeline.iter().any(Vec::is_empty) {
        return Err(syntax(whole, "a field or a function is missing"));
    }
    Ok(pipeline)
}

fn term(rest: &mut &str, whole: &str) -> Result<Term, TemplateError> {
    if let Some(inner) = rest.strip_prefix('(') {
        *rest = inner;
        let group = commands(rest, whole)?;
        *rest = rest
            .strip_prefix(')')
            .ok_or_else(|| syntax(whole, "a bracket is not closed"))?;
        return Ok(Term::Group(group));
    }
    for quote in ['"', '`'] {
        if let Some(quoted) = rest.strip_prefix(quote) {
            let (literal, after) = quoted
                .split_once(quote)
                .ok_or_else(|| syntax(whole, "a quote is not closed"))?;
            *rest = after;
            return Ok(Term::Literal(literal.into()));
        }
    }
    let end = rest
        .find(|character: char| character.is_whitespace() || matches!(character, '|' | ')' | '('))
        .unwrap_or(rest.len());
    let (word, after) = rest.split_at(end);
    *rest = after;
    let path = |path: &str| {
        path.split('.')
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect()
    };
    Ok(if let Some(fields) = word.strip_prefix('$') {
        if !fields.is_empty() && !fields.starts_with('.') {
            return Err(syntax(whole, "variables are not known, but for $"));
        }
        Term::Root(path(fields))
    } else if word.starts_with('.') {
        Term::Field(path(word))
    } else if let Ok(number) = word.parse::<i64>() {
        Term::Literal(number.into())
    } else if let Ok(truth) = word.parse::<bool>() {
        Term::Literal(truth.into())
    } else {
        Term::Word(word.to_owned())
    })
}

struct Scope<'a> {
    root: &'a Value,
    row: Row,
}

impl Scope<'_> {
    fn write(&self, nodes: &[Node], value: &Value, text: &mut String) -> Result<(), TemplateError> {
        for node in nodes {
            match node {
                Node::Text(literal) => text.push_str(literal),
                Node::Print(pipeline) => print(&self.evaluate(pipeline, value)?, text),
                Node::If(condition, then, otherwise) => {
                    let branch = if is_true(&self.evaluate(condition, value)?) {
                        then
                    } else {
                        otherwise
                    };
                    self.write(branch, value, text)?;
                }
                Node::Range(list, each, otherwise) => {
                    let items: Vec<Value> = match self.evaluate(list, value)? {
                        Value::Array(items) => items,
                        Value::Object(map) => map.into_iter().map(|(_, item)| item).collect(),
                        Value::Null => Vec::new(),
                        Value::Bool(_) | Value::Number(_) | Value::String(_) => {
                            return Err(TemplateError::Function {
                                function: "range".into(),
                                why: "needs a list or a map",
                            });
                        }
                    };
                    if items.is_empty() {
                        self.write(otherwise, value, text)?;
                    }
                    for item in &items {
                        self.write(each, item, text)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn evaluate(&self, pipeline: &Pipeline, value: &Value) -> Result<Value, TemplateError> {
        let mut result: Option<Value> = None;
        for command in pipeline {
            result = Some(self.command(command, result, value)?);
        }
        Ok(result.unwrap_or(Value::Null))
    }

    fn command(&self, terms: &[Term], piped: Option<Value>, value: &Value) -> Result<Value, TemplateError> {
        let (function, operands) = match terms.split_first() {
            Some((Term::Word(function), operands)) => (Some(function), operands),
            _ => (None, terms),
        };
        let mut arguments = Vec::new();
        for operand in operands {
            arguments.push(match operand {
                Term::Field(path) => field(value, path)?.clone(),
                Term::Root(path) => field(self.root, path)?.clone(),
                Term::Literal(literal) => literal.clone(),
                Term::Group(group) => self.evaluate(group, value)?,
                Term::Word(word) => {
                    return Err(syntax(word, "a function's argument begins with a dot or a quote"));
                }
            });
        }
        arguments.extend(piped);
        match function {
            Some(function) if self.row == Row::Header && is_shaping(function) => {
                Ok(arguments.pop().unwrap_or(Value::Null))
            }
            Some(function) => call(function, &arguments),
            None if arguments.len() == 1 => Ok(arguments.remove(0)),
            None => Err(syntax(
                &format!("{} values in a row", arguments.len()),
                "one of them needs a function in front",
            )),
        }
    }
}

/// Functions that make a text look different; a header stays as it is.
fn is_shaping(function: &str) -> bool {
    matches!(
        function,
        "json" | "upper" | "lower" | "title" | "truncate" | "join" | "split" | "pad" | "println"
    )
}

fn call(function: &str, arguments: &[Value]) -> Result<Value, TemplateError> {
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
        ("json", [value]) => Value::String(value.to_string()),
        ("upper", [value]) => text(value).to_uppercase().into(),
        ("lower", [value]) => text(value).to_lowercase().into(),
        ("title", [value]) => super::people::capitalised(&text(value)).into(),
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

/// Names match as written, else without regard to case and `_`: `.Spec.TaskTemplate` finds `task_template`.
fn field<'a>(value: &'a Value, path: &[String]) -> Result<&'a Value, TemplateError> {
    let mut found = value;
    for name in path {
        let plain = |name: &str| name.replace('_', "").to_lowercase();
        let wanted = plain(name);
        found = match found {
            Value::Object(map) => map
                .get(name)
                .or_else(|| {
                    map.iter()
                        .find(|(key, _)| plain(key) == wanted)
                        .map(|(_, value)| value)
                })
                .ok_or_else(|| TemplateError::UnknownField {
                    field: format!(".{}", path.join(".")),
                    known: map.keys().map(|key| format!(".{key}")).collect(),
                })?,
            // Nothing has no fields, as in Go.
            Value::Null => found,
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                return Err(TemplateError::UnknownField {
                    field: format!(".{}", path.join(".")),
                    known: vec!["no fields in what stands before the last dot".into()],
                });
            }
        };
    }
    Ok(found)
}

fn is_true(value: &Value) -> bool {
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
fn print(value: &Value, text: &mut String) {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn render(template: &str) -> String {
        let value = json!({
            "ID": "abc",
            "Name": "web",
            "Labels": {"zone": "a", "tier": "front"},
            "Ports": [{"target_port": 80}, {"target_port": 443}],
            "Spec": {"task_template": {"container_spec": {"image": "nginx:1"}}},
            "Empty": "",
            "Nothing": null,
            "Count": 3,
        });
        match Template::parse(template).and_then(|template| template.render(&value, Row::Values)) {
            Ok(text) => text,
            Err(error) => format!("error: {error}"),
        }
    }

    #[test]
    fn what_docker_users_type_works() {
        for (template, expected) in [
            ("{{.Name}}", "web"),
            (r"{{.ID}}\t{{ .Name }}\n", "abc\tweb\n"),
            ("{{json .Labels}}", r#"{"tier":"front","zone":"a"}"#),
            ("{{.Labels}}", "map[tier:front zone:a]"),
            ("{{.Name | upper}}", "WEB"),
            ("{{title .Name}}", "Web"),
            ("{{.Spec.TaskTemplate.ContainerSpec.Image}}", "nginx:1"),
            (
                "{{range .Ports}}{{.TargetPort}} {{$.Name}};{{end}}",
                "80 web;443 web;",
            ),
            ("{{range .Nothing}}x{{else}}none{{end}}", "none"),
            ("{{if .Empty}}a{{else if eq .Name \"web\"}}b{{else}}c{{end}}", "b"),
            ("a  {{- .Name -}}  b", "awebb"),
            ("{{index .Labels \"zone\"}}", "a"),
            (
                "{{(index .Ports 1).TargetPort}}",
                "error: the template is not understood at \"(index .Ports 1).TargetPort\": ",
            ),
            ("{{len .Ports}} {{.Count}}", "2 3"),
            ("{{join (split \"a,b\" \",\") \"-\"}}", "a-b"),
            ("{{if and .Name (not .Empty)}}yes{{end}}", "yes"),
            ("{{/* a comment */}}x", "x"),
            ("{{.Nothing}}", "<no value>"),
            ("plain", "plain"),
        ] {
            let text = render(template);
            assert!(
                text == expected || (expected.starts_with("error") && text.starts_with("error")),
                "{template}: {text}"
            );
        }
    }

    #[test]
    fn an_unknown_field_lists_the_known_ones() {
        let error = render("{{.Nmae}}");
        assert!(
            error.contains("\".Nmae\"") && error.contains(".ID, ") && error.contains(".Name"),
            "{error}"
        );
    }

    #[test]
    fn what_is_no_template_is_refused_with_the_place() {
        for template in [
            "{{.Name",
            "{{end}}",
            "{{if .Name}}",
            "{{}}",
            "{{.Name |}}",
            "{{frob .Name}}",
            "{{with .A}}{{end}}",
            "{{.Name .ID}}",
            "{{\"a}}",
        ] {
            let text = render(template);
            assert!(text.starts_with("error: the template"), "{template}: {text}");
        }
    }

    #[test]
    fn functions_leave_a_header_as_it_is() {
        let header = json!({"Name": "NAME"});
        let template = Template::parse("{{lower .Name}}{{json .Name}}").unwrap();
        assert_eq!(template.render(&header, Row::Header).unwrap(), "NAMENAME");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(template in "[a-z.{}|() \"$-]{0,30}") {
            let _ = render(&template);
            let _ = render(&format!("{{{{{template}}}}}"));
        }
    }
}
