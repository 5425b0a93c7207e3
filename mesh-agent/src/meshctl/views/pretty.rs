//! Lines of docker's `--pretty` texts. Pure.

use std::{
    collections::BTreeMap,
    fmt::{Display, Write as _},
};

/// A text that grows by lines.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pretty {
    text: String,
}

impl Pretty {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// One more line.
    pub(crate) fn line(&mut self, line: impl Display) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "{line}");
    }

    /// A line, unless the value is empty.
    pub(crate) fn field(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.line(format_args!("{name}{value}"));
        }
    }

    /// A title and a line for each label; nothing where there is none.
    pub(crate) fn labels(&mut self, title: &str, indent: &str, labels: &BTreeMap<String, String>) {
        if labels.is_empty() {
            return;
        }
        self.line(title);
        for (name, value) in labels {
            if value.is_empty() {
                self.line(format_args!("{indent}{name}"));
            } else {
                self.line(format_args!("{indent}{name}={value}"));
            }
        }
    }

    /// The text.
    pub(crate) fn finish(self) -> String {
        self.text
    }
}
