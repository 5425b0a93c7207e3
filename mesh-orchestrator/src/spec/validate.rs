//! What the types alone cannot refuse: every field of a specification is checked once, at the edge.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    ContainerSpec, FileReference, Mount, MountKind, Probe, PublishMode, RestartCondition, ServiceMode,
    ServiceSpec, SpecError, TaskSpec, UpdateConfig,
    constraint::check_key,
    name::{check_name, normalise_image},
    runtime,
};

/// Most tasks that one service may have.
const MAX_REPLICAS: u32 = 100_000;
/// Least memory that Docker gives a container, in bytes.
const MIN_MEMORY: u64 = 6 << 20;
/// Most attempts that are worth counting.
const MAX_ATTEMPTS: u32 = 1_000;

impl ServiceSpec {
    /// The specification with its image's tag in place, if it is sound.
    ///
    /// # Errors
    /// Names the first field that is not, its value and what is allowed.
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
        runtime::check(&self)?;
        let mut seen = BTreeSet::new();
        for (index, name) in self.depends_on.iter().enumerate() {
            let field = format!("depends_on[{index}]");
            check_name(&field, name)?;
            if *name == self.name || !seen.insert(name) {
                return Err(SpecError::invalid(
                    field,
                    name,
                    "the name of another service, each once",
                ));
            }
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

fn check_task(task: &TaskSpec, mode: ServiceMode) -> Result<(), SpecError> {
    check_container(&task.container_spec)?;
    let (limits, reservations) = (task.resources.limits, task.resources.reservations);
    let resources = "task_template.resources";
    if limits.memory_bytes != 0 && limits.memory_bytes < MIN_MEMORY {
        return Err(SpecError::invalid(
            format!("{resources}.limits.memory_bytes"),
            limits.memory_bytes,
            format!("0 (no limit) or at least {MIN_MEMORY}"),
        ));
    }
    for (field, limit, reservation) in [
        ("nano_cpus", limits.nano_cpus, reservations.nano_cpus),
        ("memory_bytes", limits.memory_bytes, reservations.memory_bytes),
    ] {
        if limit != 0 && reservation > limit {
            let field = format!("{resources}.reservations.{field}");
            return Err(SpecError::invalid(
                field,
                reservation,
                format!("at most the limit, {limit}"),
            ));
        }
    }
    if task.restart_policy.max_attempts > MAX_ATTEMPTS {
        return Err(SpecError::invalid(
            "task_template.restart_policy.max_attempts",
            task.restart_policy.max_attempts,
            format!("0 (any number) to {MAX_ATTEMPTS}"),
        ));
    }
    if mode.is_job() && task.restart_policy.condition == Some(RestartCondition::Any) {
        return Err(SpecError::invalid(
            "task_template.restart_policy.condition",
            "any",
            "none or on-failure: a job's tasks are meant to end",
        ));
    }
    for (index, preference) in task.placement.preferences.iter().enumerate() {
        let field = format!("task_template.placement.preferences[{index}].spread");
        check_key(&field, &preference.spread)?;
    }
    let host = task.networks.iter().any(|network| network == "host");
    if host && task.networks.len() > 1 {
        let networks = task.networks.join(",");
        return Err(SpecError::invalid(
            "task_template.networks",
            networks,
            "host alone, or other networks",
        ));
    }
    for (index, network) in task.networks.iter().enumerate() {
        check_name(&format!("task_template.networks[{index}]"), network)?;
    }
    Ok(())
}

fn check_container(container: &ContainerSpec) -> Result<(), SpecError> {
    let at = |field: &str| format!("task_template.container_spec.{field}");
    check_labels(&at("labels"), container.labels.keys())?;
    for (index, variable) in container.env.iter().enumerate() {
        if variable.is_empty() || variable.starts_with('=') || variable.contains('\0') {
            return Err(SpecError::invalid(
                at(&format!("env[{index}]")),
                variable,
                "NAME=value or NAME",
            ));
        }
    }
    let mut targets = BTreeSet::new();
    for (index, mount) in container.mounts.iter().enumerate() {
        check_mount(&at(&format!("mounts[{index}]")), mount)?;
        if !targets.insert(&mount.target) {
            let field = at(&format!("mounts[{index}].target"));
            return Err(SpecError::invalid(field, &mount.target, "each path once"));
        }
    }
    for (list, name) in [
        (&container.capability_add, "capability_add"),
        (&container.capability_drop, "capability_drop"),
    ] {
        for (index, capability) in list.iter().enumerate() {
            let letter = |character: char| character.is_ascii_alphabetic() || character == '_';
            if capability.is_empty() || !capability.chars().all(letter) {
                let field = at(&format!("{name}[{index}]"));
                return Err(SpecError::invalid(
                    field,
                    capability,
                    "a capability such as NET_ADMIN, or ALL",
                ));
            }
        }
    }
    for (index, device) in container.devices.iter().enumerate() {
        let field = at(&format!("devices[{index}]"));
        absolute(&format!("{field}.host_path"), &device.host_path)?;
        absolute(&format!("{field}.container_path"), &device.container_path)?;
        let known = |character: char| matches!(character, 'r' | 'w' | 'm');
        if device.permissions.is_empty() || !device.permissions.chars().all(known) {
            let field = format!("{field}.permissions");
            return Err(SpecError::invalid(field, &device.permissions, "letters of rwm"));
        }
    }
    check_health(container)?;
    if let Some(signal) = &container.stop_signal {
        let name = |character: char| character.is_ascii_alphanumeric() || matches!(character, '+' | '-');
        if signal.is_empty() || !signal.chars().all(name) {
            return Err(SpecError::invalid(
                at("stop_signal"),
                signal,
                "a signal such as SIGTERM or 15",
            ));
        }
    }
    for (list, name) in [(&container.secrets, "secrets"), (&container.configs, "configs")] {
        for (index, file) in list.iter().enumerate() {
            check_file(&at(&format!("{name}[{index}]")), file)?;
        }
    }
    Ok(())
}

fn check_health(container: &ContainerSpec) -> Result<(), SpecError> {
    let Some(check) = &container.healthcheck else {
        return Ok(());
    };
    let at = |field: &str| format!("task_template.container_spec.healthcheck.{field}");
    match &check.test {
        Probe::Command(words) if words.is_empty() => {
            return Err(SpecError::invalid(
                at("test.command"),
                "[]",
                "a program and its arguments",
            ));
        }
        Probe::Shell(line) if line.is_empty() => {
            return Err(SpecError::invalid(at("test.shell"), line, "a command line"));
        }
        Probe::Http { path, .. } if !path.starts_with('/') => {
            return Err(SpecError::invalid(
                at("test.http.path"),
                path,
                "a path that begins with /",
            ));
        }
        Probe::Http { port: 0, .. } | Probe::Tcp { port: 0 } => {
            return Err(SpecError::invalid(at("test.port"), 0, "1 to 65535"));
        }
        Probe::None | Probe::Command(_) | Probe::Shell(_) | Probe::Http { .. } | Probe::Tcp { .. } => {}
    }
    for (field, value) in [("interval", check.interval), ("timeout", check.timeout)] {
        if value.is_zero() {
            return Err(SpecError::invalid(at(field), "0s", "at least 1ms"));
        }
    }
    if check.retries == 0 {
        return Err(SpecError::invalid(at("retries"), 0, "at least 1"));
    }
    Ok(())
}

fn check_mount(field: &str, mount: &Mount) -> Result<(), SpecError> {
    absolute(&format!("{field}.target"), &mount.target)?;
    let source = format!("{field}.source");
    match mount.kind {
        MountKind::Bind => absolute(&source, &mount.source)?,
        MountKind::Volume if mount.source.is_empty() => {}
        MountKind::Volume => check_name(&source, &mount.source)?,
        MountKind::Tmpfs if !mount.source.is_empty() => {
            return Err(SpecError::invalid(
                source,
                &mount.source,
                "nothing: a tmpfs has no source",
            ));
        }
        MountKind::Tmpfs => {}
    }
    if mount.tmpfs_size_bytes != 0 && mount.kind != MountKind::Tmpfs {
        let field = format!("{field}.tmpfs_size_bytes");
        return Err(SpecError::invalid(
            field,
            mount.tmpfs_size_bytes,
            "0, or the type tmpfs",
        ));
    }
    Ok(())
}

fn check_file(field: &str, file: &FileReference) -> Result<(), SpecError> {
    check_name(&format!("{field}.source"), &file.source)?;
    if let Some(target) = &file.target
        && (target.is_empty() || target.contains('\0') || target.split('/').any(|part| part == ".."))
    {
        return Err(SpecError::invalid(
            format!("{field}.target"),
            target,
            "a file name or path without ..",
        ));
    }
    if file.mode > 0o7777 {
        return Err(SpecError::invalid(
            format!("{field}.mode"),
            file.mode,
            "0 to 4095 (octal 7777)",
        ));
    }
    Ok(())
}

fn absolute(field: &str, path: &str) -> Result<(), SpecError> {
    if path.starts_with('/') && !path.contains('\0') {
        Ok(())
    } else {
        Err(SpecError::invalid(field, path, "an absolute path"))
    }
}

fn check_labels<'a>(field: &str, mut names: impl Iterator<Item = &'a String>) -> Result<(), SpecError> {
    match names.find(|name| {
        name.is_empty()
            || name
                .chars()
                .any(|character| character.is_whitespace() || character == '=')
    }) {
        Some(name) => Err(SpecError::invalid(
            field,
            name,
            "label names without spaces and '='",
        )),
        None => Ok(()),
    }
}

fn check_update(field: &str, config: &UpdateConfig, is_rollback: bool) -> Result<(), SpecError> {
    if !(0.0..=1.0).contains(&config.max_failure_ratio) {
        let field = format!("{field}.max_failure_ratio");
        return Err(SpecError::invalid(field, config.max_failure_ratio, "0 to 1"));
    }
    if is_rollback && config.failure_action == super::FailureAction::Rollback {
        let field = format!("{field}.failure_action");
        return Err(SpecError::invalid(
            field,
            "rollback",
            "pause or continue: it is a rollback already",
        ));
    }
    Ok(())
}

fn check_ports(spec: &ServiceSpec) -> Result<(), SpecError> {
    let mut seen = BTreeSet::new();
    for (index, port) in spec.endpoint_spec.ports.iter().enumerate() {
        let field = format!("endpoint_spec.ports[{index}]");
        port.check(&field)?;
        if port.publish_mode == PublishMode::Host && port.published_port.is_none() {
            let field = format!("{field}.published_port");
            return Err(SpecError::invalid(
                field,
                "",
                "a number: ports in host mode have no default",
            ));
        }
        for (_, published) in port.pairs() {
            if let Some(published) = published
                && !seen.insert((port.protocol, published))
            {
                let field = format!("{field}.published_port");
                return Err(SpecError::invalid(field, published, "each port once"));
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
    fn each_refusal_names_field_value_and_what_is_allowed() {
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
                "begins with /",
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
