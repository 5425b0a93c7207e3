//! Everything that can happen to the cluster's state, and what of it each change touches.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{
    Node, NodeId, PortLedger, Service, ServiceId, Slot, Task, TaskId, TaskState, TaskStatus, Timestamp,
};

/// One change of the cluster's state. Users' commands, agents' reports and control loops all speak it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectChange {
    /// A service appears or is another.
    PutService(Arc<Service>),
    /// A service is gone; its tasks follow.
    RemoveService(ServiceId),
    /// A node appears or is another.
    PutNode(Box<Node>),
    /// A node is gone; nobody knows what becomes of its tasks.
    RemoveNode(NodeId),
    /// Port numbers were given.
    PutPorts(PortLedger),
    /// A task appears.
    CreateTask(Box<Task>),
    /// A task is as the store has it, whatever it was before.
    PutTask(Box<Task>),
    /// A task gets a node.
    Assign {
        /// The task.
        task: TaskId,
        /// Its node.
        node: NodeId,
        /// When.
        at: Timestamp,
    },
    /// Another end is meant for a task.
    SetDesired {
        /// The task.
        task: TaskId,
        /// What is meant to become of it.
        desired: TaskState,
    },
    /// A task has ended and is not replaced: desired `shutdown`, and its slot stays taken.
    GiveUp(TaskId),
    /// A task was seen to have come further, or has something else to say.
    Observe {
        /// The task.
        task: TaskId,
        /// What was seen.
        status: TaskStatus,
    },
    /// A task is forgotten.
    RemoveTask(TaskId),
}

/// Why a change does not apply. The state is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The service is not there (any more).
    #[error("service {0} does not exist: read the list of services again")]
    UnknownService(ServiceId),
    /// The node is not there (any more).
    #[error("node {0} does not exist: read the list of nodes again")]
    UnknownNode(NodeId),
    /// The task is not there (any more).
    #[error("task {0} does not exist: read the list of tasks again")]
    UnknownTask(TaskId),
    /// There is one already.
    #[error("task {0} exists already: make it with another seed")]
    TaskExists(TaskId),
    /// The name belongs to another service.
    #[error("a service named {0} exists already: choose another name, or update that one")]
    NameTaken(String),
    /// A state would move back.
    #[error("task {task} is {from} and cannot become {to} again: tasks are replaced, not restarted")]
    Backwards {
        /// The task.
        task: TaskId,
        /// Its state.
        from: TaskState,
        /// The earlier one.
        to: TaskState,
    },
}

/// What has changed since the control loops last looked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// Services, and what of them.
    pub services: BTreeMap<ServiceId, Touched>,
    /// Nodes that are other than they were, new or gone.
    pub nodes: BTreeSet<NodeId>,
    /// Tasks wait for a node, and it is worth trying.
    pub unplaced: bool,
}

/// What of a service has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// The service itself: every slot has to be looked at.
    pub service: bool,
    /// Slots whose tasks have changed.
    pub slots: BTreeSet<Slot>,
}

impl Events {
    /// Nothing has changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && self.nodes.is_empty() && !self.unplaced
    }

    /// A whole service has to be looked at.
    pub fn touch_service(&mut self, service: &ServiceId) {
        self.services.entry(service.clone()).or_default().service = true;
    }

    /// A slot has to be looked at.
    pub fn touch_slot(&mut self, service: &ServiceId, slot: &Slot) {
        match self.services.get_mut(service) {
            Some(touched) if touched.service => {}
            Some(touched) => drop(touched.slots.insert(slot.clone())),
            None => {
                let slots = BTreeSet::from([slot.clone()]);
                self.services.insert(
                    service.clone(),
                    Touched {
                        service: false,
                        slots,
                    },
                );
            }
        }
    }

    /// Adds what else has changed.
    pub fn extend(&mut self, other: Self) {
        for (service, touched) in other.services {
            let entry = self.services.entry(service).or_default();
            entry.service |= touched.service;
            entry.slots.extend(touched.slots);
        }
        self.nodes.extend(other.nodes);
        self.unplaced |= other.unplaced;
    }
}
