//! Tasks: list and inspect.

use axum::response::Response;

use super::{call::Call, error::ApiError, reference, respond::ok, types::TaskView, views};
use crate::objects::{NodeId, ServiceId, State};

pub(super) async fn of_service(call: Call) -> Result<Response, ApiError> {
    let name = call.segment("service");
    let views = call.api.cluster().read(|state| {
        // Tasks of a removed service are not found by its name.
        let id = reference::service(state, name)?.id.clone();
        Ok::<_, ApiError>(views(state, Some(&id), None))
    })?;
    ok(&views)
}

pub(super) async fn list(call: Call) -> Result<Response, ApiError> {
    let views = call.api.cluster().read(|state| {
        let service = match call.argument("service") {
            Some(name) => Some(reference::service(state, name)?.id.clone()),
            None => None,
        };
        let node = match call.argument("node") {
            Some(name) => Some(reference::node(state, name)?.id.clone()),
            None => None,
        };
        Ok::<_, ApiError>(views(state, service.as_ref(), node.as_ref()))
    })?;
    ok(&views)
}

pub(super) async fn inspect(call: Call) -> Result<Response, ApiError> {
    let view = call.api.cluster().read(|state| {
        let task = reference::task(state, call.segment("task"))?;
        Ok::<_, ApiError>(views::task(state, task))
    })?;
    ok(&view)
}

/// By service and slot, the newest of each slot first.
fn views(state: &State, service: Option<&ServiceId>, node: Option<&NodeId>) -> Vec<TaskView> {
    let mut tasks: Vec<_> = state
        .tasks()
        .values()
        .filter(|task| service.is_none_or(|service| task.service == *service))
        .filter(|task| node.is_none_or(|node| task.node.as_ref() == Some(node)))
        .collect();
    tasks.sort_by(|one, other| {
        (&one.service_name, &one.slot, other.created_at, &one.id).cmp(&(
            &other.service_name,
            &other.slot,
            one.created_at,
            &other.id,
        ))
    });
    tasks.into_iter().map(|task| views::task(state, task)).collect()
}
