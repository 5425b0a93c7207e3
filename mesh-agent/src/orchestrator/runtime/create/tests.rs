//! Specifications and the requests that result from them.

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
        hostname: "host-one",
        service_labels: &[("tier", "front"), ("com.example/owner", "team a")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
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
fn the_smallest_specification_runs_the_image_on_the_bridge() {
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
        "env": ["WHO={{.Task.Name}}@{{.Node.ID}}", "FORMAT={{.Other}} {{.Task",
                "NODE={{- .Node.Hostname -}}", "TIER={{.Service.Labels.tier}}/{{.Service.Labels.none}}",
                "OWNER={{index .Service.Labels \"com.example/owner\"}}", "BAD={{index .Service.Labels}}"],
        "mounts": [{"type": "volume", "source": "data-{{.Task.Slot}}", "target": "/{{.Node.Hostname}}"}]
    }});
    let body = created(&task(spec), &[]);
    assert_eq!(body["Hostname"], "web-2");
    assert_eq!(
        body["Env"],
        json!([
            "WHO=web.2.t1@n1",
            "FORMAT={{.Other}} {{.Task",
            "NODE=host-one",
            "TIER=front/",
            "OWNER=team a",
            "BAD={{index .Service.Labels}}"
        ])
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
