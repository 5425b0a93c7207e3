//! Expands the placeholders that Docker documents for a service's environment, host name and mounts, such as
//! `{{.Task.Slot}}`. Pure.

use std::collections::BTreeMap;

use mesh_orchestrator::objects::{NodeId, Task};

/// What placeholders stand for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Values<'a> {
    pub(super) task: &'a Task,
    pub(super) node: &'a NodeId,
    /// The node's name in the cluster.
    pub(super) hostname: &'a str,
    pub(super) service_labels: &'a BTreeMap<String, String>,
}

/// The text with every known placeholder replaced; unknown ones stay, as the program may have templates of
/// its own.
pub(super) fn expand(text: &str, values: Values<'_>) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(begin) = rest.find("{{") {
        let (before, from) = rest.split_at(begin);
        expanded.push_str(before);
        let Some(end) = from.find("}}") else {
            rest = from;
            break;
        };
        // Go's templates cut space off with dashes.
        let name = from[2..end].trim_matches('-').trim();
        match values.get(name) {
            Some(value) => expanded.push_str(&value),
            None => expanded.push_str(&from[..end + 2]),
        }
        rest = &from[end + 2..];
    }
    expanded.push_str(rest);
    expanded
}

impl Values<'_> {
    fn get(self, name: &str) -> Option<String> {
        let Self { task, node, .. } = self;
        Some(match name {
            ".Service.ID" => task.service.to_string(),
            ".Service.Name" => task.service_name.to_string(),
            ".Task.ID" => task.id.to_string(),
            ".Task.Name" => format!("{}.{}", task.name(), task.id),
            ".Task.Slot" => task.slot.to_string(),
            ".Node.ID" => node.to_string(),
            ".Node.Hostname" => self.hostname.to_owned(),
            _ => return self.label(name),
        })
    }

    /// `.Service.Labels.name`, or `index .Service.Labels "name"` for names that the first form cannot
    /// have. One that the service does not have is empty.
    fn label(self, name: &str) -> Option<String> {
        let quoted = |name: &str| {
            let quotes = ['"', '`'];
            let name = name.trim();
            quotes.iter().find_map(|quote| {
                let name = name.strip_prefix(*quote)?.strip_suffix(*quote)?;
                Some(name.to_owned())
            })
        };
        let label = match name.strip_prefix("index ") {
            Some(rest) => quoted(rest.trim().strip_prefix(".Service.Labels")?)?,
            None => name.strip_prefix(".Service.Labels.")?.to_owned(),
        };
        Some(self.service_labels.get(&label).cloned().unwrap_or_default())
    }
}
