//! Finds the object that a user refers to by its name, its id, or a unique prefix of its id. Pure.

use std::{collections::BTreeMap, ops::Bound, sync::Arc};

use super::error::ApiError;
use crate::objects::{Node, Service, State, Task};

/// Maximum number of candidates that an error lists.
const SHOWN: usize = 5;

/// The service with a name, id or unique prefix of an id.
pub(super) fn service<'a>(state: &'a State, reference: &str) -> Result<&'a Arc<Service>, ApiError> {
    if let Some(service) = state
        .services()
        .get(reference)
        .or_else(|| state.service_named(reference))
    {
        return Ok(service);
    }
    let found = with_prefix(state.services(), reference);
    one("service", reference, &found, |service| service.id.as_str())
}

/// The task with an id or unique prefix of an id.
pub(super) fn task<'a>(state: &'a State, reference: &str) -> Result<&'a Task, ApiError> {
    if let Some(task) = state.tasks().get(reference) {
        return Ok(task);
    }
    let found = with_prefix(state.tasks(), reference);
    one("task", reference, &found, |task| task.id.as_str())
}

/// The node with an id, unique host name or unique prefix of an id.
pub(super) fn node<'a>(state: &'a State, reference: &str) -> Result<&'a Node, ApiError> {
    if let Some(node) = state.nodes().get(reference) {
        return Ok(node);
    }
    let mut found: Vec<&Node> = state
        .nodes()
        .values()
        .filter(|node| node.hostname == reference)
        .collect();
    if found.is_empty() {
        found = with_prefix(state.nodes(), reference);
    }
    one("node", reference, &found, |node| node.id.as_str())
}

/// The objects whose id starts with a non-empty prefix.
fn with_prefix<'a, K, V>(objects: &'a BTreeMap<K, V>, reference: &str) -> Vec<&'a V>
where
    K: Ord + std::borrow::Borrow<str>,
{
    if reference.is_empty() {
        return Vec::new();
    }
    objects
        .range::<str, _>((Bound::Included(reference), Bound::Unbounded))
        .take_while(|(id, _)| (*id).borrow().starts_with(reference))
        .map(|(_, object)| object)
        .collect()
}

fn one<'a, T: ?Sized>(
    kind: &str,
    reference: &str,
    found: &[&'a T],
    id: impl Fn(&T) -> &str,
) -> Result<&'a T, ApiError> {
    match found {
        [] => Err(ApiError::not_found(format!("no such {kind}: {reference}")).about(kind, reference)),
        [found] => Ok(found),
        several => {
            let ids: Vec<&str> = several.iter().take(SHOWN).map(|found| id(found)).collect();
            let more = if several.len() > SHOWN { ", ..." } else { "" };
            Err(ApiError::bad_request(format!(
                "{reference} matches {} {kind}s ({}{more}): use a longer prefix of the id",
                several.len(),
                ids.join(", ")
            ))
            .about(kind, reference))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::{NodeId, ObjectChange};

    fn state(nodes: &[(&str, &str)]) -> State {
        let mut state = State::default();
        for (id, hostname) in nodes {
            let node: Node =
                serde_json::from_value(serde_json::json!({"id": id, "hostname": hostname})).unwrap();
            state.apply(&ObjectChange::PutNode(Box::new(node))).unwrap();
        }
        state
    }

    #[test]
    fn an_object_is_found_by_id_name_or_unique_prefix() {
        let state = state(&[("abc1", "n1"), ("abd2", "n2"), ("xyz", "n2")]);
        let found = |reference: &str| node(&state, reference).map(|node| node.id.clone());
        assert_eq!(found("abc1").unwrap(), NodeId::from("abc1"));
        assert_eq!(found("n1").unwrap(), NodeId::from("abc1"));
        assert_eq!(found("abd").unwrap(), NodeId::from("abd2"));
        for (reference, status) in [("ab", 400), ("n2", 400), ("q", 404), ("", 404)] {
            assert_eq!(found(reference).unwrap_err().status(), status, "{reference}");
        }
    }
}
