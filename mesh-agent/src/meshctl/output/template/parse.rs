//! Reading a template: texts and actions, actions as pipelines of terms. Pure.

use super::{Node, Pipeline, Template, TemplateError, Term};

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
}

enum Piece {
    Text(String),
    Action(String),
}

pub(super) fn syntax(at: &str, why: impl Into<String>) -> TemplateError {
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
