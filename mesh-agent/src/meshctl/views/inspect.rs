//! What `inspect` prints and what its templates ask for: docker's objects with docker's keys, and what only
//! this orchestrator has beside them. Pure: answers in, JSON out.

use std::time::Duration;

use mesh_orchestrator::{
    api::types::{ConfigView, NodeView, RevisionView, SecretView, ServiceView},
    objects::{EndpointPort, Timestamp, UpdateStatus},
    spec::{
        ContainerSpec, FileReference, HealthCheck, Mount, MountKind, Probe, RestartCondition, ServiceMode,
        ServiceSpec, TaskSpec, UpdateConfig,
    },
};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::meshctl::output::{
    people::rfc3339,
    template::{nanoseconds, shown},
};

/// `service inspect`.
pub(crate) fn service(view: &ServiceView) -> Value {
    let spec = spec(&view.spec);
    json!({
        "ID": view.id,
        "Version": {"Index": view.revision.number},
        "CreatedAt": rfc3339(view.created_at),
        "UpdatedAt": rfc3339(view.updated_at),
        "Endpoint": {
            "Spec": spec["EndpointSpec"],
            "Ports": view.ports.iter().map(port).collect::<Vec<_>>(),
        },
        "Spec": spec,
        "PreviousSpec": view.previous_spec.as_ref().map(|spec| self::spec(spec)),
        "UpdateStatus": view.update_status.as_ref().map(update_status),
        "ServiceStatus": {
            "RunningTasks": view.running,
            "DesiredTasks": view.desired,
            "CompletedTasks": view.completed.unwrap_or(0),
        },
        "Revision": view.revision,
        "Author": {"By": view.author.by, "At": rfc3339(view.author.at), "Action": view.author.action},
        "Rebalancing": view.rebalancing,
        "Waiting": view.waiting,
    })
}

/// `service inspect --revision`.
pub(crate) fn revision(view: &RevisionView) -> Value {
    json!({
        "Revision": view.revision,
        "Version": {"Index": view.revision.number},
        "Author": {"By": view.author.by, "At": rfc3339(view.author.at), "Action": view.author.action},
        "Spec": spec(&view.spec),
    })
}

/// `node inspect`.
pub(crate) fn node(view: &NodeView) -> Value {
    let node = &view.node;
    let registration = view.registration.as_ref();
    json!({
        "ID": node.id,
        "Spec": {"Labels": node.labels, "Role": node.role.name(), "Availability": node.availability.to_string()},
        "Description": {
            "Hostname": node.hostname,
            "Platform": {"Architecture": node.platform.architecture, "OS": node.platform.os},
            "Resources": {"NanoCPUs": node.resources.nano_cpus, "MemoryBytes": node.resources.memory_bytes},
            "Engine": {
                "EngineVersion": registration.map(|registration| &registration.engine_version),
                "Labels": labels(&node.engine_labels),
            },
        },
        "Status": {"State": node.status.to_string(), "Addr": node.address, "Since": rfc3339(node.status_since)},
        "ManagerStatus": super::nodes::reachability(view).map(|reachability| json!({
            "Leader": view.leader,
            "Reachability": reachability,
            "Addr": node.address,
        })),
        "Agent": registration.map(|registration| json!({
            "Version": registration.release,
            "DataPath": registration.datapath,
            "EngineAnswers": registration.engine,
        })),
        "Reserved": {"NanoCPUs": view.reserved.nano_cpus, "MemoryBytes": view.reserved.memory_bytes},
        "RunningTasks": view.running,
    })
}

/// `secret inspect`.
pub(crate) fn secret(view: &SecretView) -> Value {
    file(
        &view.id,
        (view.created_at, view.updated_at),
        json!({"Name": view.name, "Labels": view.labels}),
        &view.services,
    )
}

/// `config inspect`, with what is in it in base64.
pub(crate) fn config(view: &ConfigView) -> Value {
    let spec = json!({"Name": view.name, "Labels": view.labels, "Data": view.data});
    file(&view.id, (view.created_at, view.updated_at), spec, &view.services)
}

fn file(id: &str, (created, updated): (Timestamp, Timestamp), spec: Value, services: &[String]) -> Value {
    json!({
        "ID": id,
        "CreatedAt": rfc3339(created),
        "UpdatedAt": rfc3339(updated),
        "Spec": spec,
        "Services": services,
    })
}

/// What is not set is in an object for templates, and left out of what is printed; as docker has it.
pub(crate) fn without_empty(value: Value) -> Value {
    let is_empty = |value: &Value| match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::Object(_) => false,
    };
    match shown(&value) {
        Value::Object(map) => Value::Object(
            map.into_iter()
                .map(|(key, value)| {
                    // Names of labels and of options are the user's.
                    let value = if matches!(key.as_str(), "Labels" | "Options" | "Sysctls") {
                        value
                    } else {
                        without_empty(value)
                    };
                    (key, value)
                })
                .filter(|(_, value)| !is_empty(value))
                .collect(),
        ),
        Value::Array(list) => Value::Array(list.into_iter().map(without_empty).collect()),
        other => other,
    }
}

fn spec(spec: &ServiceSpec) -> Value {
    json!({
        "Name": spec.name,
        "Labels": spec.labels,
        "TaskTemplate": task(&spec.task_template),
        "Mode": mode(spec.mode),
        "UpdateConfig": policy(&spec.update_config),
        "RollbackConfig": policy(&spec.rollback_config),
        "EndpointSpec": {
            "Mode": "vip",
            "Ports": spec.endpoint_spec.ports.iter().map(|port| json!({
                "Protocol": port.protocol.to_string(),
                "TargetPort": port.target_port,
                "PublishedPort": port.published_port,
                "PublishMode": port.publish_mode,
            })).collect::<Vec<_>>(),
        },
        "RebalanceConfig": {
            "Automatic": spec.rebalance_config.automatic,
            "MaxMoves": spec.rebalance_config.max_moves,
            "Settle": nanoseconds(spec.rebalance_config.settle),
        },
        "DependsOn": spec.depends_on,
    })
}

fn mode(mode: ServiceMode) -> Value {
    match mode {
        ServiceMode::Replicated(settings) => json!({"Replicated": {"Replicas": settings.replicas}}),
        ServiceMode::Global(_) => json!({"Global": {}}),
        ServiceMode::ReplicatedJob(job) => json!({
            "ReplicatedJob": {"MaxConcurrent": job.max_concurrent, "TotalCompletions": job.total_completions}
        }),
        ServiceMode::GlobalJob(_) => json!({"GlobalJob": {}}),
    }
}

fn policy(config: &UpdateConfig) -> Value {
    json!({
        "Parallelism": config.parallelism,
        "Delay": long(config.delay),
        "FailureAction": config.failure_action,
        "Monitor": nanoseconds(config.monitor),
        "MaxFailureRatio": config.max_failure_ratio,
        "Order": config.order,
        "ProgressDeadline": nanoseconds(config.progress_deadline),
    })
}

fn task(task: &TaskSpec) -> Value {
    let (limits, reservations) = (&task.resources.limits, &task.resources.reservations);
    let restart = &task.restart_policy;
    let placement = &task.placement;
    json!({
        "ContainerSpec": container(&task.container_spec),
        "Resources": {
            "Limits": {
                "NanoCPUs": set(limits.nano_cpus),
                "MemoryBytes": set(limits.memory_bytes),
                "Pids": set(limits.pids),
            },
            "Reservations": {
                "NanoCPUs": set(reservations.nano_cpus),
                "MemoryBytes": set(reservations.memory_bytes),
            },
        },
        "RestartPolicy": {
            "Condition": restart.condition.unwrap_or(RestartCondition::Any),
            "Delay": nanoseconds(restart.delay),
            "MaxAttempts": restart.max_attempts,
            "Window": long(restart.window),
        },
        "Placement": {
            "Constraints": placement.constraints.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "Preferences": placement.preferences.iter().map(|one| json!({
                "Spread": {"SpreadDescriptor": one.spread}
            })).collect::<Vec<_>>(),
            "MaxReplicas": set(u64::from(placement.max_replicas_per_node)),
            "Platforms": placement.platforms.iter().map(|platform| json!({
                "Architecture": platform.architecture, "OS": platform.os,
            })).collect::<Vec<_>>(),
        },
        "Networks": task.networks.iter().map(|name| json!({"Target": name})).collect::<Vec<_>>(),
        "LogDriver": task.log_driver.as_ref().map(|driver| json!({
            "Name": driver.name, "Options": labels(&driver.options),
        })),
        "ForceUpdate": task.force_update,
        "Runtime": "container",
    })
}

fn container(container: &ContainerSpec) -> Value {
    let files = |files: &[FileReference], kind: &str| -> Vec<Value> {
        files
            .iter()
            .map(|reference| file_reference(reference, kind))
            .collect()
    };
    json!({
        "Image": container.image,
        "Labels": labels(&container.labels),
        "Command": container.command,
        "Args": container.args,
        "Hostname": container.hostname.as_deref().unwrap_or_default(),
        "Env": container.env,
        "Dir": container.dir.as_deref().unwrap_or_default(),
        "User": container.user.as_deref().unwrap_or_default(),
        "Init": container.init,
        "ReadOnly": container.read_only.then_some(true),
        "Mounts": container.mounts.iter().map(mount).collect::<Vec<_>>(),
        "StopSignal": container.stop_signal.as_deref().unwrap_or_default(),
        "StopGracePeriod": container.stop_grace_period.map(nanoseconds),
        "Healthcheck": container.healthcheck.as_ref().map(healthcheck),
        "Hosts": container.hosts,
        "Secrets": files(&container.secrets, "Secret"),
        "Configs": files(&container.configs, "Config"),
        "Sysctls": labels(&container.sysctls),
        "CapabilityAdd": capabilities(&container.capability_add),
        "CapabilityDrop": capabilities(&container.capability_drop),
        "Devices": container.devices.iter().map(|device| json!({
            "PathOnHost": device.host_path,
            "PathInContainer": device.container_path,
            "CgroupPermissions": device.permissions,
        })).collect::<Vec<_>>(),
    })
}

fn mount(mount: &Mount) -> Value {
    json!({
        "Type": mount.kind,
        "Source": mount.source,
        "Target": mount.target,
        "ReadOnly": mount.read_only.then_some(true),
        "TmpfsOptions": (mount.kind == MountKind::Tmpfs && mount.tmpfs_size_bytes > 0)
            .then(|| json!({"SizeBytes": mount.tmpfs_size_bytes})),
    })
}

fn file_reference(reference: &FileReference, kind: &str) -> Value {
    let file = json!({
        "Name": reference.target.as_deref().unwrap_or(&reference.source),
        "UID": reference.uid.to_string(),
        "GID": reference.gid.to_string(),
        "Mode": reference.mode,
    });
    let mut object = Map::new();
    object.insert("File".into(), file);
    object.insert(format!("{kind}Name"), reference.source.as_str().into());
    Value::Object(object)
}

fn healthcheck(check: &HealthCheck) -> Value {
    json!({
        "Test": test(&check.test),
        "Interval": nanoseconds(check.interval),
        "Timeout": nanoseconds(check.timeout),
        "Retries": check.retries,
        "StartPeriod": long(check.start_period),
        "StartInterval": long(check.start_interval),
    })
}

/// Capabilities with the prefix that docker shows.
pub(super) fn capabilities(names: &[String]) -> Vec<String> {
    let prefixed = |name: &String| match name.as_str() {
        "ALL" => name.clone(),
        name => format!("CAP_{name}"),
    };
    names.iter().map(prefixed).collect()
}

/// A health check in docker's words; the agent's own probes in words like them.
pub(super) fn test(probe: &Probe) -> Vec<String> {
    match probe {
        Probe::None => vec!["NONE".into()],
        Probe::Command(words) => std::iter::once("CMD".to_owned())
            .chain(words.iter().cloned())
            .collect(),
        Probe::Shell(line) => vec!["CMD-SHELL".into(), line.clone()],
        Probe::Http { port, path } => vec!["HTTP".into(), format!(":{port}{path}")],
        Probe::Tcp { port } => vec!["TCP".into(), format!(":{port}")],
    }
}

fn port(port: &EndpointPort) -> Value {
    json!({
        "Protocol": port.protocol.to_string(),
        "TargetPort": port.target_port,
        "PublishedPort": port.published_port,
        "PublishMode": port.publish_mode,
    })
}

fn update_status(status: &UpdateStatus) -> Value {
    json!({
        "State": status.state,
        "StartedAt": rfc3339(status.started_at),
        "CompletedAt": status.completed_at.map(rfc3339),
        "Message": status.message,
    })
}

/// Nothing where docker leaves out a zero.
fn set(number: u64) -> Option<u64> {
    (number > 0).then_some(number)
}

/// Nothing where docker leaves out an empty map.
fn labels<T: Serialize>(map: &std::collections::BTreeMap<String, T>) -> Option<Value> {
    (!map.is_empty()).then(|| json!(map))
}

/// Nothing where docker leaves out no time at all.
fn long(duration: Duration) -> Option<Value> {
    (!duration.is_zero()).then(|| nanoseconds(duration))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meshctl::output::template::{Row, Template};
    use crate::meshctl::views::testing::{node, port, service, spec_of};

    #[test]
    fn keys_are_dockers_and_what_is_not_set_is_left_out() {
        let mut view = service("web");
        view.ports = vec![port(30000, 80)];
        let task = std::sync::Arc::make_mut(&mut spec_of(&mut view).task_template);
        task.resources.limits.nano_cpus = 500_000_000;
        let full = super::service(&view);
        // For templates.
        assert_eq!(full["Spec"]["TaskTemplate"]["ContainerSpec"]["User"], "");
        let template =
            Template::parse("{{.Spec.UpdateConfig.Monitor}} {{json .Spec.UpdateConfig.Monitor}}").unwrap();
        assert_eq!(template.render(&full, Row::Values).unwrap(), "5s 5000000000");
        let shown = without_empty(full);
        assert_eq!(shown["Version"], json!({"Index": 3}));
        assert_eq!(shown["Spec"]["Mode"], json!({"Replicated": {"Replicas": 2}}));
        assert_eq!(
            shown["Spec"]["TaskTemplate"]["Resources"]["Limits"],
            json!({"NanoCPUs": 500_000_000})
        );
        assert_eq!(
            shown["Endpoint"]["Ports"],
            json!([{"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 30000, "PublishMode": "ingress"}])
        );
        assert_eq!(shown["Spec"]["UpdateConfig"]["Monitor"], 5_000_000_000_u64);
        assert!(
            shown["Spec"]["TaskTemplate"]["ContainerSpec"]
                .get("User")
                .is_none()
        );
        assert!(shown.get("UpdateStatus").is_none());
    }

    #[test]
    fn a_label_without_a_value_stays() {
        let shown = without_empty(json!({"Labels": {"plain": ""}, "Name": ""}));
        assert_eq!(shown, json!({"Labels": {"plain": ""}}));
    }

    #[test]
    fn a_node_is_dockers() {
        let shown = without_empty(super::node(&node("n1", "alpha")));
        assert_eq!(
            shown["Spec"],
            json!({"Labels": {"zone": "a"}, "Role": "manager", "Availability": "active"})
        );
        assert_eq!(
            shown["Description"]["Platform"],
            json!({"Architecture": "x86_64", "OS": "linux"})
        );
        assert_eq!(shown["ManagerStatus"]["Reachability"], "reachable");
    }
}
