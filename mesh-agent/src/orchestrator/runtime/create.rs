//! Translates a task's specification to the engine's request that creates its container. Pure.

use std::{collections::HashMap, time::Duration};

use bollard::models::{
    ContainerCreateBody, DeviceMapping, EndpointSettings, HealthConfig, HostConfig, HostConfigLogConfig,
    Mount, MountTmpfsOptions, MountType, NetworkingConfig, PortBinding, PortMap, RestartPolicy,
    RestartPolicyNameEnum,
};
use mesh_orchestrator::{
    objects::Task,
    spec::{self, HealthCheck, MountKind, Probe},
};

use super::{
    MountedFile, Wanted, label,
    template::{Values, expand},
};

/// The request to create a container, and what follows before its start.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Creation {
    /// The container's name.
    pub(super) name: String,
    /// The request's body.
    pub(super) body: ContainerCreateBody,
    /// Networks to connect it to afterwards: older engines accept only one at creation.
    pub(super) more_networks: Vec<(String, EndpointSettings)>,
}

/// Whether a network is one of the engine's own, which accept neither aliases nor other networks beside them.
pub(super) fn is_predefined(network: &str) -> bool {
    matches!(network, "bridge" | "host" | "none" | "default")
}

/// The requests for a container.
pub(super) fn creation(wanted: &Wanted<'_>) -> Creation {
    let task = wanted.task;
    let container = &task.spec.container_spec;
    let networks = &task.spec.networks;
    let first = networks.first().map_or("bridge", String::as_str);
    let endpoint = |network: &str| EndpointSettings {
        aliases: (!is_predefined(network)).then(|| vec![task.service_name.to_string(), task.name()]),
        ..EndpointSettings::default()
    };
    let fill = |text: &str| expand(text, wanted.values());
    let (exposed_ports, port_bindings) = host_ports(task);
    let body = ContainerCreateBody {
        image: Some(container.image.clone()),
        hostname: container.hostname.as_deref().map(fill),
        user: container.user.clone(),
        working_dir: container.dir.clone(),
        entrypoint: some_unless_empty(&container.command),
        cmd: some_unless_empty(&container.args),
        env: some_unless_empty(&container.env.iter().map(|line| fill(line)).collect::<Vec<_>>()),
        labels: Some(labels(wanted)),
        exposed_ports,
        healthcheck: container.healthcheck.as_ref().map(health),
        stop_signal: container.stop_signal.clone(),
        stop_timeout: container.stop_grace_period.map(|grace| seconds(grace).max(1)),
        host_config: Some(HostConfig {
            network_mode: Some(first.to_owned()),
            port_bindings,
            ..host_config(wanted)
        }),
        networking_config: Some(NetworkingConfig {
            endpoints_config: Some(HashMap::from([(first.to_owned(), endpoint(first))])),
        }),
        ..ContainerCreateBody::default()
    };
    Creation {
        name: format!("{}.{}", task.name(), task.id),
        body,
        more_networks: networks
            .iter()
            .skip(1)
            .map(|network| (network.clone(), endpoint(network)))
            .collect(),
    }
}

impl Wanted<'_> {
    fn values(&self) -> Values<'_> {
        Values {
            task: self.task,
            node: self.node,
            hostname: self.hostname,
            service_labels: self.service_labels,
        }
    }
}

fn host_config(wanted: &Wanted<'_>) -> HostConfig {
    let task = wanted.task;
    let container = &task.spec.container_spec;
    let limits = task.spec.resources.limits;
    let reservations = task.spec.resources.reservations;
    HostConfig {
        // The orchestrator replaces tasks; the engine must never restart one.
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            maximum_retry_count: None,
        }),
        nano_cpus: limited(limits.nano_cpus),
        memory: limited(limits.memory_bytes),
        memory_reservation: limited(reservations.memory_bytes),
        pids_limit: limited(limits.pids),
        cap_add: some_unless_empty(&container.capability_add),
        cap_drop: some_unless_empty(&container.capability_drop),
        devices: Some(
            container
                .devices
                .iter()
                .map(|device| DeviceMapping {
                    path_on_host: Some(device.host_path.clone()),
                    path_in_container: Some(device.container_path.clone()),
                    cgroup_permissions: Some(device.permissions.clone()),
                })
                .collect(),
        ),
        mounts: Some(
            container
                .mounts
                .iter()
                .map(|mount| Mount {
                    source: (!mount.source.is_empty()).then(|| expand(&mount.source, wanted.values())),
                    target: Some(expand(&mount.target, wanted.values())),
                    ..self::mount(mount)
                })
                .chain(wanted.files.iter().map(mounted_file))
                .collect(),
        ),
        log_config: task.spec.log_driver.as_ref().map(|driver| HostConfigLogConfig {
            typ: Some(driver.name.clone()),
            config: Some(driver.options.clone().into_iter().collect()),
        }),
        sysctls: Some(container.sysctls.clone().into_iter().collect()),
        extra_hosts: some_unless_empty(&container.hosts),
        // Left out unless requested, so that the engine's default applies.
        init: container.init.then_some(true),
        readonly_rootfs: Some(container.read_only),
        ..HostConfig::default()
    }
}

fn labels(wanted: &Wanted<'_>) -> HashMap<String, String> {
    let task = wanted.task;
    let mut labels: HashMap<String, String> = task.spec.container_spec.labels.clone().into_iter().collect();
    let ours = [
        (label::NODE, wanted.node.to_string()),
        (label::TASK, task.id.to_string()),
        (label::TASK_NAME, task.name()),
        (label::SERVICE, task.service.to_string()),
        (label::SERVICE_NAME, task.service_name.to_string()),
    ];
    labels.extend(ours.map(|(name, value)| (name.to_owned(), value)));
    labels.remove(label::ADDRESS);
    if let Some(address) = wanted.address {
        labels.insert(label::ADDRESS.to_owned(), address.to_string());
    }
    labels
}

fn host_ports(task: &Task) -> (Option<Vec<String>>, Option<PortMap>) {
    let mut exposed = Vec::new();
    let mut bindings = PortMap::new();
    for port in &task.host_ports {
        let inside = format!("{}/{}", port.target_port, port.protocol);
        if !exposed.contains(&inside) {
            exposed.push(inside.clone());
        }
        let binding = PortBinding {
            host_ip: None,
            host_port: Some(port.published_port.to_string()),
        };
        bindings
            .entry(inside)
            .or_insert_with(|| Some(Vec::new()))
            .get_or_insert_with(Vec::new)
            .push(binding);
    }
    if exposed.is_empty() {
        (None, None)
    } else {
        (Some(exposed), Some(bindings))
    }
}

fn mount(mount: &spec::Mount) -> Mount {
    Mount {
        typ: Some(match mount.kind {
            MountKind::Bind => MountType::BIND,
            MountKind::Volume => MountType::VOLUME,
            MountKind::Tmpfs => MountType::TMPFS,
        }),
        read_only: Some(mount.read_only),
        tmpfs_options: limited(mount.tmpfs_size_bytes)
            .filter(|_| mount.kind == MountKind::Tmpfs)
            .map(|size| MountTmpfsOptions {
                size_bytes: Some(size),
                ..MountTmpfsOptions::default()
            }),
        ..Mount::default()
    }
}

fn mounted_file(file: &MountedFile) -> Mount {
    Mount {
        target: Some(file.target.clone()),
        source: Some(file.source.to_string_lossy().into_owned()),
        typ: Some(MountType::BIND),
        read_only: Some(true),
        ..Mount::default()
    }
}

/// The engine's health check; disabled, also for the image's own, where the agent probes instead.
fn health(check: &HealthCheck) -> HealthConfig {
    let test = match &check.test {
        Probe::None | Probe::Http { .. } | Probe::Tcp { .. } => vec!["NONE".to_owned()],
        Probe::Command(arguments) => std::iter::once("CMD".to_owned())
            .chain(arguments.iter().cloned())
            .collect(),
        Probe::Shell(line) => vec!["CMD-SHELL".to_owned(), line.clone()],
    };
    if test == ["NONE"] {
        return HealthConfig {
            test: Some(test),
            ..HealthConfig::default()
        };
    }
    HealthConfig {
        test: Some(test),
        interval: Some(nanoseconds(check.interval)),
        timeout: Some(nanoseconds(check.timeout)),
        retries: Some(i64::from(check.retries)),
        start_period: Some(nanoseconds(check.start_period)),
        start_interval: Some(nanoseconds(check.start_interval)),
    }
}

fn some_unless_empty(list: &[String]) -> Option<Vec<String>> {
    (!list.is_empty()).then(|| list.to_vec())
}

/// 0 means no limit in the specification; for some of the engine's fields it means something else.
fn limited(number: u64) -> Option<i64> {
    (number > 0).then(|| i64::try_from(number).unwrap_or(i64::MAX))
}

fn nanoseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// Whole seconds, rounded up, so that a short grace period does not become none.
fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis().div_ceil(1000)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
