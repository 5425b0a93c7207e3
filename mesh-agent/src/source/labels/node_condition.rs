//! Conditions on nodes in labels, written as Swarm's placement constraints are. Pure.

use crate::model::{NodeCondition, NodeSubject};

/// Reads a condition such as `node.labels.edge==true`.
pub(super) fn condition(text: &str) -> Option<NodeCondition> {
    let (subject, equal, value) = match (text.split_once("=="), text.split_once("!=")) {
        (Some((subject, value)), None) => (subject, true, value),
        (None, Some((subject, value))) => (subject, false, value),
        (Some(_), Some(_)) | (None, None) => return None,
    };
    let subject = match subject.trim() {
        "node.id" => NodeSubject::Id,
        "node.hostname" => NodeSubject::Hostname,
        "node.role" => NodeSubject::Role,
        other => NodeSubject::Label(
            other
                .strip_prefix("node.labels.")
                .filter(|label| !label.is_empty())?
                .to_owned(),
        ),
    };
    let value = value.trim().to_owned();
    (!value.is_empty()).then_some(NodeCondition {
        subject,
        equal,
        value,
    })
}
