//! All operations of the API.

mod objects;
mod services;
#[cfg(test)]
mod tests;

use std::sync::OnceLock;

use axum::{
    http::{Method, StatusCode},
    response::Response,
};
use serde_json::Value;

use super::{call::Call, error::ApiError, openapi::describe, operation::Operation, respond::ok};

const GET: Method = Method::GET;
const POST: Method = Method::POST;
const PUT: Method = Method::PUT;
const PATCH: Method = Method::PATCH;
const DELETE: Method = Method::DELETE;

/// All of them.
pub(super) fn operations() -> Vec<Operation> {
    [
        services::services_and_tasks(),
        services::webhook_operations(),
        objects::nodes_and_files(),
        objects::operator(),
        vec![description()],
    ]
    .concat()
}

fn description() -> Operation {
    Operation::new(
        GET,
        "/v1/openapi.json",
        "describe",
        "This description, as OpenAPI 3.1.",
        document,
    )
    .open()
    .answers::<Value>(StatusCode::OK)
}

async fn document(_: Call) -> Result<Response, ApiError> {
    static DOCUMENT: OnceLock<Value> = OnceLock::new();
    ok(DOCUMENT.get_or_init(|| describe(&operations())))
}
