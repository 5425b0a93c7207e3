//! All operations of the API.

mod objects;
mod services;

use axum::http::Method;

use super::operation::Operation;

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
    ]
    .concat()
}
