//! The JSON of the engine's API, as far as it is read here: only the fields that are needed, so that new ones
//! cannot break anything.

use std::{collections::BTreeMap, path::PathBuf};

use serde::Deserialize;

/// Labels by name.
pub(crate) type Labels = BTreeMap<String, String>;

/// The version of an object in Swarm's store: the index of the change that wrote it. It grows with every
/// change of any object, and managers agree on it.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Version {
    #[serde(default)]
    pub(crate) index: u64,
}

/// One service of `GET /services`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Service {
    #[serde(rename = "ID")]
    pub(crate) id: String,
    #[serde(default)]
    pub(crate) version: Version,
    pub(crate) spec: ServiceSpec,
    #[serde(default)]
    pub(crate) endpoint: Endpoint,
    pub(crate) update_status: Option<UpdateStatus>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ServiceSpec {
    pub(crate) name: String,
    pub(crate) labels: Option<Labels>,
    #[serde(default)]
    pub(crate) mode: Mode,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Mode {
    pub(crate) replicated: Option<Replicated>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Replicated {
    pub(crate) replicas: Option<u64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Endpoint {
    pub(crate) ports: Option<Vec<EndpointPort>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct EndpointPort {
    pub(crate) protocol: Option<String>,
    pub(crate) target_port: Option<u16>,
    pub(crate) published_port: Option<u16>,
    pub(crate) publish_mode: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct UpdateStatus {
    pub(crate) state: Option<String>,
}

/// One task of `GET /tasks`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Task {
    #[serde(rename = "ID")]
    pub(crate) id: String,
    #[serde(default)]
    pub(crate) version: Version,
    #[serde(rename = "ServiceID", default)]
    pub(crate) service: String,
    pub(crate) slot: Option<u64>,
    #[serde(rename = "NodeID", default)]
    pub(crate) node: String,
    pub(crate) status: TaskStatus,
    #[serde(default)]
    pub(crate) desired_state: Progress,
    pub(crate) networks_attachments: Option<Vec<NetworkAttachment>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct TaskStatus {
    #[serde(default)]
    pub(crate) state: Progress,
}

/// A task's state as far as the mesh distinguishes them; in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(from = "String")]
pub(crate) enum Progress {
    /// Not running yet: `new`, `pending`, `assigned`, `accepted`, `preparing`, `ready`, `starting`.
    Before,
    /// `running`, and healthy where there is a health check.
    Running,
    /// `complete`, `shutdown`, `failed`, `rejected`, `remove`, `orphaned`, and unknown states: nothing is
    /// sent to a task whose state the mesh does not understand.
    #[default]
    After,
}

impl From<String> for Progress {
    fn from(name: String) -> Self {
        match name.as_str() {
            "new" | "allocated" | "pending" | "assigned" | "accepted" | "preparing" | "ready"
            | "starting" => Self::Before,
            "running" => Self::Running,
            _ => Self::After,
        }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct NetworkAttachment {
    pub(crate) network: Option<Network>,
    pub(crate) addresses: Option<Vec<String>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Network {
    #[serde(default)]
    pub(crate) spec: NetworkSpec,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct NetworkSpec {
    #[serde(default)]
    pub(crate) ingress: bool,
    #[serde(default)]
    pub(crate) labels: Option<BTreeMap<String, String>>,
}

/// One node of `GET /nodes`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Node {
    #[serde(rename = "ID")]
    pub(crate) id: String,
    #[serde(default)]
    pub(crate) version: Version,
    pub(crate) spec: NodeSpec,
    #[serde(default)]
    pub(crate) description: Description,
    #[serde(default)]
    pub(crate) status: NodeStatus,
    pub(crate) manager_status: Option<ManagerStatus>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct NodeSpec {
    pub(crate) role: Option<String>,
    pub(crate) labels: Option<Labels>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Description {
    #[serde(default)]
    pub(crate) hostname: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct NodeStatus {
    pub(crate) state: Option<String>,
    pub(crate) addr: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ManagerStatus {
    pub(crate) addr: Option<String>,
}

/// One container of `GET /containers/json`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ContainerSummary {
    pub(crate) id: String,
    /// Each with a slash before it.
    #[serde(default)]
    pub(crate) names: Vec<String>,
    #[serde(default)]
    pub(crate) ports: Vec<ContainerPort>,
}

/// A port of a container; of the host as well, where it is published there.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ContainerPort {
    pub(crate) public_port: Option<u16>,
    #[serde(rename = "Type", default)]
    pub(crate) protocol: String,
}

/// A container as `GET /containers/{id}/json` describes it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ContainerDetail {
    pub(crate) network_settings: NetworkSettings,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct NetworkSettings {
    pub(crate) sandbox_key: PathBuf,
}
