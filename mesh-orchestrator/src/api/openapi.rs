//! The OpenAPI document, made from the table of operations and the types' own schemas.

use std::sync::OnceLock;

use axum::response::Response;
use schemars::{SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::{
    call::{Call, ok},
    error::ApiError,
    operation::{Body, Operation, Precondition},
    table::operations,
    types::ErrorAnswer,
};

pub(super) async fn document(_: Call) -> Result<Response, ApiError> {
    static DOCUMENT: OnceLock<Value> = OnceLock::new();
    ok(DOCUMENT.get_or_init(|| describe(&operations())))
}

/// The document for some operations.
fn describe(operations: &[Operation]) -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut schemas = settings.into_generator();
    let mut paths: Map<String, Value> = Map::new();
    for operation in operations {
        let description = describe_one(operation, &mut schemas);
        let path = paths
            .entry(operation.path)
            .or_insert_with(|| Value::Object(Map::new()));
        path[operation.method.as_str().to_ascii_lowercase()] = description;
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "The orchestrator's API",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Services, tasks and nodes. Times are milliseconds since 1970 unless said otherwise.",
            "license": {"name": "MIT OR Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": schemas.take_definitions(true),
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "Not needed on the agent's Unix socket.",
                },
            },
        },
    })
}

fn describe_one(operation: &Operation, schemas: &mut SchemaGenerator) -> Value {
    let mut success = json!({
        "description": operation.answer.status.canonical_reason().unwrap_or_default(),
    });
    if let Some(schema) = operation.answer.schema {
        success["content"] = json!({operation.answer.content_type: {"schema": schema(schemas)}});
    }
    if operation.answer.tagged {
        success["headers"] = json!({
            "ETag": {"description": "The service's revision.", "schema": {"type": "string"}},
        });
    }
    let failure = schemas.subschema_for::<ErrorAnswer>();
    let mut description = json!({
        "operationId": operation.id,
        "summary": operation.summary,
        "parameters": parameters(operation),
        "responses": {
            operation.answer.status.as_str(): success,
            "default": {
                "description": "It was not done.",
                "content": {"application/json": {"schema": failure}},
            },
        },
    });
    match operation.body {
        Body::None => {}
        Body::Ignored { .. } => {
            description["requestBody"] = json!({
                "description": "Anything; it is not looked at.",
                "content": {"*/*": {}},
            });
        }
        Body::Json {
            schema,
            content_type,
            optional,
            ..
        } => {
            description["requestBody"] = json!({
                "required": !optional,
                "content": {content_type: {"schema": schema(schemas)}},
            });
        }
    }
    match operation.needs {
        Some(scope) => {
            description["security"] = json!([{"token": []}]);
            description["description"] = format!("Needs the scope `{scope}`.").into();
        }
        None => description["security"] = json!([]),
    }
    description
}

fn parameters(operation: &Operation) -> Vec<Value> {
    let segments = operation.path.split('/').filter_map(|segment| {
        let name = segment.strip_prefix('{')?.strip_suffix('}')?;
        Some(json!({
            "name": name,
            "in": "path",
            "required": true,
            "description": segment_meaning(name),
            "schema": {"type": "string"},
        }))
    });
    let arguments = operation.arguments.iter().map(|argument| {
        let schema = if argument.repeats {
            json!({"type": "array", "items": {"type": "string"}})
        } else {
            json!({"type": "string"})
        };
        json!({
            "name": argument.name,
            "in": "query",
            "description": argument.description,
            "schema": schema,
        })
    });
    let precondition = (operation.precondition != Precondition::None).then(|| {
        json!({
            "name": "If-Match",
            "in": "header",
            "required": operation.precondition == Precondition::Required,
            "description": "The ETag of what was read: nothing is changed if somebody else was faster.",
            "schema": {"type": "string"},
        })
    });
    segments.chain(arguments).chain(precondition).collect()
}

fn segment_meaning(name: &str) -> &'static str {
    match name {
        "service" | "secret" | "config" => "Its name, its id, or a beginning of its id that no other has.",
        "node" => "Its host name, its id, or a beginning of its id that no other has.",
        "task" => "Its id, or a beginning of it that no other has.",
        "revision" => "A revision's number.",
        "host" => "The registry's address: `registry.example.com:5000`.",
        _ => "Its name.",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use axum::http::StatusCode;

    use super::*;

    #[test]
    fn every_reference_of_the_document_leads_somewhere() {
        let document = describe(&operations());
        let mut references = BTreeSet::new();
        collect(&document, &mut references);
        assert!(references.len() > 30, "{references:?}");
        for reference in references {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
    }

    #[test]
    fn answers_may_get_more_fields_later() {
        let document = describe(&operations());
        for name in [
            "ServiceView",
            "TaskView",
            "NodeView",
            "SnapshotDetail",
            "TokenCreated",
        ] {
            let schema = &document["components"]["schemas"][name];
            assert!(schema["properties"].is_object(), "{name}: {schema}");
            for closed in ["additionalProperties", "unevaluatedProperties"] {
                assert_ne!(schema[closed], Value::Bool(false), "{name}");
            }
        }
        let task = &document["components"]["schemas"]["TaskView"]["properties"];
        assert!(
            task["id"].is_object() && task["node_hostname"].is_object(),
            "{task}"
        );
    }

    fn collect(value: &Value, references: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    match value {
                        Value::String(text) if name == "$ref" => drop(references.insert(text.clone())),
                        other => collect(other, references),
                    }
                }
            }
            Value::Array(values) => values.iter().for_each(|value| collect(value, references)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    #[test]
    fn operations_have_names_of_their_own_and_only_two_need_no_token() {
        let operations = operations();
        let ids: BTreeSet<&str> = operations.iter().map(|operation| operation.id).collect();
        assert_eq!(ids.len(), operations.len());
        let open: Vec<&str> = operations
            .iter()
            .filter(|operation| operation.needs.is_none())
            .map(|operation| operation.path)
            .collect();
        assert_eq!(open, ["/v1/webhooks/{secret}", "/v1/openapi.json"]);
        assert!(
            operations
                .iter()
                .all(|operation| operation.answer.status < StatusCode::BAD_REQUEST)
        );
    }
}
