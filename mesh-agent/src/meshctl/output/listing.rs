//! A list as the docker CLI prints it: columns, JSON lines, a template, or ids alone. Pure.

use std::io::Write as _;

use serde_json::{Map, Value};
use tabwriter::TabWriter;

use super::template::{Row, Template, TemplateError, json};

/// A kind of list: its fields with their headers, and the template of its table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// Docker's names of the fields, and their column headers.
    pub(crate) fields: &'static [(&'static str, &'static str)],
    /// The template of the default columns.
    pub(crate) table: &'static str,
    /// The template of a row with `--quiet`.
    pub(crate) quiet: &'static str,
    /// The lines of a row with docker's `--format raw`: name and field. The first is the id.
    pub(crate) raw: &'static [(&'static str, &'static str)],
}

/// The format of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// The layout's columns.
    Table,
    /// One JSON object a line.
    Json,
    /// Names and values, one line each.
    Raw,
    /// The user's columns, with a header.
    TableOf(String),
    /// The user's template, once for each row.
    Template(String),
}

impl Format {
    /// The value of `--format`; the table without it.
    pub(crate) fn of(text: Option<&str>) -> Self {
        match text.map(str::trim) {
            None | Some("" | "table") => Self::Table,
            Some("json") => Self::Json,
            Some("raw") => Self::Raw,
            Some(text) => match text.strip_prefix("table") {
                Some(columns) if columns.starts_with([' ', '\t']) || columns.starts_with("{{") => {
                    Self::TableOf(columns.trim_matches(' ').to_owned())
                }
                _ => Self::Template(text.to_owned()),
            },
        }
    }
}

impl Layout {
    /// One row: each field's value, in the order of the layout's fields.
    pub(crate) fn row(&self, values: impl IntoIterator<Item = Value>) -> Value {
        let names = self.fields.iter().map(|(name, _)| (*name).to_owned());
        Value::Object(names.zip(values).collect())
    }

    /// The list's text, each row on a line of its own.
    ///
    /// # Errors
    /// If the user's template names an unknown field.
    pub(crate) fn render(
        &self,
        rows: &[Value],
        format: &Format,
        quiet: bool,
    ) -> Result<String, TemplateError> {
        let with_header = |columns: &str| self.columns(rows, &Template::parse(columns)?);
        match format {
            Format::Table if quiet => each(rows, &Template::parse(self.quiet)?),
            Format::Table => with_header(self.table),
            Format::TableOf(columns) => with_header(columns),
            Format::Json => Ok(rows.iter().map(|row| format!("{}\n", json(row))).collect()),
            Format::Raw => match (self.raw, quiet) {
                ([], _) => each(rows, &Template::parse("raw")?),
                ([(key, field), ..], true) => {
                    each(rows, &Template::parse(&format!("{key}: {{{{.{field}}}}}"))?)
                }
                (fields, false) => {
                    let lines: Vec<String> = fields
                        .iter()
                        .map(|(key, field)| format!("{key}: {{{{.{field}}}}}\n"))
                        .collect();
                    each(rows, &Template::parse(&lines.concat())?)
                }
            },
            Format::Template(template) => {
                let template = Template::parse(template)?;
                if rows.is_empty() {
                    // Report an unknown field even if there are no rows.
                    template.render(&self.header(), Row::Header)?;
                }
                each(rows, &template)
            }
        }
    }

    fn columns(&self, rows: &[Value], template: &Template) -> Result<String, TemplateError> {
        let mut text = template.render(&self.header(), Row::Header)?;
        text.push('\n');
        text.push_str(&each(rows, template)?);
        Ok(aligned(&text))
    }

    fn header(&self) -> Value {
        let header = self
            .fields
            .iter()
            .map(|(name, header)| ((*name).to_owned(), (*header).into()));
        Value::Object(header.collect::<Map<_, _>>())
    }
}

fn each(rows: &[Value], template: &Template) -> Result<String, TemplateError> {
    let mut text = String::new();
    for row in rows {
        text.push_str(&template.render(row, Row::Values)?);
        text.push('\n');
    }
    Ok(text)
}

/// Columns at tabs: ten wide at least, three spaces between them, as docker's.
pub(crate) fn aligned(text: &str) -> String {
    const GAP: usize = 3;
    const LEAST: usize = 10;
    let mut writer = TabWriter::new(Vec::new()).minwidth(LEAST - GAP).padding(GAP);
    let written = writer.write_all(text.as_bytes()).and_then(|()| writer.flush());
    let bytes = match (written, writer.into_inner()) {
        (Ok(()), Ok(bytes)) => bytes,
        // Writing to memory does not fail; the text says the same, less neatly.
        _ => text.as_bytes().to_vec(),
    };
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout = Layout {
        fields: &[("Name", "NAME"), ("Node", "NODE"), ("Ports", "PORTS")],
        table: r"{{.Name}}\t{{.Node}}\t{{.Ports}}",
        quiet: "{{.Name}}",
        raw: &[("name", "Name"), ("node", "Node")],
    };

    fn rows() -> Vec<Value> {
        [["foobar_baz", "foo1", ""], ["foobar_bar", "foo2", "*:80->80/tcp"]]
            .map(|values| LAYOUT.row(values.map(Value::from)))
            .to_vec()
    }

    fn render(format: &str, quiet: bool) -> String {
        LAYOUT.render(&rows(), &Format::of(Some(format)), quiet).unwrap()
    }

    #[test]
    fn columns_are_ten_wide_at_least_with_three_spaces_between() {
        assert_eq!(
            render("table", false),
            "NAME         NODE      PORTS\n\
             foobar_baz   foo1      \n\
             foobar_bar   foo2      *:80->80/tcp\n"
        );
        assert_eq!(
            render(r"table {{.Node}}\t{{upper .Name}}", false),
            "NODE      NAME\nfoo1      FOOBAR_BAZ\nfoo2      FOOBAR_BAR\n"
        );
    }

    #[test]
    fn json_is_one_object_a_line_and_a_template_once_a_row() {
        assert_eq!(
            render("json", false).lines().next(),
            Some(r#"{"Name":"foobar_baz","Node":"foo1","Ports":""}"#)
        );
        assert_eq!(
            render("{{.Name}}@{{.Node}}", false),
            "foobar_baz@foo1\nfoobar_bar@foo2\n"
        );
        assert_eq!(render("", true), "foobar_baz\nfoobar_bar\n");
        assert_eq!(
            render("raw", false),
            "name: foobar_baz\nnode: foo1\n\nname: foobar_bar\nnode: foo2\n\n"
        );
        assert_eq!(render("raw", true), "name: foobar_baz\nname: foobar_bar\n");
    }

    #[test]
    fn an_unknown_field_is_refused_though_there_is_no_row() {
        let error = LAYOUT
            .render(&[], &Format::of(Some("{{.Nme}}")), false)
            .unwrap_err();
        assert!(error.to_string().contains(".Name, .Node, .Ports"), "{error}");
    }
}
