//! The label that gives a service's replicas weights by their nodes. Pure.

use super::{LabelError, MAX_WEIGHT, node_condition::condition, within};
use crate::{
    docker::api::Labels,
    model::{NodeWeight, Weights},
};

/// Conditions on nodes, and the weight of the service's replicas there.
const WEIGHTS: &str = "mesh.weights";

/// The weights that a service's label asks for, and what of the label is invalid.
pub(super) fn weights(name: &str, labels: &Labels) -> (Weights, Vec<LabelError>) {
    let mut errors = Vec::new();
    let value = labels.get(WEIGHTS).map_or("", String::as_str);
    let entries = value.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    let weights = entries.filter_map(|entry| {
        let found = node_weight(entry);
        if found.is_none() {
            let expected = format!(
                "CONDITION:WEIGHT like node.labels.size==big:3, with a weight from 1 to {MAX_WEIGHT}"
            );
            errors.push(LabelError::of_service(
                name,
                WEIGHTS,
                entry,
                expected,
                "the others",
            ));
        }
        found
    });
    let weights = Weights(weights.collect());
    (weights, errors)
}

fn node_weight(text: &str) -> Option<NodeWeight> {
    let (of, weight) = text.rsplit_once(':')?;
    Some(NodeWeight {
        condition: condition(of)?,
        weight: within(weight, MAX_WEIGHT)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(value: &str) -> (Weights, Vec<String>) {
        let labels = [(WEIGHTS.to_owned(), value.to_owned())].into();
        let (weights, errors) = weights("web", &labels);
        (weights, errors.iter().map(LabelError::to_string).collect())
    }

    #[test]
    fn weights_are_read_in_their_order() {
        let (weights, errors) = of("node.labels.size==big:3, node.hostname != node2 : 100,node.id==a:b:1");
        assert!(errors.is_empty(), "{errors:?}");
        assert_eq!(
            weights.to_string(),
            "node.labels.size==big:3,node.hostname!=node2:100,node.id==a:b:1"
        );
        assert_eq!(of(""), (Weights::default(), vec![]));
    }

    #[test]
    fn what_is_none_is_reported_and_the_others_hold() {
        for entry in [
            "3",
            "node2:3",
            "node.hostname==node2",
            "node.hostname==node2:",
            "node.hostname==node2:0",
            "node.hostname==node2:101",
            "node.hostname==node2:-1",
            "node.platform.os==linux:2",
            "node.hostname==:2",
        ] {
            let (weights, errors) = of(&format!("{entry},node.role==manager:2"));
            assert_eq!(weights.to_string(), "node.role==manager:2", "{entry}");
            let start = format!("label mesh.weights={entry} of service web: expected CONDITION:WEIGHT");
            assert!(
                errors.len() == 1
                    && errors[0].starts_with(&start)
                    && errors[0].ends_with("; using the others"),
                "{errors:?}"
            );
        }
    }
}
