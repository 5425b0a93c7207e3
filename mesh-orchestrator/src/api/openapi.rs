//! The OpenAPI document, generated from the operations and the schemas of their types.

use schemars::{SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::{
    input::{Body, Precondition},
    operation::Operation,
    types::ErrorAnswer,
};

/// The document that describes the operations.
pub(super) fn describe(operations: &[Operation]) -> Value {
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
            "title": "Orchestrator API",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Services, tasks and nodes. Times are milliseconds since 1970 unless stated otherwise.",
            "license": {"name": "MIT OR Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": schemas.take_definitions(true),
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "Not required on the agent's Unix socket.",
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
            "ETag": {"description": "The revision of the service.", "schema": {"type": "string"}},
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
                "description": "The request failed.",
                "content": {"application/json": {"schema": failure}},
            },
        },
    });
    match operation.input.body {
        Body::None => {}
        Body::Ignored { .. } => {
            description["requestBody"] = json!({
                "description": "Any body; it is ignored.",
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
            description["description"] = format!("Requires the scope `{scope}`.").into();
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
    let arguments = operation.input.arguments.iter().map(|argument| {
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
    let precondition = (operation.input.precondition != Precondition::None).then(|| {
        json!({
            "name": "If-Match",
            "in": "header",
            "required": operation.input.precondition == Precondition::Required,
            "description": "The ETag that was read: the request fails if the service has changed since.",
            "schema": {"type": "string"},
        })
    });
    segments.chain(arguments).chain(precondition).collect()
}

fn segment_meaning(name: &str) -> &'static str {
    match name {
        "service" | "secret" | "config" => "Its name, its id, or a unique prefix of its id.",
        "node" => "Its host name, its id, or a unique prefix of its id.",
        "task" => "Its id, or a unique prefix of it.",
        "revision" => "The number of a revision.",
        "host" => "The address of the registry: `registry.example.com:5000`.",
        _ => "Its name.",
    }
}
