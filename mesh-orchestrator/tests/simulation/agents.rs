//! The simulated nodes: their agents take tasks through their states, and they fail.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::random::Random;
use mesh_orchestrator::{
    commands,
    objects::{
        Availability, Node, NodeId, NodeRole, NodeStatus, ObjectChange, State, Task, TaskId, TaskState,
        TaskStatus, Timestamp,
    },
    spec::{Platform, Resources},
};

/// The largest number of nodes at a time.
const MAX_NODES: usize = 9;

/// All nodes and their state.
#[derive(Debug, Default)]
pub(crate) struct Agents {
    joined: u64,
    /// Silent nodes, and whether their containers died with them.
    silent: BTreeMap<NodeId, bool>,
    /// Tasks whose containers died with their nodes.
    lost: BTreeSet<TaskId>,
    /// When each task advances next, and whether that was planned while it was stopping.
    due: BTreeMap<TaskId, (Timestamp, bool)>,
    /// Nothing fails any more.
    calm: bool,
}

impl Agents {
    /// A new node.
    pub(crate) fn join(&mut self, random: &mut Random, state: &State, now: Timestamp) -> Vec<ObjectChange> {
        self.joined += 1;
        let number = self.joined;
        let gibibyte = 1 << 30;
        let node = Node {
            id: NodeId::from(format!("node{number}").as_str()),
            hostname: format!("host{number}"),
            address: format!("10.0.0.{number}"),
            role: if number == 1 {
                NodeRole::Manager
            } else {
                NodeRole::Worker
            },
            labels: BTreeMap::from([("zone".into(), random.one_of(&["a", "b", "c"]).into())]),
            engine_labels: BTreeMap::new(),
            platform: Platform {
                os: "linux".into(),
                architecture: random.one_of(&["x86_64", "x86_64", "aarch64"]).into(),
            },
            resources: Resources {
                nano_cpus: random.between(1, 8) * 1_000_000_000,
                memory_bytes: random.between(1, 16) * gibibyte,
            },
            availability: Availability::Active,
            status: NodeStatus::Ready,
            status_since: now,
            returned_at: None,
        };
        commands::put_node(state, node, now)
    }

    /// A node fails, recovers or is changed.
    pub(crate) fn fail(&mut self, random: &mut Random, state: &State, now: Timestamp) -> Vec<ObjectChange> {
        let ids: Vec<&NodeId> = state.nodes().keys().collect();
        if ids.is_empty() || (ids.len() < MAX_NODES && random.chance(1, 12)) {
            return self.join(random, state, now);
        }
        let id = random.one_of(&ids);
        let is_silent = self.silent.contains_key(id);
        let set = |availability| commands::modify_node(state, id, Some(availability), &BTreeMap::new(), now);
        let changes = match random.below(10) {
            0 => set(Availability::Drain),
            1 => set(Availability::Pause),
            2 | 3 => set(Availability::Active),
            4 if is_silent => {
                // It never comes back.
                self.silent.remove(id);
                let changes = commands::set_node_status(state, id, NodeStatus::Down, now);
                return changes
                    .into_iter()
                    .flatten()
                    .chain([ObjectChange::RemoveNode(id.clone())])
                    .collect();
            }
            5 if !is_silent => {
                let engine = random.one_of(&[NodeStatus::Unknown, NodeStatus::Ready]);
                commands::set_node_status(state, id, engine, now)
            }
            6 if !is_silent => {
                let zone = random.one_of(&["a", "b", "c"]);
                state
                    .nodes()
                    .get(id)
                    .map(|node| {
                        let mut node = node.clone();
                        node.labels.insert("zone".into(), zone.into());
                        commands::put_node(state, node, now)
                    })
                    .ok_or_else(|| commands::CommandError::UnknownNode(id.clone()))
            }
            _ if is_silent => {
                self.return_node(state, id);
                commands::set_node_status(state, id, NodeStatus::Ready, now)
            }
            _ => {
                let loses_power = random.chance(1, 2);
                self.silent.insert(id.clone(), loses_power);
                commands::set_node_status(state, id, NodeStatus::Down, now)
            }
        };
        changes.unwrap_or_default()
    }

    fn return_node(&mut self, state: &State, id: &NodeId) {
        if self.silent.remove(id) == Some(true) {
            let tasks = state.tasks_on(id).into_iter().flat_map(|index| &index.tasks);
            let started = tasks.filter(|task| {
                state
                    .tasks()
                    .get(*task)
                    .is_some_and(|task| task.status.state >= TaskState::Starting)
            });
            self.lost.extend(started.cloned());
        }
    }

    /// Every node comes back, and nothing fails any more.
    pub(crate) fn calm(&mut self, state: &State, now: Timestamp) -> Vec<ObjectChange> {
        self.calm = true;
        let mut changes = Vec::new();
        for node in state.nodes().values() {
            self.return_node(state, &node.id);
            let node = Node {
                status: NodeStatus::Ready,
                availability: Availability::Active,
                ..node.clone()
            };
            changes.extend(commands::put_node(state, node, now));
        }
        changes
    }

    /// When an agent next has something to do.
    pub(crate) fn next_due(&self) -> Option<Timestamp> {
        self.due.values().map(|(time, _)| *time).min()
    }

    /// The agents' reports by now.
    pub(crate) fn work(&mut self, random: &mut Random, state: &State, now: Timestamp) -> Vec<ObjectChange> {
        let mut reports = Vec::new();
        let mut due = BTreeMap::new();
        for (node, index) in state
            .nodes_with_tasks()
            .filter_map(|node| Some((node, state.tasks_on(node)?)))
        {
            let is_ready = state
                .nodes()
                .get(node)
                .is_some_and(|node| node.status == NodeStatus::Ready);
            if self.silent.contains_key(node) || !is_ready {
                continue;
            }
            for task in index.tasks.iter().filter_map(|id| state.tasks().get(id)) {
                if task.status.state < TaskState::Assigned {
                    continue;
                }
                let stops = !task.desired.is_wanted();
                if self.lost.remove(&task.id) {
                    let end = if stops {
                        TaskState::Shutdown
                    } else {
                        TaskState::Failed
                    };
                    reports.push(report(task, end, now, "its node lost power"));
                    continue;
                }
                let planned = self
                    .due
                    .get(&task.id)
                    .filter(|(_, planned_stop)| *planned_stop == stops);
                let time = match planned {
                    Some((time, _)) => *time,
                    None => match self.plan(random, task) {
                        Some(delay) => now + delay,
                        None => continue,
                    },
                };
                if time > now {
                    due.insert(task.id.clone(), (time, stops));
                } else if let Some(change) = self.advance(random, task, now) {
                    reports.push(change);
                }
            }
        }
        self.due = due;
        reports
    }

    /// Time until a task advances; `None` if it waits for its desired state.
    fn plan(&self, random: &mut Random, task: &Task) -> Option<Duration> {
        let image = task.spec.container_spec.image.as_str();
        let range = match task.status.state {
            _ if !task.desired.is_wanted() => (0, 8_000),
            TaskState::Ready if task.desired == TaskState::Ready => return None,
            TaskState::Starting if image.starts_with("slow") => (5_000, 30_000),
            TaskState::Running if image.starts_with("job") => (500, 20_000),
            TaskState::Running if self.calm => return None,
            TaskState::Running if image.starts_with("flaky") => (200, 4_000),
            // A container crashes occasionally.
            TaskState::Running => (20_000, 500_000),
            _ => (1, 1_500),
        };
        Some(Duration::from_millis(random.between(range.0, range.1)))
    }

    fn advance(&self, random: &mut Random, task: &Task, now: Timestamp) -> Option<ObjectChange> {
        let image = task.spec.container_spec.image.as_str();
        if !task.desired.is_wanted() {
            return Some(report(task, TaskState::Shutdown, now, "stopped"));
        }
        let next = match task.status.state {
            TaskState::Assigned => TaskState::Accepted,
            TaskState::Accepted => TaskState::Preparing,
            TaskState::Preparing if image.starts_with("missing") && !self.calm => TaskState::Rejected,
            TaskState::Preparing => TaskState::Ready,
            TaskState::Ready if task.desired == TaskState::Ready => return None,
            TaskState::Ready => TaskState::Starting,
            TaskState::Starting if image.starts_with("crashing") && !self.calm => TaskState::Failed,
            TaskState::Starting => TaskState::Running,
            TaskState::Running if image.starts_with("job") => {
                if !self.calm && random.chance(1, 3) {
                    TaskState::Failed
                } else {
                    TaskState::Complete
                }
            }
            TaskState::Running if self.calm => return None,
            TaskState::Running => random.one_of(&[TaskState::Failed, TaskState::Failed, TaskState::Complete]),
            _ => return None,
        };
        Some(report(task, next, now, "advanced"))
    }
}

fn report(task: &Task, state: TaskState, now: Timestamp, message: &str) -> ObjectChange {
    let mut status = TaskStatus::new(state, now, message);
    if state == TaskState::Failed {
        status.exit_code = Some(1);
    }
    ObjectChange::Observe {
        task: task.id.clone(),
        status,
    }
}
