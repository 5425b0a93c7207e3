//! A template and a value make a text. Pure.

use serde_json::Value;

use super::{
    LABELS, Node, Pipeline, Row, TemplateError, Term,
    functions::{call, is_shaping},
    parse::syntax,
    values::{is_true, print},
};

pub(super) struct Scope<'a> {
    pub(super) root: &'a Value,
    pub(super) row: Row,
}

impl Scope<'_> {
    pub(super) fn write(
        &self,
        nodes: &[Node],
        value: &Value,
        text: &mut String,
    ) -> Result<(), TemplateError> {
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
        if let [Term::Field(path), Term::Literal(Value::String(name))] = terms
            && path.len() == 1
            && path[0] == "Label"
        {
            return Ok(match self.row {
                // As docker heads such a column.
                Row::Header => name
                    .rsplit('.')
                    .next()
                    .unwrap_or_default()
                    .replace(['-', '_'], " ")
                    .into(),
                Row::Values => value[LABELS].get(name).cloned().unwrap_or_else(|| "".into()),
            });
        }
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
                    known: map
                        .keys()
                        .filter(|key| *key != LABELS)
                        .map(|key| format!(".{key}"))
                        .collect(),
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
