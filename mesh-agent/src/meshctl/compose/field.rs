//! A value in a compose file with its place, so that whatever is wrong with it can be named. Pure.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Map, Value};

use super::ComposeError;
use crate::meshctl::flags::units;

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Field<'a> {
    pub(super) path: String,
    pub(super) value: &'a Value,
}

impl<'a> Field<'a> {
    pub(super) fn new(path: impl Into<String>, value: &'a Value) -> Self {
        Self {
            path: path.into(),
            value,
        }
    }

    /// The error that says what is wrong here.
    pub(super) fn refuse(&self, why: impl Into<String>) -> ComposeError {
        ComposeError::refused(&self.path, why)
    }

    fn refuse_type(&self, wanted: &str) -> ComposeError {
        let found = match self.value {
            Value::Null => "nothing".to_owned(),
            Value::Array(_) => "a list".to_owned(),
            Value::Object(_) => "a map".to_owned(),
            other => other.to_string(),
        };
        self.refuse(format!("{wanted} is needed, not {found}"))
    }

    pub(super) fn is_null(&self) -> bool {
        self.value.is_null()
    }

    /// The keys with their fields; nothing is an empty map.
    pub(super) fn map(&self) -> Result<Vec<(&'a str, Field<'a>)>, ComposeError> {
        match self.value {
            Value::Null => Ok(Vec::new()),
            Value::Object(map) => Ok(self.entries(map)),
            _ => Err(self.refuse_type("a map")),
        }
    }

    fn entries(&self, map: &'a Map<String, Value>) -> Vec<(&'a str, Field<'a>)> {
        map.iter()
            .map(|(key, value)| (key.as_str(), Field::new(format!("{}.{key}", self.path), value)))
            .collect()
    }

    /// The items; nothing is an empty list.
    pub(super) fn list(&self) -> Result<Vec<Field<'a>>, ComposeError> {
        match self.value {
            Value::Null => Ok(Vec::new()),
            Value::Array(list) => Ok(list
                .iter()
                .enumerate()
                .map(|(index, value)| Field::new(format!("{}[{index}]", self.path), value))
                .collect()),
            _ => Err(self.refuse_type("a list")),
        }
    }

    /// The items, or the field itself if it is no list.
    pub(super) fn one_or_more(&self) -> Result<Vec<Field<'a>>, ComposeError> {
        match self.value {
            Value::Array(_) | Value::Null => self.list(),
            _ => Ok(vec![self.clone()]),
        }
    }

    /// A text; numbers and truths are taken as they are written.
    pub(super) fn text(&self) -> Result<String, ComposeError> {
        match self.value {
            Value::String(text) => Ok(text.clone()),
            Value::Number(_) | Value::Bool(_) => Ok(self.value.to_string()),
            Value::Null | Value::Array(_) | Value::Object(_) => Err(self.refuse_type("a text")),
        }
    }

    pub(super) fn texts(&self) -> Result<Vec<String>, ComposeError> {
        self.list()?.iter().map(Field::text).collect()
    }

    pub(super) fn truth(&self) -> Result<bool, ComposeError> {
        match self.value {
            Value::Bool(truth) => Ok(*truth),
            Value::String(text) if text == "true" => Ok(true),
            Value::String(text) if text == "false" => Ok(false),
            _ => Err(self.refuse_type("true or false")),
        }
    }

    /// A whole number, also as a text (a variable makes texts).
    pub(super) fn number<T: std::str::FromStr>(&self) -> Result<T, ComposeError> {
        self.text()?
            .trim()
            .parse()
            .map_err(|_| self.refuse_type("a number"))
    }

    pub(super) fn duration(&self) -> Result<Duration, ComposeError> {
        units::time(&self.text()?).map_err(|why| self.refuse(why))
    }

    pub(super) fn bytes(&self) -> Result<u64, ComposeError> {
        units::bytes(&self.text()?).map_err(|why| self.refuse(why))
    }

    pub(super) fn nano_cpus(&self) -> Result<u64, ComposeError> {
        units::nano_cpus(&self.text()?).map_err(|why| self.refuse(why))
    }

    /// One of some words.
    pub(super) fn word<T: Copy>(&self, words: &[(&str, T)]) -> Result<T, ComposeError> {
        let text = self.text()?;
        words
            .iter()
            .find(|(word, _)| *word == text)
            .map(|(_, meaning)| *meaning)
            .ok_or_else(|| {
                let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
                self.refuse(format!("{text:?} is not possible: use {}", known.join(", ")))
            })
    }

    /// Names and values: a map, or a list of `name=value`. `None` where no value is given.
    pub(super) fn pairs(&self) -> Result<Vec<(String, Option<String>)>, ComposeError> {
        if let Value::Array(_) = self.value {
            return self
                .list()?
                .iter()
                .map(|item| {
                    let text = item.text()?;
                    Ok(match text.split_once('=') {
                        Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                        None => (text, None),
                    })
                })
                .collect();
        }
        self.map()?
            .into_iter()
            .map(|(name, field)| {
                let value = if field.is_null() {
                    None
                } else {
                    Some(field.text()?)
                };
                Ok((name.to_owned(), value))
            })
            .collect()
    }

    /// Names and values, where no value is an empty one.
    pub(super) fn labels(&self) -> Result<BTreeMap<String, String>, ComposeError> {
        let pairs = self.pairs()?.into_iter();
        Ok(pairs
            .map(|(name, value)| (name, value.unwrap_or_default()))
            .collect())
    }

    /// The program and its arguments: a list, or a line that is split as a shell does.
    pub(super) fn command(&self) -> Result<Vec<String>, ComposeError> {
        match self.value {
            Value::String(line) => {
                shlex::split(line).ok_or_else(|| self.refuse("there is a quote that is not closed"))
            }
            _ => self.texts(),
        }
    }

    /// A key that nobody knows.
    pub(super) fn unknown(&self, key: &str, known: &[&str]) -> ComposeError {
        let nearest = known
            .iter()
            .map(|name| (strsim::damerau_levenshtein(key, name), *name))
            .min()
            .filter(|(distance, name)| *distance <= 1 + name.len() / 3);
        self.refuse(match nearest {
            Some((_, name)) => format!("no compose file has such a key: did you mean {name:?}?"),
            None => "no compose file has such a key".to_owned(),
        })
    }

    /// A key that compose files may have, but that cannot be done here.
    pub(super) fn unsupported(&self, instead: &str) -> ComposeError {
        self.refuse(format!(
            "this is not supported{}{instead}",
            if instead.is_empty() { "" } else { ": " }
        ))
    }
}
