//! What users write for an object: its name, its id, or the beginning of its id that no other has. Pure.

use std::{collections::BTreeMap, ops::Bound, sync::Arc};

use super::error::ApiError;
use crate::objects::{Node, Service, State, Task};

/// How many of several candidates an error names.
const SHOWN: usize = 5;

/// The service that is meant.
pub(super) fn service<'a>(state: &'a State, reference: &str) -> Result<&'a Arc<Service>, ApiError> {
    if let Some(service) = state
        .services()
        .get(reference)
        .or_else(|| state.service_named(reference))
    {
        return Ok(service);
    }
    let found = beginning(state.services(), reference);
    one("service", reference, &found, |service| service.id.as_str())
}

/// The task that is meant.
pub(super) fn task<'a>(state: &'a State, reference: &str) -> Result<&'a Task, ApiError> {
    if let Some(task) = state.tasks().get(reference) {
        return Ok(task);
    }
    let found = beginning(state.tasks(), reference);
    one("task", reference, &found, |task| task.id.as_str())
}

/// The node that is meant, also by its host name if no other has it.
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
        found = beginning(state.nodes(), reference);
    }
    one("node", reference, &found, |node| node.id.as_str())
}

/// Those whose id begins so.
fn beginning<'a, K, V>(objects: &'a BTreeMap<K, V>, reference: &str) -> Vec<&'a V>
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
        [] => Err(ApiError::not_found(format!("there is no {kind} {reference}")).about(kind, reference)),
        [found] => Ok(found),
        several => {
            let ids: Vec<&str> = several.iter().take(SHOWN).map(|found| id(found)).collect();
            let more = if several.len() > SHOWN { ", ..." } else { "" };
            Err(ApiError::bad_request(format!(
                "{reference} can be any of {} {kind}s: {}{more}; use more of the id",
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
    fn an_object_is_found_by_id_name_or_a_beginning_that_only_it_has() {
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
