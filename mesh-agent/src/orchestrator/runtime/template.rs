//! Expands the placeholders that a specification may contain for values of a task: `{{.Task.Slot}}`. Pure.

use mesh_orchestrator::objects::{NodeId, Task};

/// The text with every known placeholder replaced; unknown ones stay, as the program may have templates of
/// its own.
pub(super) fn expand(text: &str, task: &Task, node: &NodeId) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(begin) = rest.find("{{") {
        let (before, from) = rest.split_at(begin);
        expanded.push_str(before);
        let Some(end) = from.find("}}") else {
            rest = from;
            break;
        };
        match value(from[2..end].trim(), task, node) {
            Some(value) => expanded.push_str(&value),
            None => expanded.push_str(&from[..end + 2]),
        }
        rest = &from[end + 2..];
    }
    expanded.push_str(rest);
    expanded
}

fn value(name: &str, task: &Task, node: &NodeId) -> Option<String> {
    Some(match name {
        ".Service.ID" => task.service.to_string(),
        ".Service.Name" => task.service_name.to_string(),
        ".Task.ID" => task.id.to_string(),
        ".Task.Name" => format!("{}.{}", task.name(), task.id),
        ".Task.Slot" => task.slot.to_string(),
        ".Node.ID" => node.to_string(),
        _ => return None,
    })
}
