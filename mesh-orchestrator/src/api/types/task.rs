//! Tasks.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::objects::Task;

/// A task, with what of other objects people want to see beside it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TaskView {
    /// As Docker shows it: `web.3`, or `web.<node id>`.
    pub name: String,
    /// The host name of its node; `null` while it has none, or when the node is gone.
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
    fn a_task_view_reads_as_it_is_written_and_beside_fields_of_later_releases() {
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
