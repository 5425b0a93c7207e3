//! Validates a specification with the runtime `agent`, which may set only a few fields.

use crate::spec::{ContainerSpec, ServiceMode, ServiceSpec, SpecError, TaskRuntime, UpdateOrder};

/// Refuses settings that do not apply to the agent, which runs directly on the node and not in a container.
///
/// # Errors
/// If such a field is set. The error names the first one, its value and what is allowed.
pub(super) fn check_agent(spec: &ServiceSpec) -> Result<(), SpecError> {
    let task = &spec.task_template;
    match task.runtime {
        TaskRuntime::Container => return Ok(()),
        TaskRuntime::Agent => {}
    }
    let refuse = |field: &str, value: String, allowed: &str| Err(SpecError::invalid(field, value, allowed));
    if !matches!(spec.mode, ServiceMode::Global(_)) {
        return refuse(
            "mode",
            spec.mode.name().to_owned(),
            "global: with the runtime agent each node runs one task",
        );
    }
    if let Some((field, value)) = first_setting(&task.container_spec) {
        return refuse(
            &format!("task_template.container_spec.{field}"),
            value,
            "unset: with the runtime agent only the image can be set",
        );
    }
    let settings = [
        ("task_template.networks", task.networks.is_empty(), "networks"),
        (
            "task_template.log_driver",
            task.log_driver.is_none(),
            "a log driver",
        ),
        (
            "task_template.resources",
            task.resources == Default::default(),
            "limits or reservations",
        ),
        (
            "endpoint_spec.ports",
            spec.endpoint_spec.ports.is_empty(),
            "ports",
        ),
    ];
    for (field, is_empty, what) in settings {
        if !is_empty {
            return refuse(
                field,
                what.to_owned(),
                "unset: the runtime agent does not support it",
            );
        }
    }
    for (field, config) in [
        ("update_config.order", &spec.update_config),
        ("rollback_config.order", &spec.rollback_config),
    ] {
        if config.order == UpdateOrder::StartFirst {
            return refuse(
                field,
                "start-first".to_owned(),
                "stop-first: a node can run only one agent",
            );
        }
    }
    Ok(())
}

/// The first field other than the image that is set.
fn first_setting(container: &ContainerSpec) -> Option<(String, String)> {
    let fields = |container: &ContainerSpec| serde_json::to_value(container).ok();
    let (found, empty) = (fields(container)?, fields(&ContainerSpec::default())?);
    let found = found.as_object()?.iter();
    found
        .filter(|(name, _)| *name != "image")
        .find(|(name, value)| empty.get(name.as_str()) != Some(*value))
        .map(|(name, value)| (name.clone(), value.to_string()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn agent() -> Value {
        json!({
            "name": "load-balancer",
            "mode": {"global": {}},
            "task_template": {"runtime": "agent", "container_spec": {"image": "mesh-agent:2"}},
        })
    }

    fn read(json: &Value) -> Result<ServiceSpec, SpecError> {
        ServiceSpec::from_json(json.to_string().as_bytes())
    }

    #[test]
    fn a_specification_of_an_agent_is_parsed_and_serialized() {
        let spec = read(&agent()).unwrap();
        assert_eq!(spec.task_template.runtime, TaskRuntime::Agent);
        let written = serde_json::to_value(&spec).unwrap();
        assert_eq!(written["task_template"]["runtime"], "agent");
        assert_eq!(read(&written).unwrap(), spec);
    }

    #[test]
    fn a_specification_of_a_container_can_be_read_by_older_releases() {
        let spec =
            read(&json!({"name": "web", "task_template": {"container_spec": {"image": "nginx"}}})).unwrap();
        let written = serde_json::to_value(&spec).unwrap();
        assert_eq!(written["task_template"].get("runtime"), None);
    }

    #[test]
    fn the_error_for_an_unknown_runtime_lists_the_known_ones() {
        let mut json = agent();
        json["task_template"]["runtime"] = "plugin".into();
        let message = read(&json).unwrap_err().to_string();
        for part in ["task_template.runtime", "plugin", "container", "agent"] {
            assert!(message.contains(part), "'{part}' is missing in: {message}");
        }
    }

    #[test]
    fn settings_of_containers_are_refused_by_name() {
        let cases = [
            (
                "/mode",
                json!({"replicated": {"replicas": 2}}),
                "mode: \"replicated\"",
            ),
            (
                "/task_template/container_spec/env",
                json!(["A=b"]),
                "container_spec.env: \"[\\\"A=b\\\"]\"",
            ),
            (
                "/task_template/container_spec/mounts",
                json!([{"type": "tmpfs", "target": "/x"}]),
                "container_spec.mounts",
            ),
            (
                "/task_template/container_spec/secrets",
                json!([{"source": "key"}]),
                "container_spec.secrets",
            ),
            (
                "/task_template/networks",
                json!(["host"]),
                "task_template.networks",
            ),
            (
                "/task_template/resources",
                json!({"limits": {"pids": 5}}),
                "task_template.resources",
            ),
            (
                "/endpoint_spec",
                json!({"ports": [{"target_port": 80}]}),
                "endpoint_spec.ports",
            ),
            (
                "/update_config",
                json!({"order": "start-first"}),
                "update_config.order: \"start-first\"",
            ),
        ];
        for (pointer, value, expected) in cases {
            let mut json = agent();
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            json.pointer_mut(parent).unwrap()[key] = value;
            let message = read(&json).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}
