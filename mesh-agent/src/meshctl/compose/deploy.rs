//! A service's `deploy`. Pure.

use mesh_orchestrator::spec::{
    FailureAction, Global, Replicated, ReplicatedJob, RestartCondition, ServiceMode, ServiceSpec, Spread,
    TaskSpec, UpdateConfig, UpdateOrder,
};

use super::{ComposeError, field::Field};

const KEYS: [&str; 9] = [
    "mode",
    "replicas",
    "labels",
    "update_config",
    "rollback_config",
    "restart_policy",
    "resources",
    "placement",
    "endpoint_mode",
];

/// Puts `deploy` into a specification.
pub(super) fn apply(
    field: &Field<'_>,
    spec: &mut ServiceSpec,
    task: &mut TaskSpec,
) -> Result<(), ComposeError> {
    let mut mode = "replicated".to_owned();
    let mut replicas = None;
    for (key, value) in field.map()? {
        match key {
            "mode" => {
                mode = value.text()?;
                value.word(&[
                    ("replicated", ()),
                    ("global", ()),
                    ("replicated-job", ()),
                    ("global-job", ()),
                ])?;
            }
            "replicas" => replicas = Some((value.number::<u32>()?, value)),
            "labels" => spec.labels.extend(value.labels()?),
            "update_config" => policy(&value, &mut spec.update_config)?,
            "rollback_config" => policy(&value, &mut spec.rollback_config)?,
            "restart_policy" => restart_policy(&value, task)?,
            "resources" => resources(&value, task)?,
            "placement" => placement(&value, task)?,
            "endpoint_mode" if value.text()? == "vip" => {}
            "endpoint_mode" => return Err(value.unsupported("the mesh balances as vip does")),
            _ if key.starts_with("x-") => {}
            _ => return Err(value.unknown(key, &KEYS)),
        }
    }
    let number = replicas.as_ref().map(|(number, _)| *number);
    spec.mode = match (mode.as_str(), replicas) {
        ("global" | "global-job", Some((_, value))) => {
            return Err(
                value.refuse("only replicated services and replicated jobs have a number of replicas")
            );
        }
        ("global", None) => ServiceMode::Global(Global {}),
        ("global-job", None) => ServiceMode::GlobalJob(Global {}),
        ("replicated-job", _) => ServiceMode::ReplicatedJob(ReplicatedJob {
            max_concurrent: number.unwrap_or(1).max(1),
            total_completions: number.unwrap_or(1),
        }),
        _ => ServiceMode::Replicated(Replicated {
            replicas: number.unwrap_or(1),
        }),
    };
    Ok(())
}

fn policy(field: &Field<'_>, config: &mut UpdateConfig) -> Result<(), ComposeError> {
    const KEYS: [&str; 7] = [
        "parallelism",
        "delay",
        "failure_action",
        "monitor",
        "max_failure_ratio",
        "order",
        "progress_deadline",
    ];
    for (key, value) in field.map()? {
        match key {
            "parallelism" => config.parallelism = value.number()?,
            "delay" => config.delay = value.duration()?,
            "monitor" => config.monitor = value.duration()?,
            "max_failure_ratio" => config.max_failure_ratio = value.number()?,
            // Not docker's: what an update does that cannot be placed.
            "progress_deadline" | "x-progress-deadline" => config.progress_deadline = value.duration()?,
            "failure_action" => {
                config.failure_action = value.word(&[
                    ("pause", FailureAction::Pause),
                    ("continue", FailureAction::Continue),
                    ("rollback", FailureAction::Rollback),
                ])?;
            }
            "order" => {
                config.order = value.word(&[
                    ("stop-first", UpdateOrder::StopFirst),
                    ("start-first", UpdateOrder::StartFirst),
                ])?;
            }
            _ if key.starts_with("x-") => {}
            _ => return Err(value.unknown(key, &KEYS)),
        }
    }
    Ok(())
}

fn restart_policy(field: &Field<'_>, task: &mut TaskSpec) -> Result<(), ComposeError> {
    let policy = &mut task.restart_policy;
    for (key, value) in field.map()? {
        match key {
            "condition" => {
                policy.condition = Some(value.word(&[
                    ("none", RestartCondition::None),
                    ("on-failure", RestartCondition::OnFailure),
                    ("any", RestartCondition::Any),
                ])?);
            }
            "delay" => policy.delay = value.duration()?,
            "max_attempts" => policy.max_attempts = value.number()?,
            "window" => policy.window = value.duration()?,
            _ => return Err(value.unknown(key, &["condition", "delay", "max_attempts", "window"])),
        }
    }
    Ok(())
}

fn resources(field: &Field<'_>, task: &mut TaskSpec) -> Result<(), ComposeError> {
    let resources = &mut task.resources;
    for (part, values) in field.map()? {
        let is_limit = match part {
            "limits" => true,
            "reservations" => false,
            _ => return Err(values.unknown(part, &["limits", "reservations"])),
        };
        for (key, value) in values.map()? {
            match (key, is_limit) {
                ("cpus", true) => resources.limits.nano_cpus = value.nano_cpus()?,
                ("cpus", false) => resources.reservations.nano_cpus = value.nano_cpus()?,
                ("memory", true) => resources.limits.memory_bytes = value.bytes()?,
                ("memory", false) => resources.reservations.memory_bytes = value.bytes()?,
                ("pids", true) => resources.limits.pids = value.number()?,
                ("devices" | "generic_resources" | "pids", _) => return Err(value.unsupported("")),
                _ => return Err(value.unknown(key, &["cpus", "memory", "pids"])),
            }
        }
    }
    Ok(())
}

fn placement(field: &Field<'_>, task: &mut TaskSpec) -> Result<(), ComposeError> {
    let placement = &mut task.placement;
    for (key, value) in field.map()? {
        match key {
            "constraints" => {
                for item in value.list()? {
                    let constraint = item.text()?.parse();
                    placement.constraints.push(
                        constraint.map_err(|why: mesh_orchestrator::spec::SpecError| {
                            item.refuse(why.to_string())
                        })?,
                    );
                }
            }
            "preferences" => {
                for item in value.list()? {
                    for (key, value) in item.map()? {
                        match key {
                            "spread" => placement.preferences.push(Spread {
                                spread: value.text()?,
                            }),
                            _ => return Err(value.unknown(key, &["spread"])),
                        }
                    }
                }
            }
            "max_replicas_per_node" => placement.max_replicas_per_node = value.number()?,
            _ => return Err(value.unknown(key, &["constraints", "preferences", "max_replicas_per_node"])),
        }
    }
    Ok(())
}
