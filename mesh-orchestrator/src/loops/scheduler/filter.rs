//! The filters that a node must pass to be assigned a task, in the order in which refusals are reported.

use std::fmt;

use crate::{
    objects::{Node, State, Task},
    spec::{Placement, Resources},
};

use super::spread::Candidate;

/// Why a node cannot take a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Its agent or engine does not answer.
    NotReady,
    /// It is paused or drained.
    NotActive,
    /// Less CPU is free than the task reserves.
    Cpu,
    /// Less memory is free than the task reserves.
    Memory,
    /// A placement constraint does not hold.
    Constraint,
    /// The image is for other platforms.
    Platform,
    /// Another task uses the port.
    HostPort,
    /// It has the maximum number of the service's tasks per node.
    MaxReplicas,
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::NotReady => "node not ready",
            Self::NotActive => "node paused or drained",
            Self::Cpu => "insufficient CPU",
            Self::Memory => "insufficient memory",
            Self::Constraint => "constraint not met",
            Self::Platform => "unsupported platform",
            Self::HostPort => "host port in use",
            Self::MaxReplicas => "max replicas per node reached",
        })
    }
}

/// Whether a node meets a service's constraints and platforms, whether or not it has resources left.
#[must_use]
pub fn suits(node: &Node, placement: &Placement) -> bool {
    unsuitable(node, placement).is_none()
}

fn unsuitable(node: &Node, placement: &Placement) -> Option<Reason> {
    let holds = |constraint: &crate::spec::Constraint| constraint.holds(node.attribute(&constraint.key));
    if !placement.constraints.iter().all(holds) {
        return Some(Reason::Constraint);
    }
    let platforms = &placement.platforms;
    if !platforms.is_empty() && !platforms.iter().any(|platform| platform.runs_on(&node.platform)) {
        return Some(Reason::Platform);
    }
    None
}

/// The filters whose result does not depend on which tasks of the same group were placed before.
pub(super) fn check(state: &State, node: &Node, task: &Task) -> Option<Reason> {
    if node.status != crate::objects::NodeStatus::Ready {
        return Some(Reason::NotReady);
    }
    if !node.is_schedulable() {
        return Some(Reason::NotActive);
    }
    if let Some(reason) = unsuitable(node, &task.spec.placement) {
        return Some(reason);
    }
    let taken = |port: &crate::objects::EndpointPort| {
        state
            .tasks_on(&node.id)
            .is_some_and(|index| index.ports.contains_key(&(port.protocol, port.published_port)))
    };
    task.host_ports.iter().any(taken).then_some(Reason::HostPort)
}

impl Candidate<'_> {
    /// The filters whose result may change with each task that is placed.
    pub(super) fn refuses(&self, task: &Task) -> Option<Reason> {
        let wanted: Resources = task.spec.resources.reservations;
        if wanted.nano_cpus > self.free.nano_cpus {
            return Some(Reason::Cpu);
        }
        if wanted.memory_bytes > self.free.memory_bytes {
            return Some(Reason::Memory);
        }
        if self.added > 0 && !task.host_ports.is_empty() {
            return Some(Reason::HostPort);
        }
        let limit = task.spec.placement.max_replicas_per_node;
        (limit > 0 && self.service >= limit).then_some(Reason::MaxReplicas)
    }
}
