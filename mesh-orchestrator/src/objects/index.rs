//! Indexes over tasks, so that a control loop's work is proportional to what has changed. They depend on the
//! tasks alone: a task is removed from all of them before it changes and added again afterwards.

use std::collections::{BTreeMap, BTreeSet};

use super::{NodeId, ServiceId, Slot, Task, TaskId, TaskState, Timestamp};
use crate::spec::{Protocol, Resources};

/// All indexes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Indexes {
    pub(super) services: BTreeMap<ServiceId, ServiceIndex>,
    pub(super) nodes: BTreeMap<NodeId, NodeIndex>,
    /// Nodes by the number of wanted tasks, the emptiest first.
    pub(super) load: BTreeSet<(u32, NodeId)>,
    /// Pending tasks by service and specification version: the scheduler treats each group as one.
    pub(super) unplaced: BTreeMap<(ServiceId, u64), BTreeSet<(Slot, TaskId)>>,
}

/// A service's tasks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceIndex {
    /// All tasks of each slot, the oldest first.
    pub slots: BTreeMap<Slot, BTreeSet<(Timestamp, TaskId)>>,
    /// Slots with wanted tasks.
    pub wanted: BTreeMap<Slot, u32>,
    /// Slots with tasks that were given up.
    pub given_up: BTreeMap<Slot, u32>,
    /// Wanted tasks by specification version.
    pub versions: BTreeMap<u64, u32>,
    /// All tasks, ended ones too, by specification version and node.
    pub specs: BTreeMap<u64, BTreeMap<Option<NodeId>, u32>>,
    /// Tasks that run and are wanted.
    pub running: u32,
    /// Tasks that wait for the service's dependencies to be ready.
    pub waiting: BTreeSet<TaskId>,
}

/// A node's tasks that have not ended, and the resources that they hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeIndex {
    /// The tasks, including those of global services that are bound to the node but not assigned yet.
    pub tasks: BTreeSet<TaskId>,
    /// Sum of what its tasks reserve.
    pub reserved: Resources,
    /// Ports in use in host mode.
    pub ports: BTreeMap<(Protocol, u16), u32>,
    /// Wanted tasks that hold resources there.
    pub active: u32,
    /// `active` by service.
    pub services: BTreeMap<ServiceId, u32>,
    /// Whether the node itself is known, not only tasks that were on it.
    pub is_known: bool,
}

impl Indexes {
    pub(super) fn link(&mut self, task: &Task) {
        let service = self.services.entry(task.service.clone()).or_default();
        service
            .slots
            .entry(task.slot.clone())
            .or_default()
            .insert((task.created_at, task.id.clone()));
        add(
            service.specs.entry(task.spec_version).or_default(),
            task.node.clone(),
        );
        if task.desired.is_wanted() {
            add(&mut service.wanted, task.slot.clone());
            add(&mut service.versions, task.spec_version);
        }
        if task.given_up && task.desired == TaskState::Shutdown {
            add(&mut service.given_up, task.slot.clone());
        }
        service.running += u32::from(task.is_running());
        if task.status.state == TaskState::New && task.desired.is_wanted() {
            service.waiting.insert(task.id.clone());
        }
        if is_unplaced(task) {
            let group = (task.service.clone(), task.spec_version);
            self.unplaced
                .entry(group)
                .or_default()
                .insert((task.slot.clone(), task.id.clone()));
        }
        let Some(node) = task.node.as_ref().filter(|_| !task.status.state.is_terminal()) else {
            return;
        };
        let id = node;
        let node = self.nodes.entry(id.clone()).or_default();
        node.tasks.insert(task.id.clone());
        if task.status.state.holds_resources() {
            node.reserved = node.reserved.plus(task.spec.resources.reservations);
            for port in &task.host_ports {
                add(&mut node.ports, (port.protocol, port.published_port));
            }
            if task.is_live() {
                if node.is_known {
                    self.load.remove(&(node.active, id.clone()));
                    self.load.insert((node.active + 1, id.clone()));
                }
                node.active += 1;
                add(&mut node.services, task.service.clone());
            }
        }
    }

    pub(super) fn unlink(&mut self, task: &Task) {
        if let Some(service) = self.services.get_mut(&task.service) {
            service.unlink(task);
            if service.slots.is_empty() {
                self.services.remove(&task.service);
            }
        }
        if is_unplaced(task) {
            let group = (task.service.clone(), task.spec_version);
            if let Some(tasks) = self.unplaced.get_mut(&group) {
                tasks.remove(&(task.slot.clone(), task.id.clone()));
                if tasks.is_empty() {
                    self.unplaced.remove(&group);
                }
            }
        }
        let Some(id) = task.node.as_ref().filter(|_| !task.status.state.is_terminal()) else {
            return;
        };
        let Some(node) = self.nodes.get_mut(id) else {
            return;
        };
        node.tasks.remove(&task.id);
        if task.status.state.holds_resources() {
            node.reserved = node.reserved.minus(task.spec.resources.reservations);
            for port in &task.host_ports {
                subtract(&mut node.ports, &(port.protocol, port.published_port));
            }
            if task.is_live() {
                if node.is_known {
                    self.load.remove(&(node.active, id.clone()));
                    self.load.insert((node.active - 1, id.clone()));
                }
                node.active -= 1;
                subtract(&mut node.services, &task.service);
            }
        }
        if node.tasks.is_empty() && !node.is_known {
            self.nodes.remove(id);
        }
    }

    /// Records that a node was added or removed.
    pub(super) fn set_known(&mut self, id: &NodeId, is_known: bool) {
        let node = self.nodes.entry(id.clone()).or_default();
        node.is_known = is_known;
        if is_known {
            self.load.insert((node.active, id.clone()));
        } else {
            self.load.remove(&(node.active, id.clone()));
            if node.tasks.is_empty() {
                self.nodes.remove(id);
            }
        }
    }
}

impl ServiceIndex {
    fn unlink(&mut self, task: &Task) {
        if let Some(tasks) = self.slots.get_mut(&task.slot) {
            tasks.remove(&(task.created_at, task.id.clone()));
            if tasks.is_empty() {
                self.slots.remove(&task.slot);
            }
        }
        if let Some(nodes) = self.specs.get_mut(&task.spec_version) {
            subtract(nodes, &task.node);
            if nodes.is_empty() {
                self.specs.remove(&task.spec_version);
            }
        }
        if task.desired.is_wanted() {
            subtract(&mut self.wanted, &task.slot);
            subtract(&mut self.versions, &task.spec_version);
        }
        if task.given_up && task.desired == TaskState::Shutdown {
            subtract(&mut self.given_up, &task.slot);
        }
        self.running -= u32::from(task.is_running());
        self.waiting.remove(&task.id);
    }
}

/// Whether a task only lacks a node.
fn is_unplaced(task: &Task) -> bool {
    task.status.state == TaskState::Pending && task.desired.is_wanted()
}

fn add<K: Ord>(counts: &mut BTreeMap<K, u32>, key: K) {
    *counts.entry(key).or_default() += 1;
}

fn subtract<K: Ord>(counts: &mut BTreeMap<K, u32>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}
