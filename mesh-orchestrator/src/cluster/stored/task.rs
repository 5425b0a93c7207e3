//! A task as it is stored: it names its specification, which is stored once for all tasks of a version.
//! Imports `objects`.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    cluster::MissingSpec,
    objects::{EndpointPort, NodeId, ServiceId, Slot, Task, TaskId, TaskState, TaskStatus, Timestamp},
    spec::TaskSpec,
    store::Key,
};

/// A [`Task`] without its specification, which `service` and `spec_version` name.
///
/// What is empty is left out: there are as many of these as tasks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::cluster) struct StoredTask {
    pub(in crate::cluster) id: TaskId,
    pub(in crate::cluster) service: ServiceId,
    pub(in crate::cluster) service_name: Arc<str>,
    pub(in crate::cluster) slot: Slot,
    /// Only where there is no stored one to name: another node's task as a worker sees it, or a task that an
    /// earlier release has stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::cluster) spec: Option<Arc<TaskSpec>>,
    pub(in crate::cluster) spec_version: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(in crate::cluster) host_ports: Vec<EndpointPort>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::cluster) node: Option<NodeId>,
    pub(in crate::cluster) desired: TaskState,
    pub(in crate::cluster) status: TaskStatus,
    pub(in crate::cluster) created_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::cluster) started_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::cluster) finished_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::cluster) not_before: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(in crate::cluster) restarts: Vec<Timestamp>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub(in crate::cluster) failures: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::cluster) update_began: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub(in crate::cluster) given_up: bool,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl StoredTask {
    /// A task whose specification is stored.
    pub(in crate::cluster) fn new(task: &Task) -> Self {
        // Each by its name, so that a new field does not compile before it is stored.
        let Task {
            id,
            service,
            service_name,
            slot,
            spec: _,
            spec_version,
            host_ports,
            node,
            desired,
            status,
            created_at,
            started_at,
            finished_at,
            not_before,
            restarts,
            failures,
            update_began,
            given_up,
        } = task.clone();
        Self {
            id,
            service,
            service_name,
            slot,
            spec: None,
            spec_version,
            host_ports,
            node,
            desired,
            status,
            created_at,
            started_at,
            finished_at,
            not_before,
            restarts,
            failures,
            update_began,
            given_up,
        }
    }

    /// A task together with its specification.
    pub(in crate::cluster) fn whole(task: &Task) -> Self {
        Self {
            spec: Some(task.spec.clone()),
            ..Self::new(task)
        }
    }

    /// The name of its specification.
    pub(in crate::cluster) fn version(&self) -> (&ServiceId, u64) {
        (&self.service, self.spec_version)
    }

    /// The error for a task whose specification is not stored.
    pub(in crate::cluster) fn missing(&self, key: &Key) -> MissingSpec {
        MissingSpec {
            task: key.clone(),
            service: self.service.clone(),
            version: self.spec_version,
        }
    }

    /// The task with its specification.
    pub(in crate::cluster) fn with(self, spec: Arc<TaskSpec>) -> Task {
        Task {
            id: self.id,
            service: self.service,
            service_name: self.service_name,
            slot: self.slot,
            spec,
            spec_version: self.spec_version,
            host_ports: self.host_ports,
            node: self.node,
            desired: self.desired,
            status: self.status,
            created_at: self.created_at,
            started_at: self.started_at,
            finished_at: self.finished_at,
            not_before: self.not_before,
            restarts: self.restarts,
            failures: self.failures,
            update_began: self.update_began,
            given_up: self.given_up,
        }
    }
}
