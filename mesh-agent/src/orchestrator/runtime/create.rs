//! A task's specification as the body of the engine's request to create a container. Pure.

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

use super::{MountedFile, Wanted, label, template::expand};

/// What is created, and what follows before it is started.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Creation {
    /// The container's name.
    pub(super) name: String,
    /// The request's body.
    pub(super) body: ContainerCreateBody,
    /// Networks that it is connected to afterwards: older engines take only one at its creation.
    pub(super) more_networks: Vec<(String, EndpointSettings)>,
}

/// The engine's networks that take neither aliases nor company.
pub(super) fn is_predefined(network: &str) -> bool {
    matches!(network, "bridge" | "host" | "none" | "default")
}

/// What to ask the engine for.
pub(super) fn creation(wanted: &Wanted<'_>) -> Creation {
    let task = wanted.task;
    let container = &task.spec.container_spec;
    let networks = &task.spec.networks;
    let first = networks.first().map_or("bridge", String::as_str);
    let endpoint = |network: &str| EndpointSettings {
        aliases: (!is_predefined(network)).then(|| vec![task.service_name.to_string(), task.name()]),
        ..EndpointSettings::default()
    };
    let fill = |text: &str| expand(text, task, wanted.node);
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

fn host_config(wanted: &Wanted<'_>) -> HostConfig {
    let task = wanted.task;
    let container = &task.spec.container_spec;
    let limits = task.spec.resources.limits;
    let reservations = task.spec.resources.reservations;
    HostConfig {
        // A task is replaced, never restarted; who does that is not the engine.
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
                    source: (!mount.source.is_empty()).then(|| expand(&mount.source, task, wanted.node)),
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
        // Left out where it is not asked for, the engine's own default holds.
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
        target: Some(mount.target.clone()),
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

/// What the agent probes, the engine shall not, whatever the image says.
fn health(check: &HealthCheck) -> HealthConfig {
    let test = match &check.test {
        Probe::None | Probe::Http { .. } | Probe::Tcp { .. } => vec!["NONE".to_owned()],
        Probe::Command(words) => std::iter::once("CMD".to_owned())
            .chain(words.iter().cloned())
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

fn some_unless_empty(words: &[String]) -> Option<Vec<String>> {
    (!words.is_empty()).then(|| words.to_vec())
}

/// 0 means no limit to the specification; to the engine, for some fields, it means another thing.
fn limited(number: u64) -> Option<i64> {
    (number > 0).then(|| i64::try_from(number).unwrap_or(i64::MAX))
}

fn nanoseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// Whole seconds, rounded up: a shorter grace is better too long than none.
fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis().div_ceil(1000)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, path::PathBuf, sync::Arc};

    use mesh_orchestrator::{
        objects::{EndpointPort, NodeId, Slot, TaskState, TaskStatus, Timestamp},
        spec::{Protocol, PublishMode, TaskSpec},
    };
    use serde_json::{Value, json};

    use super::*;
    use crate::orchestrator::testing;

    fn task(spec: Value) -> Task {
        let spec: TaskSpec = serde_json::from_value(spec).unwrap();
        Task {
            slot: Slot::Number(2),
            status: TaskStatus::new(TaskState::Preparing, Timestamp(0), ""),
            ..testing::task(Arc::new(spec))
        }
    }

    fn created(task: &Task, files: &[MountedFile]) -> Value {
        let creation = creation(&Wanted {
            node: &NodeId::from("n1"),
            task,
            address: Some(Ipv4Addr::new(240, 0, 4, 7)),
            files,
        });
        let mut body = serde_json::to_value(&creation.body).unwrap();
        body["name"] = json!(creation.name);
        body["more"] = json!(
            creation
                .more_networks
                .iter()
                .map(|(name, _)| name)
                .collect::<Vec<_>>()
        );
        body
    }

    #[test]
    fn the_least_that_can_be_asked_for_is_the_image_on_the_bridge() {
        let body = created(&task(json!({"container_spec": {"image": "nginx:latest"}})), &[]);
        assert_eq!(body["name"], "web.2.t1");
        assert_eq!(body["Image"], "nginx:latest");
        assert_eq!(body["HostConfig"]["NetworkMode"], "bridge");
        assert_eq!(body["HostConfig"]["RestartPolicy"]["Name"], "no");
        for left_out in [
            "Entrypoint",
            "Cmd",
            "Env",
            "Healthcheck",
            "StopSignal",
            "ExposedPorts",
        ] {
            assert!(body.get(left_out).is_none(), "{left_out}: {body}");
        }
        for unlimited in ["Memory", "NanoCpus", "PidsLimit", "Init", "LogConfig"] {
            assert!(body["HostConfig"].get(unlimited).is_none(), "{unlimited}: {body}");
        }
    }

    #[test]
    fn every_field_of_a_container_arrives() {
        let spec = json!({
            "container_spec": {
                "image": "nginx:1", "command": ["/run"], "args": ["-v"], "env": ["A=b"],
                "labels": {"team": "x", "mesh.task.id": "forged"}, "hostname": "h", "dir": "/w", "user": "7:8",
                "init": true, "read_only": true, "capability_add": ["NET_ADMIN"],
                "capability_drop": ["CHOWN"], "sysctls": {"net.core.somaxconn": "9"}, "hosts": ["db:10.0.0.9"],
                "devices": [{"host_path": "/dev/fuse", "container_path": "/dev/f", "permissions": "rw"}],
                "stop_signal": "SIGINT", "stop_grace_period": "1500ms",
                "healthcheck": {"test": {"shell": "true"}, "interval": "2s", "retries": 5},
                "mounts": [
                    {"type": "bind", "source": "/srv", "target": "/data", "read_only": true},
                    {"type": "volume", "source": "v", "target": "/v"},
                    {"type": "tmpfs", "target": "/t", "tmpfs_size_bytes": 4096}
                ]
            },
            "resources": {
                "limits": {"nano_cpus": 500_000_000, "memory_bytes": 64 << 20, "pids": 50},
                "reservations": {"nano_cpus": 1, "memory_bytes": 32 << 20}
            },
            "log_driver": {"name": "json-file", "options": {"max-size": "1m"}}
        });
        let file = MountedFile {
            source: PathBuf::from("/run/mesh/tasks/t1/0"),
            target: "/run/secrets/key".into(),
        };
        let body = created(&task(spec), std::slice::from_ref(&file));
        let host = &body["HostConfig"];
        for (found, expected) in [
            (&body["Entrypoint"], json!(["/run"])),
            (&body["Cmd"], json!(["-v"])),
            (&body["Env"], json!(["A=b"])),
            (&body["Labels"]["team"], json!("x")),
            (&body["Labels"]["mesh.task.id"], json!("t1")),
            (&body["Labels"]["mesh.task.address"], json!("240.0.4.7")),
            (&body["Labels"]["mesh.node.id"], json!("n1")),
            (&body["Hostname"], json!("h")),
            (&body["WorkingDir"], json!("/w")),
            (&body["User"], json!("7:8")),
            (&body["StopSignal"], json!("SIGINT")),
            (&body["StopTimeout"], json!(2)),
            (&body["Healthcheck"]["Test"], json!(["CMD-SHELL", "true"])),
            (&body["Healthcheck"]["Interval"], json!(2_000_000_000_u64)),
            (&body["Healthcheck"]["Retries"], json!(5)),
            (&host["Init"], json!(true)),
            (&host["ReadonlyRootfs"], json!(true)),
            (&host["CapAdd"], json!(["NET_ADMIN"])),
            (&host["CapDrop"], json!(["CHOWN"])),
            (&host["Sysctls"], json!({"net.core.somaxconn": "9"})),
            (&host["ExtraHosts"], json!(["db:10.0.0.9"])),
            (&host["Devices"][0]["PathInContainer"], json!("/dev/f")),
            (&host["Devices"][0]["CgroupPermissions"], json!("rw")),
            (&host["NanoCpus"], json!(500_000_000)),
            (&host["Memory"], json!(64 << 20)),
            (&host["MemoryReservation"], json!(32 << 20)),
            (&host["PidsLimit"], json!(50)),
            (
                &host["LogConfig"],
                json!({"Type": "json-file", "Config": {"max-size": "1m"}}),
            ),
            (&host["Mounts"][0]["Type"], json!("bind")),
            (&host["Mounts"][0]["ReadOnly"], json!(true)),
            (&host["Mounts"][1]["Source"], json!("v")),
            (&host["Mounts"][2]["TmpfsOptions"]["SizeBytes"], json!(4096)),
            (&host["Mounts"][3]["Source"], json!("/run/mesh/tasks/t1/0")),
            (&host["Mounts"][3]["Target"], json!("/run/secrets/key")),
        ] {
            assert_eq!(*found, expected, "{body:#}");
        }
    }

    #[test]
    fn placeholders_are_filled_in() {
        let spec = json!({"container_spec": {
            "image": "a:1", "hostname": "{{.Service.Name}}-{{ .Task.Slot }}",
            "env": ["WHO={{.Task.Name}}@{{.Node.ID}}", "FORMAT={{.Other}} {{.Task"],
            "mounts": [{"type": "volume", "source": "data-{{.Task.Slot}}", "target": "/data"}]
        }});
        let body = created(&task(spec), &[]);
        assert_eq!(body["Hostname"], "web-2");
        assert_eq!(
            body["Env"],
            json!(["WHO=web.2.t1@n1", "FORMAT={{.Other}} {{.Task"])
        );
        assert_eq!(body["HostConfig"]["Mounts"][0]["Source"], "data-2");
    }

    #[test]
    fn what_the_agent_probes_the_engine_does_not() {
        for test in [
            json!("none"),
            json!({"http": {"port": 80, "path": "/"}}),
            json!({"tcp": {"port": 80}}),
        ] {
            let spec = json!({"container_spec": {"image": "a:1", "healthcheck": {"test": test}}});
            assert_eq!(
                created(&task(spec), &[])["Healthcheck"],
                json!({"Test": ["NONE"]})
            );
        }
    }

    #[test]
    fn networks_after_the_first_are_connected_later() {
        let spec = json!({"container_spec": {"image": "a:1"}, "networks": ["back", "front"]});
        let body = created(&task(spec), &[]);
        assert_eq!(body["HostConfig"]["NetworkMode"], "back");
        assert_eq!(
            body["NetworkingConfig"]["EndpointsConfig"]["back"]["Aliases"],
            json!(["web", "web.2"])
        );
        assert_eq!(body["more"], json!(["front"]));
        let spec = json!({"container_spec": {"image": "a:1"}, "networks": ["host"]});
        let body = created(&task(spec), &[]);
        assert_eq!(body["HostConfig"]["NetworkMode"], "host");
        assert!(
            body["NetworkingConfig"]["EndpointsConfig"]["host"]
                .get("Aliases")
                .is_none()
        );
    }

    #[test]
    fn host_ports_are_bound() {
        let port = |target_port, published_port, protocol| EndpointPort {
            protocol,
            target_port,
            published_port,
            publish_mode: PublishMode::Host,
        };
        let mut task = task(json!({"container_spec": {"image": "a:1"}}));
        task.host_ports = vec![
            port(80, 8080, Protocol::Tcp),
            port(80, 8081, Protocol::Tcp),
            port(53, 53, Protocol::Udp),
        ];
        let body = created(&task, &[]);
        assert_eq!(
            body["HostConfig"]["PortBindings"],
            json!({
                "80/tcp": [{"HostPort": "8080"}, {"HostPort": "8081"}],
                "53/udp": [{"HostPort": "53"}]
            })
        );
    }
}
