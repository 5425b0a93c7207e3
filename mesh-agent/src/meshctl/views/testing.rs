//! Answers of the API for tests.

use std::{collections::BTreeMap, sync::Arc};

use mesh_orchestrator::{
    api::types::{NodeView, ServiceView, TaskView},
    cluster::Registration,
    objects::{EndpointPort, Node, Task, TaskState, TaskStatus, Timestamp},
    spec::{Protocol, PublishMode, Replicated, ServiceMode},
};
use serde_json::json;

use crate::meshctl::flags::empty;

/// When everything in tests happens.
pub(crate) const NOW: Timestamp = Timestamp(1_800_000_000_000);

/// A port in ingress mode.
pub(crate) fn port(published_port: u16, target_port: u16) -> EndpointPort {
    EndpointPort {
        protocol: Protocol::Tcp,
        target_port,
        published_port,
        publish_mode: PublishMode::Ingress,
    }
}

/// A service of two replicas, one of them running.
pub(crate) fn service(name: &str) -> ServiceView {
    let mut spec = empty(name.to_owned(), "nginx:1.27@sha256:aa");
    spec.mode = ServiceMode::Replicated(Replicated { replicas: 2 });
    spec.labels = BTreeMap::from([("tier".to_owned(), "front".to_owned())]);
    serde_json::from_value(json!({
        "id": "0123456789abcdefghijklmno",
        "revision": "3-9f2c04ab",
        "author": {"by": "root", "at": NOW, "action": "create"},
        "created_at": NOW,
        "updated_at": NOW,
        "spec": spec,
        "task_version": 1,
        "running": 1,
        "desired": 2,
    }))
    .unwrap()
}

/// A task of a service in a slot, two hours old.
pub(crate) fn task(id: &str, service: &str, slot: u32, state: TaskState) -> TaskView {
    let at = Timestamp(NOW.0 - 2 * 3_600_000);
    let spec = empty(service.to_owned(), "nginx:1.27@sha256:aa").task_template;
    let task: Task = serde_json::from_value(json!({
        "id": id,
        "service": "0123456789abcdefghijklmno",
        "service_name": service,
        "slot": {"number": slot},
        "spec": *spec,
        "spec_version": 1,
        "node": "node1",
        "desired": if state.is_terminal() { TaskState::Shutdown } else { TaskState::Running },
        "status": TaskStatus::new(state, at, ""),
        "created_at": at,
    }))
    .unwrap();
    TaskView {
        name: task.name(),
        node_hostname: Some("alpha".to_owned()),
        task,
    }
}

/// A node that is ready.
pub(crate) fn node(id: &str, hostname: &str) -> NodeView {
    let node: Node = serde_json::from_value(json!({
        "id": id,
        "hostname": hostname,
        "address": "10.0.0.1",
        "role": "manager",
        "status": "ready",
        "labels": {"zone": "a"},
        "platform": {"os": "linux", "architecture": "x86_64"},
        "resources": {"nano_cpus": 4_000_000_000_u64, "memory_bytes": 8_u64 << 30},
        "status_since": NOW,
    }))
    .unwrap();
    NodeView {
        leader: false,
        registration: Some(Registration {
            engine: true,
            datapath: "ebpf".to_owned(),
            release: "0.1.0".to_owned(),
            engine_version: "29.3.1".to_owned(),
            ..Registration::default()
        }),
        running: 3,
        reserved: Default::default(),
        node,
    }
}

/// For tests that change a specification of a view.
pub(crate) fn spec_of(view: &mut ServiceView) -> &mut mesh_orchestrator::spec::ServiceSpec {
    Arc::make_mut(&mut view.spec)
}
