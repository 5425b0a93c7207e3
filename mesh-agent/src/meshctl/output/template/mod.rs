//! The part of Go's templates that `--format` needs: fields, `if`, `range`, pipes and docker's functions,
//! over a JSON value. Pure.

mod evaluate;
mod functions;
mod parse;
mod values;

use std::time::Duration;

use serde_json::Value;

use self::evaluate::Scope;
pub(crate) use self::functions::{json, shown};

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

/// Where a row has labels that `.Label "name"` asks for. No path finds it, and `json` does not show it.
pub(crate) const LABELS: &str = ".labels";

/// A length of time in a value for templates: printed as Go does, a number of nanoseconds in JSON.
const NANOSECONDS: &str = ".nanoseconds";

/// A length of time for templates.
pub(crate) fn nanoseconds(duration: Duration) -> Value {
    let count = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    Value::Object([(NANOSECONDS.to_owned(), count.into())].into_iter().collect())
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
