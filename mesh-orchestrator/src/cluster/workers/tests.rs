//! What a worker may read and write, on one state: a worker with a task of its own, and others' objects.

mod feed;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    super::{
        Registration,
        mirror::Mirror,
        stored::{self, Name, StoredTask},
    },
    may_expect, read,
    write::{self, Facts, Refusal},
};
use crate::{
    commands::{admit_worker, worker_id},
    loops::testing::{Cluster, node, spec},
    objects::{Node, NodeId, NodeStatus, ObjectChange, PortLedger, Task, TaskState, TaskStatus, Timestamp},
    spec::TaskSpec,
    store::{Entry, Key, Revision, membership::election_key, revisions::Author},
};

const NOW: Timestamp = Timestamp(1_000_000);

/// A worker and another node, each with a task of two services, one with a routed port.
struct Scene {
    cluster: Cluster,
    worker: NodeId,
}

impl Scene {
    fn new() -> Self {
        let mut cluster = Cluster::default();
        let worker = worker_id("edge1");
        cluster.make(admit_worker(cluster.state(), "edge1", &BTreeMap::new(), NOW).unwrap());
        cluster.put_node(Node {
            id: worker.clone(),
            hostname: "edge1".into(),
            ..node(1)
        });
        cluster.put_node(Node {
            engine_labels: [("rack".to_owned(), "7".to_owned())].into(),
            ..node(2)
        });
        for (name, ports) in [
            ("web", json!([{"target_port": 80, "published_port": 8080}])),
            ("db", json!([])),
        ] {
            cluster.create(spec(name, |json| {
                json["mode"] = json!({"global": {}});
                json["labels"] = json!({"mesh.scheduler": "lc", "owner": "hidden-owner"});
                json["endpoint_spec"] = json!({"ports": ports});
                json["task_template"]["container_spec"] = json!({
                    "image": "registry.example/hidden-image:1",
                    "env": ["PASSWORD=hidden-password"],
                    "args": ["hidden-argument"],
                    "labels": {"a": "hidden-label"},
                    "secrets": [{"source": "hidden-name"}],
                });
            }));
        }
        cluster.settle();
        let tasks: Vec<Task> = cluster.state().tasks().values().cloned().collect();
        for (number, task) in (1..).zip(tasks) {
            let mut status = TaskStatus::new(TaskState::Running, NOW, "hidden-message");
            status.address = Some([240, 0, 0, number].into());
            status.container = Some("hidden-container".to_owned());
            cluster.make(vec![ObjectChange::Observe {
                task: task.id,
                status,
            }]);
        }
        Self { cluster, worker }
    }

    fn task(&self, service: &str, node: &NodeId) -> &Task {
        let mut tasks = self.cluster.state().tasks().values();
        tasks
            .find(|task| &*task.service_name == service && task.node.as_ref() == Some(node))
            .unwrap()
    }

    fn entries(&self) -> Vec<Entry> {
        let state = self.cluster.state();
        let mut all: Vec<(Key, Vec<u8>)> = Vec::new();
        let mut add = |key: Key, value: Value| all.push((key, value.to_string().into_bytes()));
        for node in state.nodes().values() {
            add(stored::node(&node.id).unwrap(), json!(node));
            let registration = Registration {
                address: node.address.clone(),
                logs: Some("10.9.9.9:1".to_owned()),
                engine_version: "hidden-version".to_owned(),
                ..Registration::default()
            };
            add(stored::registration(&node.id).unwrap(), json!(registration));
        }
        for service in state.services().values() {
            let author = Author {
                by: "hidden-user".to_owned(),
                at: NOW,
                action: "create".to_owned(),
            };
            let revised = json!({"revision": "1-00000001", "author": author, "value": &**service});
            add(stored::service(&service.id).unwrap(), revised);
        }
        for task in state.tasks().values() {
            let spec = stored::spec(&task.service, task.spec_version).unwrap();
            add(spec, json!(task.spec));
            add(stored::task(&task.id).unwrap(), json!(StoredTask::new(task)));
        }
        add(stored::ports().unwrap(), json!(PortLedger::default()));
        all.into_iter()
            .map(|(key, value)| Entry {
                key,
                value,
                created: Revision(3),
                modified: Revision(3),
                version: 1,
            })
            .collect()
    }

    fn mirror(&self) -> Mirror {
        Mirror::new(Revision(3), &self.entries(), NOW).unwrap()
    }

    fn viewed(&self, name: &Name) -> Option<String> {
        let entry = read::view(&self.mirror(), &self.worker, name).unwrap()?;
        assert_eq!(Some(entry.key), name.key());
        Some(String::from_utf8(entry.value).unwrap())
    }

    fn facts(&self) -> Facts {
        let own = [240, 0, 4, 1].into()..=[240, 0, 7, 255].into();
        Facts::of(
            self.cluster.state(),
            &self.worker,
            Some(own),
            Timestamp(3_000_000),
        )
    }

    /// What is stored after the worker's write.
    fn write(&self, name: &Name, old: &Value, new: &Value) -> Result<Value, Refusal> {
        let key = name.key().unwrap();
        let (old, new) = (old.to_string(), new.to_string());
        let written = write::check(
            &self.worker,
            &key,
            Some(old.as_bytes()),
            new.as_bytes(),
            &self.facts(),
        )?;
        Ok(serde_json::from_slice(&written).unwrap())
    }
}

#[test]
fn a_worker_gets_its_own_tasks_whole_and_what_they_run() {
    let scene = Scene::new();
    for service in ["web", "db"] {
        let task = scene.task(service, &scene.worker);
        let viewed = scene.viewed(&Name::Task(task.id.clone())).unwrap();
        let viewed: StoredTask = serde_json::from_str(&viewed).unwrap();
        assert_eq!(viewed, StoredTask::new(task));
        let spec = Name::Spec(task.service.clone(), task.spec_version);
        let viewed = scene.viewed(&spec).unwrap();
        assert_eq!(serde_json::from_str::<TaskSpec>(&viewed).unwrap(), *task.spec);
    }
    let text: String = read::names(&scene.mirror())
        .filter_map(|name| scene.viewed(&name))
        .collect();
    assert_eq!(text.matches("hidden-image").count(), 2, "{text}");
}

#[test]
fn what_only_other_nodes_run_is_not_shown() {
    let mut scene = Scene::new();
    let spec = Name::Spec("db".into(), 1);
    let own = scene.task("db", &scene.worker).id.clone();
    // As long as the worker gets an ended task, it gets what that one ran.
    scene.cluster.observe(&own, TaskState::Failed);
    assert!(scene.viewed(&spec).is_some());
    scene.cluster.make(vec![ObjectChange::RemoveTask(own)]);
    assert!(scene.mirror().specs().get(&"db".into(), 1).is_some());
    assert_eq!(scene.viewed(&spec), None);
    assert_eq!(scene.viewed(&Name::Spec("web".into(), 2)), None);
}

#[test]
fn of_another_nodes_task_a_worker_gets_what_routing_needs() {
    let scene = Scene::new();
    let other = NodeId::from("node2");
    let task = scene.task("web", &other);
    let viewed = scene.viewed(&Name::Task(task.id.clone())).unwrap();
    assert!(!viewed.contains("hidden"), "{viewed}");
    let length = viewed.len();
    let viewed: StoredTask = serde_json::from_str(&viewed).unwrap();
    let spec = viewed.spec.clone().unwrap();
    assert_eq!(spec, read::nothing_to_run());
    assert!(length < 500, "{length} bytes");
    let viewed = viewed.with(spec);
    assert_eq!(viewed.status.address, task.status.address);
    assert_eq!((viewed.name(), viewed.node), (task.name(), Some(other.clone())));
    let unrouted = scene.task("db", &other);
    assert_eq!(scene.viewed(&Name::Task(unrouted.id.clone())), None);
}

#[test]
fn another_nodes_task_that_takes_no_connections_is_not_shown() {
    let mut scene = Scene::new();
    let id = scene.task("web", &"node2".into()).id.clone();
    scene.cluster.observe(&id, TaskState::Failed);
    assert_eq!(scene.viewed(&Name::Task(id)), None);
}

#[test]
fn of_a_service_a_worker_gets_ports_and_the_meshs_labels_and_more_if_it_runs_it() {
    let mut scene = Scene::new();
    let text = scene.viewed(&Name::Service("web".into())).unwrap();
    assert!(
        text.contains("hidden-owner"),
        "its templates may name any label: {text}"
    );
    for hidden in [
        "hidden-user",
        "hidden-image",
        "hidden-password",
        "hidden-argument",
        "hidden-name",
    ] {
        assert!(!text.contains(hidden), "{text}");
    }
    for service in ["web", "db"] {
        let id = scene.task(service, &scene.worker).id.clone();
        scene.cluster.observe(&id, TaskState::Failed);
    }
    let text = scene.viewed(&Name::Service("web".into())).unwrap();
    assert!(text.contains("mesh.scheduler") && text.contains("8080"), "{text}");
    assert!(!text.contains("hidden"), "{text}");
    assert_eq!(scene.viewed(&Name::Service("db".into())), None);
}

#[test]
fn of_another_node_a_worker_gets_what_routing_needs() {
    let scene = Scene::new();
    let text = scene.viewed(&Name::Node("node2".into())).unwrap();
    assert!(text.contains("10.0.0.2") && !text.contains("rack"), "{text}");
    let text = scene.viewed(&Name::Registration("node2".into())).unwrap();
    assert!(
        text.contains("10.0.0.2") && !text.contains("hidden") && !text.contains("10.9.9.9"),
        "{text}"
    );
    let own = scene.viewed(&Name::Registration(scene.worker.clone())).unwrap();
    assert!(own.contains("hidden-version"), "{own}");
}

#[test]
fn whatever_else_is_stored_now_or_later_is_neither_shown_nor_written() {
    let scene = Scene::new();
    let keys = [
        "/secrets/a",
        "/configs/a",
        "/registries/docker.io",
        "/webhooks/a",
        "/agents/tunnel",
        "/tokens/a",
        "/keys/active",
        "/history/services/web/1",
        "/specs/others/1",
        "/mesh/blocks/00001",
        "/guards/services",
        "/ports/ledger",
        "/of-a-later-release/a",
        "/ephemeral/of-a-later-release/a",
    ];
    let keys = keys.map(|key| key.parse::<Key>().unwrap());
    for key in keys.into_iter().chain([election_key(stored::ELECTION).unwrap()]) {
        assert_eq!(scene.viewed(&stored::name(&key)), None, "{key}");
        assert!(
            may_expect(scene.cluster.state(), &scene.worker, &key).is_err(),
            "{key}"
        );
        let written = write::check(&scene.worker, &key, None, b"{}", &scene.facts());
        assert_eq!(written, Err(Refusal::Kind(key)));
    }
    // It is shown what its tasks run, and does not change it.
    let key = stored::spec(&"web".into(), 1).unwrap();
    assert!(may_expect(scene.cluster.state(), &scene.worker, &key).is_err());
    let written = write::check(&scene.worker, &key, None, b"{}", &scene.facts());
    assert_eq!(written, Err(Refusal::Kind(key)));
    // All that is shown is of these kinds.
    let mirror = scene.mirror();
    let shown = read::names(&mirror)
        .filter(|name| scene.viewed(name).is_some())
        .filter_map(|name| name.key());
    for key in shown {
        let kind = key.segments().next().unwrap().to_owned();
        assert!(
            ["nodes", "services", "specs", "tasks", "ephemeral"].contains(&kind.as_str()),
            "{key}"
        );
    }
}

#[test]
fn a_worker_reports_the_status_of_its_own_tasks_and_changes_nothing_else() {
    let scene = Scene::new();
    let task = scene.task("web", &scene.worker);
    let name = Name::Task(task.id.clone());
    let old = json!(StoredTask::new(task));
    let report = |change: &dyn Fn(&mut Value)| {
        let mut new = old.clone();
        new["status"] = json!({"state": "failed", "at": 2_000_000, "message": "failed", "exit_code": 1});
        new["finished_at"] = json!(2_000_000);
        change(&mut new);
        scene.write(&name, &old, &new)
    };
    let written = report(&|_| {}).unwrap();
    assert_eq!(
        (&written["status"]["state"], &written["desired"]),
        (&json!("failed"), &json!("running"))
    );
    let late = report(&|new| {
        new["status"]["at"] = json!(9_000_000_000_u64);
        new["finished_at"] = json!(9_000_000_000_u64);
    });
    let late = late.unwrap();
    assert_eq!(
        (&late["status"]["at"], &late["finished_at"]),
        (&json!(3_000_000), &json!(3_000_000))
    );
    let refused: [&dyn Fn(&mut Value); 11] = [
        &|new| new["desired"] = json!("shutdown"),
        &|new| new["node"] = json!("node2"),
        &|new| new["service"] = json!("db"),
        &|new| new["spec"] = json!(task.spec),
        &|new| new["spec_version"] = json!(2),
        &|new| {
            new["host_ports"] =
                json!([{"target_port": 1, "published_port": 1, "protocol": "tcp", "publish_mode": "host"}]);
        },
        &|new| new["status"]["state"] = json!("ready"),
        &|new| new["status"]["state"] = json!("orphaned"),
        &|new| new["status"]["address"] = json!("240.0.8.1"),
        &|new| new["status"]["message"] = json!("x".repeat(10_000)),
        &|new| new["started_at"] = json!(5),
    ];
    for (number, change) in refused.into_iter().enumerate() {
        assert!(matches!(report(change), Err(Refusal::Part { .. })), "{number}");
    }
    report(&|new| new["status"]["address"] = json!("240.0.4.9")).unwrap();
}

#[test]
fn when_a_task_started_stays_if_another_manager_whose_clock_is_ahead_has_recorded_it() {
    let scene = Scene::new();
    let task = scene.task("web", &scene.worker);
    let mut old = json!(StoredTask::new(task));
    old["started_at"] = json!(4_000_000);
    let mut new = old.clone();
    new["status"]["state"] = json!("failed");
    new["finished_at"] = json!(4_000_001);
    let written = scene.write(&Name::Task(task.id.clone()), &old, &new).unwrap();
    assert_eq!(
        (&written["started_at"], &written["finished_at"]),
        (&json!(4_000_000), &json!(3_000_000))
    );
}

#[test]
fn a_task_that_was_stored_with_what_it_runs_keeps_it() {
    let scene = Scene::new();
    let task = scene.task("web", &scene.worker);
    let name = Name::Task(task.id.clone());
    let old = json!(StoredTask::whole(task));
    let mut new = old.clone();
    new["status"]["state"] = json!("failed");
    let written = scene.write(&name, &old, &new).unwrap();
    assert_eq!(written["spec"], json!(task.spec));
    new["spec"]["container_spec"]["image"] = json!("other");
    assert!(matches!(
        scene.write(&name, &old, &new),
        Err(Refusal::Part { .. })
    ));
}

#[test]
fn what_a_later_release_stores_in_a_task_stays() {
    let scene = Scene::new();
    let task = scene.task("web", &scene.worker);
    let mut old = json!(StoredTask::new(task));
    old["of_a_later_release"] = json!(7);
    let mut new = json!(StoredTask::new(task));
    new["status"]["state"] = json!("failed");
    let written = scene.write(&Name::Task(task.id.clone()), &old, &new).unwrap();
    assert_eq!(written["of_a_later_release"], json!(7));
}

#[test]
fn another_nodes_objects_cannot_be_written() {
    let scene = Scene::new();
    let task = scene.task("web", &"node2".into());
    let name = Name::Task(task.id.clone());
    assert!(matches!(
        scene.write(&name, &json!(task), &json!(task)),
        Err(Refusal::NotOwn(_))
    ));
    // Nor by the name of an own one.
    let own = Name::Task(scene.task("web", &scene.worker).id.clone());
    assert!(matches!(
        scene.write(&own, &json!(task), &json!(task)),
        Err(Refusal::NotOwn(_))
    ));
    let node = json!(scene.cluster.state().nodes()["node2"]);
    for name in [Name::Node("node2".into()), Name::Registration("node2".into())] {
        assert!(matches!(
            scene.write(&name, &node, &node),
            Err(Refusal::NotOwn(_))
        ));
    }
    let expect = |name: &Name| may_expect(scene.cluster.state(), &scene.worker, &name.key().unwrap());
    assert!(expect(&name).is_err() && expect(&Name::Node("node2".into())).is_err());
    assert!(expect(&own).is_ok() && expect(&Name::Restore).is_ok());
}

#[test]
fn a_worker_describes_its_engine_and_not_what_operators_decide() {
    let scene = Scene::new();
    let name = Name::Node(scene.worker.clone());
    let old = json!(scene.cluster.state().nodes()[&scene.worker]);
    let describe = |change: &dyn Fn(&mut Value)| {
        let mut new = old.clone();
        change(&mut new);
        scene.write(&name, &old, &new)
    };
    let written = describe(&|new| {
        new["address"] = json!("10.0.0.77");
        new["engine_labels"] = json!({"a": "b"});
        new["resources"] = json!({"nano_cpus": 5, "memory_bytes": 6});
    });
    assert_eq!(written.unwrap()["address"], "10.0.0.77");
    let refused: [&dyn Fn(&mut Value); 9] = [
        &|new| new["labels"] = json!({"trusted": "yes"}),
        &|new| new["hostname"] = json!("host2"),
        &|new| new["role"] = json!("manager"),
        &|new| new["availability"] = json!("drain"),
        &|new| new["status"] = json!(NodeStatus::Down),
        &|new| new["id"] = json!("node2"),
        &|new| new["address"] = json!("10.0.0.2"),
        &|new| new["address"] = json!("127.0.0.1"),
        &|new| new["engine_labels"] = json!({"a": "x".repeat(100_000)}),
    ];
    for (number, change) in refused.into_iter().enumerate() {
        assert!(matches!(describe(change), Err(Refusal::Part { .. })), "{number}");
    }
}

#[test]
fn a_registration_is_bounded_and_of_the_workers_own_address() {
    let scene = Scene::new();
    let name = Name::Registration(scene.worker.clone());
    let register = |change: &dyn Fn(&mut Value)| {
        let mut new = json!({"address": "10.0.0.1", "logs": "10.0.0.1:9468", "engine": true});
        change(&mut new);
        scene.write(&name, &json!({}), &new)
    };
    assert_eq!(register(&|_| {}).unwrap()["engine"], true);
    let refused: [&dyn Fn(&mut Value); 5] = [
        &|new| new["address"] = json!("10.0.0.2"),
        &|new| new["logs"] = json!("10.0.0.2:9468"),
        &|new| new["release"] = json!("x".repeat(1000)),
        &|new| new["keys"] = json!((0..100).collect::<Vec<_>>()),
        &|new| new["datapath"] = json!("x".repeat(100_000)),
    ];
    for (number, change) in refused.into_iter().enumerate() {
        assert!(matches!(register(change), Err(Refusal::Part { .. })), "{number}");
    }
}
