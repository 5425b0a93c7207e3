//! Validates the task template: resources, restart policy, placement and networks.

use super::container::check_container;
use crate::spec::{
    RestartCondition, ServiceMode, SpecError, TaskSpec, constraint::check_key, name::check_name,
};

/// Minimum memory limit that Docker accepts, in bytes.
const MIN_MEMORY: u64 = 6 << 20;
/// Maximum number of attempts: the time of each is stored.
const MAX_ATTEMPTS: u32 = 1_000;

pub(super) fn check_task(task: &TaskSpec, mode: ServiceMode) -> Result<(), SpecError> {
    check_container(&task.container_spec)?;
    let (limits, reservations) = (task.resources.limits, task.resources.reservations);
    let resources = "task_template.resources";
    if limits.memory_bytes != 0 && limits.memory_bytes < MIN_MEMORY {
        return Err(SpecError::invalid(
            format!("{resources}.limits.memory_bytes"),
            limits.memory_bytes,
            format!("0 (no limit) or at least {MIN_MEMORY} bytes"),
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
            format!("0 (no limit) to {MAX_ATTEMPTS}"),
        ));
    }
    if mode.is_job() && task.restart_policy.condition == Some(RestartCondition::Any) {
        return Err(SpecError::invalid(
            "task_template.restart_policy.condition",
            "any",
            "none or on-failure: the tasks of a job are meant to end",
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
            "either host alone or other networks",
        ));
    }
    for (index, network) in task.networks.iter().enumerate() {
        check_name(&format!("task_template.networks[{index}]"), network)?;
    }
    Ok(())
}
