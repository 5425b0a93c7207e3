//! Tests of the table and of the document generated from it.

use std::collections::BTreeSet;

use axum::http::StatusCode;
use serde_json::Value;

use super::*;

#[test]
fn every_reference_of_the_document_resolves() {
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
fn schemas_of_answers_allow_additional_fields() {
    let document = describe(&operations());
    for name in [
        "ServiceView",
        "TaskView",
        "NodeView",
        "BackupDetail",
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
fn operations_have_unique_ids_and_only_two_need_no_token() {
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
