//! Nodes: list, inspect, modify, remove, and the key of the packets between them.

use axum::{http::StatusCode, response::Response};

use super::{
    Api,
    call::Call,
    error::ApiError,
    reference,
    respond::{json, no_content, ok},
    types::{NodePatch, NodeView, WorkerAdmission},
    views,
};
use crate::{commands, objects::NodeId, spec::SpecError};

/// Longest name of a label.
const MAX_LABEL_NAME: usize = 255;

/// Longest value of a label.
const MAX_LABEL_VALUE: usize = 4096;

pub(super) async fn list(call: Call) -> Result<Response, ApiError> {
    let leader = call.api.cluster().leader();
    let mut registrations = call.api.cluster().registrations();
    let mut views: Vec<NodeView> = call.api.cluster().read(|state| {
        state
            .nodes()
            .values()
            .map(|node| views::node(state, node, leader.as_ref(), registrations.remove(&node.id)))
            .collect()
    });
    views.sort_by(|one, other| {
        (&one.node.hostname, &one.node.id).cmp(&(&other.node.hostname, &other.node.id))
    });
    ok(&views)
}

pub(super) async fn inspect(call: Call) -> Result<Response, ApiError> {
    let id = find(&call)?;
    ok(&view(&call.api, &id)?)
}

pub(super) async fn admit(call: Call) -> Result<Response, ApiError> {
    let WorkerAdmission { name, labels } = call.json()?;
    for (label, value) in &labels {
        check_label(label, Some(value))?;
    }
    call.api
        .cluster()
        .change(call.author("admit"), |state, now| {
            commands::admit_worker(state, &name, &labels, now)
        })
        .await?;
    json(
        StatusCode::CREATED,
        &view(&call.api, &commands::worker_id(&name))?,
    )
}

pub(super) async fn modify(call: Call) -> Result<Response, ApiError> {
    let NodePatch { availability, labels } = call.json()?;
    for (name, value) in &labels {
        check_label(name, value.as_deref())?;
    }
    let id = find(&call)?;
    let author = call.author("update");
    call.api
        .cluster()
        .change(author, |state, now| {
            commands::modify_node(state, &id, availability, &labels, now)
        })
        .await?;
    ok(&view(&call.api, &id)?)
}

pub(super) async fn remove(call: Call) -> Result<Response, ApiError> {
    let id = find(&call)?;
    let force = call.switch("force")?;
    call.api
        .cluster()
        .change(call.author("remove"), |state, _| {
            commands::remove_node(state, &id, force)
        })
        .await?;
    no_content()
}

pub(super) async fn rotate_tunnel_key(call: Call) -> Result<Response, ApiError> {
    let now = call.api.cluster().clock().now();
    call.api.vault().rotate_tunnel_secret(now).await?;
    no_content()
}

fn find(call: &Call) -> Result<NodeId, ApiError> {
    let name = call.segment("node");
    call.api
        .cluster()
        .read(|state| reference::node(state, name).map(|node| node.id.clone()))
}

fn view(api: &Api, id: &NodeId) -> Result<NodeView, ApiError> {
    let leader = api.cluster().leader();
    let registration = api.cluster().registration(id);
    api.cluster().read(|state| {
        let node = state
            .nodes()
            .get(id)
            .ok_or_else(|| ApiError::not_found(format!("node {id} no longer exists")))?;
        Ok(views::node(state, node, leader.as_ref(), registration))
    })
}

/// Labels are used in constraints, whose keys allow only such names.
fn check_label(name: &str, value: Option<&str>) -> Result<(), SpecError> {
    let allowed =
        |character: char| character.is_ascii_alphanumeric() || matches!(character, '.' | '-' | '_' | '/');
    if name.is_empty() || name.len() > MAX_LABEL_NAME || !name.chars().all(allowed) {
        return Err(SpecError::invalid(
            "labels",
            name,
            format!("1 to {MAX_LABEL_NAME} letters, digits, '.', '-', '_' or '/'"),
        ));
    }
    if value.is_some_and(|value| value.len() > MAX_LABEL_VALUE || value.chars().any(char::is_control)) {
        return Err(SpecError::invalid(
            format!("labels.{name}"),
            "",
            format!("at most {MAX_LABEL_VALUE} bytes without control characters"),
        ));
    }
    Ok(())
}
