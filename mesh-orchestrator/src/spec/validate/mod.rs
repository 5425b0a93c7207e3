//! Validates what the types alone cannot: every field of a specification is checked once, where it is
//! received.

mod agent;
mod container;
mod labels;
mod task;

use std::{collections::BTreeSet, sync::Arc};

use self::{agent::check_agent, labels::check_labels, task::check_task};
use super::{
    FailureAction, MAX_SPEC_BYTES, PublishMode, ServiceMode, ServiceSpec, SpecError, UpdateConfig,
    name::{check_name, normalise_image},
};

/// Maximum number of tasks of one service.
const MAX_REPLICAS: u32 = 100_000;

impl ServiceSpec {
    /// Validates the specification and adds the default tag to its image.
    ///
    /// # Errors
    /// If a field is invalid. The error names the first such field, its value and what is allowed.
    pub fn validated(mut self) -> Result<Self, SpecError> {
        check_name("name", &self.name)?;
        check_labels("labels", self.labels.keys())?;
        check_mode(self.mode)?;
        let container = &mut Arc::make_mut(&mut self.task_template).container_spec;
        container.image = normalise_image("task_template.container_spec.image", &container.image)?;
        check_task(&self.task_template, self.mode)?;
        check_update("update_config", &self.update_config, false)?;
        check_update("rollback_config", &self.rollback_config, true)?;
        check_ports(&self)?;
        check_agent(&self)?;
        let mut seen = BTreeSet::new();
        for (index, name) in self.depends_on.iter().enumerate() {
            let field = format!("depends_on[{index}]");
            check_name(&field, name)?;
            if *name == self.name || !seen.insert(name) {
                return Err(SpecError::invalid(
                    field,
                    name,
                    "the name of another service, listed only once",
                ));
            }
        }
        // With defaults and other escapes it may be larger than what was received.
        let size = serde_json::to_vec(&self).map_or(0, |json| json.len());
        if size > MAX_SPEC_BYTES {
            return Err(SpecError::TooLarge { size });
        }
        Ok(self)
    }
}

fn check_mode(mode: ServiceMode) -> Result<(), SpecError> {
    let within = |field: &str, value: u32, least: u32| {
        if (least..=MAX_REPLICAS).contains(&value) {
            Ok(())
        } else {
            Err(SpecError::invalid(
                field,
                value,
                format!("{least} to {MAX_REPLICAS}"),
            ))
        }
    };
    match mode {
        ServiceMode::Replicated(settings) => within("mode.replicated.replicas", settings.replicas, 0),
        ServiceMode::ReplicatedJob(job) => {
            within("mode.replicated_job.max_concurrent", job.max_concurrent, 1)?;
            within("mode.replicated_job.total_completions", job.total_completions, 1)
        }
        ServiceMode::Global(_) | ServiceMode::GlobalJob(_) => Ok(()),
    }
}

fn check_update(field: &str, config: &UpdateConfig, is_rollback: bool) -> Result<(), SpecError> {
    if !(0.0..=1.0).contains(&config.max_failure_ratio) {
        let field = format!("{field}.max_failure_ratio");
        return Err(SpecError::invalid(field, config.max_failure_ratio, "0 to 1"));
    }
    if is_rollback && config.failure_action == FailureAction::Rollback {
        let field = format!("{field}.failure_action");
        return Err(SpecError::invalid(
            field,
            "rollback",
            "pause or continue: a rollback cannot be rolled back",
        ));
    }
    Ok(())
}

fn check_ports(spec: &ServiceSpec) -> Result<(), SpecError> {
    let mut seen = BTreeSet::new();
    let networks = &spec.task_template.networks;
    let unreachable = networks
        .iter()
        .find(|network| matches!(network.as_str(), "host" | "none"));
    for (index, port) in spec.endpoint_spec.ports.iter().enumerate() {
        let field = format!("endpoint_spec.ports[{index}]");
        port.check(&field)?;
        if let Some(network) = unreachable.filter(|_| port.publish_mode == PublishMode::Ingress) {
            return Err(SpecError::invalid(
                format!("{field}.publish_mode"),
                "ingress",
                match network.as_str() {
                    "host" => "host, or no port: on the network host the container has the node's own ports",
                    _ => "no port: on the network none the container has no address",
                },
            ));
        }
        if port.publish_mode == PublishMode::Host && port.published_port.is_none() {
            let field = format!("{field}.published_port");
            return Err(SpecError::invalid(
                field,
                "",
                "a port: ports in host mode have no default",
            ));
        }
        for (_, published) in port.pairs() {
            if let Some(published) = published
                && !seen.insert((port.protocol, published))
            {
                let field = format!("{field}.published_port");
                return Err(SpecError::invalid(
                    field,
                    published,
                    "a port that the service publishes only once",
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut serde_json::Value)) -> String {
        let mut json = serde_json::json!({
            "name": "web",
            "task_template": { "container_spec": { "image": "nginx" } },
        });
        change(&mut json);
        ServiceSpec::from_json(json.to_string().as_bytes())
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn the_mesh_publishes_no_port_of_a_container_that_it_cannot_reach() {
        for network in ["host", "none"] {
            let message = refused(|json| {
                json["task_template"]["networks"] = serde_json::json!([network]);
                json["endpoint_spec"] =
                    serde_json::json!({"ports": [{"target_port": 8088, "published_port": 8088}]});
            });
            assert!(
                message.contains("ports[0].publish_mode") && message.contains(&format!("network {network}")),
                "{message}"
            );
        }
    }

    #[test]
    fn each_error_names_the_field_its_value_and_what_is_allowed() {
        let cases: [(&str, serde_json::Value, &str); 12] = [
            ("/name", "a b".into(), "name: \"a b\""),
            (
                "/mode",
                serde_json::json!({"replicated": {"replicas": 100_001}}),
                "mode.replicated.replicas: \"100001\"",
            ),
            (
                "/mode",
                serde_json::json!({"replicated_job": {"max_concurrent": 0}}),
                "max_concurrent: \"0\"",
            ),
            (
                "/update_config",
                serde_json::json!({"max_failure_ratio": 1.5}),
                "max_failure_ratio: \"1.5\"",
            ),
            (
                "/rollback_config",
                serde_json::json!({"failure_action": "rollback"}),
                "pause or continue",
            ),
            (
                "/depends_on",
                serde_json::json!(["web"]),
                "depends_on[0]: \"web\"",
            ),
            (
                "/endpoint_spec",
                serde_json::json!({"ports": [{"target_port": 80, "publish_mode": "host"}]}),
                "host mode",
            ),
            (
                "/endpoint_spec",
                serde_json::json!({"ports": [{"target_port": 80, "published_port": 80}, {"target_port": 81, "published_port": 80}]}),
                "ports[1].published_port: \"80\"",
            ),
            (
                "/task_template/resources",
                serde_json::json!({"limits": {"memory_bytes": 10_000_000}, "reservations": {"memory_bytes": 20_000_000}}),
                "at most the limit, 10000000",
            ),
            (
                "/task_template/placement",
                serde_json::json!({"constraints": ["zone==a"]}),
                "node.labels.<name>",
            ),
            (
                "/task_template/container_spec/mounts",
                serde_json::json!([{"type": "bind", "source": "x", "target": "/x"}]),
                "mounts[0].source: \"x\"",
            ),
            (
                "/task_template/container_spec/healthcheck",
                serde_json::json!({"test": {"http": {"port": 80, "path": "x"}}}),
                "starts with /",
            ),
        ];
        for (pointer, value, expected) in cases {
            let message = refused(|json| {
                let (parent, key) = pointer.rsplit_once('/').unwrap();
                json.pointer_mut(parent).unwrap()[key] = value;
            });
            assert!(message.contains(expected), "{message}");
        }
    }
}
