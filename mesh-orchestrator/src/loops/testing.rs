//! A small cluster for the loops' tests: a controller, a clock set by the test, and shorthands.

use std::time::Duration;

use super::Controller;
use crate::{
    commands::{self, CommandError},
    objects::{
        Availability, Node, NodeId, NodeRole, NodeStatus, ObjectChange, Service, ServiceId, Slot, State,
        Task, TaskId, TaskState, TaskStatus, Timestamp,
    },
    spec::{Platform, Resources, ServiceSpec},
};

#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) controller: Controller,
    pub(crate) now: Timestamp,
    seed: u128,
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            controller: Controller::default(),
            now: Timestamp(1_000_000),
            seed: 0,
        }
    }
}

impl Cluster {
    /// A cluster of identical nodes.
    pub(crate) fn of(nodes: u32) -> Self {
        let mut cluster = Self::default();
        (1..=nodes).for_each(|number| cluster.put_node(node(number)));
        cluster
    }

    pub(crate) fn state(&self) -> &State {
        self.controller.state()
    }

    pub(crate) fn make(&mut self, changes: Vec<ObjectChange>) {
        for change in changes {
            self.controller.apply(&change).unwrap();
        }
    }

    pub(crate) fn put_node(&mut self, node: Node) {
        self.make(commands::put_node(self.controller.state(), node, self.now));
    }

    pub(crate) fn create(&mut self, spec: ServiceSpec) {
        let id = ServiceId::from(spec.name.as_str());
        self.make(commands::create_service(self.controller.state(), id, spec, self.now).unwrap());
    }

    pub(crate) fn update(&mut self, name: &str, change: impl FnOnce(&mut serde_json::Value)) {
        let service = self.service(name).clone();
        let mut json = serde_json::to_value(&*service.spec).unwrap();
        change(&mut json);
        let spec = ServiceSpec::from_json(json.to_string().as_bytes()).unwrap();
        self.make(
            commands::update_service(self.state(), &service.id, service.version, spec, self.now).unwrap(),
        );
    }

    pub(crate) fn scale(&mut self, name: &str, replicas: u32) {
        self.make(commands::scale_service(self.state(), &name.into(), replicas, self.now).unwrap());
    }

    pub(crate) fn set_availability(&mut self, node: &str, availability: Availability) {
        let labels = std::collections::BTreeMap::new();
        let id = node.into();
        self.make(commands::modify_node(self.state(), &id, Some(availability), &labels, self.now).unwrap());
    }

    pub(crate) fn set_status(&mut self, node: &str, status: NodeStatus) {
        self.make(commands::set_node_status(self.state(), &node.into(), status, self.now).unwrap());
    }

    pub(crate) fn service(&self, name: &str) -> &Service {
        self.state().service_named(name).unwrap()
    }

    /// Advances the clock and runs the loops.
    pub(crate) fn pass(&mut self, seconds: u64) {
        self.now = self.now + Duration::from_secs(seconds);
        self.step();
    }

    pub(crate) fn step(&mut self) -> Vec<ObjectChange> {
        self.seed += 1;
        self.controller.step(self.now, self.seed).unwrap()
    }

    pub(crate) fn observe(&mut self, task: &TaskId, state: TaskState) {
        let status = TaskStatus::new(state, self.now, "set by the test");
        self.make(vec![ObjectChange::Observe {
            task: task.clone(),
            status,
        }]);
    }

    fn find(&self, which: impl Fn(&Task) -> bool) -> Vec<TaskId> {
        let tasks = self.state().tasks().values().filter(|task| which(task));
        tasks.map(|task| task.id.clone()).collect()
    }

    /// Lets every task run that may, and every task stop that is to; then runs the loops.
    pub(crate) fn run_all(&mut self) {
        for task in self.find(Task::is_stopping) {
            self.observe(&task, TaskState::Shutdown);
        }
        let starts = |task: &Task| {
            task.is_live() && task.desired != TaskState::Ready && task.status.state.holds_resources()
        };
        for task in self.find(starts) {
            self.observe(&task, TaskState::Running);
        }
        self.step();
    }

    /// Repeats [`Self::run_all`] until nothing changes.
    pub(crate) fn settle(&mut self) {
        for _ in 0..100 {
            let before = self.state().tasks().clone();
            self.run_all();
            if *self.state().tasks() == before {
                return;
            }
        }
        panic!("the tasks keep changing: {:#?}", self.state().tasks());
    }

    /// Lets every task fail that has a node, then runs the loops.
    pub(crate) fn fail_all(&mut self) {
        for task in self.find(|task| task.is_live() && task.status.state.holds_resources()) {
            self.observe(&task, TaskState::Failed);
        }
        self.step();
    }

    /// The tasks of a slot, the oldest first.
    pub(crate) fn slot(&self, name: &str, number: u32) -> Vec<&Task> {
        self.state()
            .slot(&self.service(name).id, &Slot::Number(number))
            .collect()
    }

    /// Slots of a service that have a running task.
    pub(crate) fn running(&self, name: &str) -> Vec<Slot> {
        let id = &self.service(name).id;
        let mut slots: Vec<Slot> = self
            .state()
            .tasks()
            .values()
            .filter(|task| task.service == *id && task.is_running())
            .map(|task| task.slot.clone())
            .collect();
        slots.sort();
        slots
    }
}

pub(crate) fn node(number: u32) -> Node {
    Node {
        id: NodeId::from(format!("node{number}").as_str()),
        hostname: format!("host{number}"),
        address: format!("10.0.0.{number}"),
        role: NodeRole::Worker,
        labels: [].into(),
        engine_labels: [].into(),
        platform: Platform {
            os: "linux".into(),
            architecture: "x86_64".into(),
        },
        resources: Resources {
            nano_cpus: 4_000_000_000,
            memory_bytes: 8 << 30,
        },
        availability: Availability::Active,
        status: NodeStatus::Ready,
        status_since: Timestamp(0),
        returned_at: None,
    }
}

pub(crate) fn spec(name: &str, change: impl FnOnce(&mut serde_json::Value)) -> ServiceSpec {
    try_spec(name, change).unwrap()
}

fn try_spec(name: &str, change: impl FnOnce(&mut serde_json::Value)) -> Result<ServiceSpec, CommandError> {
    let mut json = serde_json::json!({
        "name": name,
        "task_template": { "container_spec": { "image": "nginx" } },
    });
    change(&mut json);
    Ok(ServiceSpec::from_json(json.to_string().as_bytes())?)
}

pub(crate) fn replicas(count: u32) -> impl Fn(&mut serde_json::Value) {
    move |json| json["mode"] = serde_json::json!({ "replicated": { "replicas": count } })
}
