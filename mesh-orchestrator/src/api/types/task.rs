//! Tasks.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::objects::Task;

/// A task, with its name and the host name of its node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TaskView {
    /// As Docker shows it: `web.3`, or `web.<node id>`.
    pub name: String,
    /// The host name of its node; `null` if it has no node, or the node was removed.
    #[serde(default)]
    pub node_hostname: Option<String>,
    /// The task.
    #[serde(flatten)]
    pub task: Task,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_view_is_parsed_back_and_with_unknown_fields() {
        let json = serde_json::json!({
            "name": "web.1", "node_hostname": "n1", "later": true,
            "id": "t", "service": "s", "service_name": "web", "slot": {"number": 1},
            "spec": {"container_spec": {"image": "nginx"}}, "spec_version": 1, "desired": "running",
            "status": {"state": "running", "at": 5}, "created_at": 1,
        });
        let view: TaskView = serde_json::from_value(json).unwrap();
        assert_eq!(view.task.name(), "web.1");
        let written = serde_json::to_value(&view).unwrap();
        assert_eq!(written["id"], "t");
        assert_eq!(serde_json::from_value::<TaskView>(written).unwrap(), view);
    }
}
