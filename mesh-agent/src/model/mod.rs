//! The mesh's plain data: what a source says of the cluster, what a node finds on itself, and the
//! desired data path computed from the two. Nothing here does I/O or imports another module of ours.

pub mod announced;
pub mod balance;
pub mod cluster;
pub mod desired;
pub(crate) mod fnv1a;
pub mod local;

pub use balance::{Algorithm, Balance, NodeDatapath};
pub use cluster::{
    Cluster, Node, NodeId, NodeRole, Protocol, PublishedPort, Service, ServiceId, Task, TaskId, TaskState,
};
pub use desired::{
    Backend, BackendKey, BackendState, Desired, Frontend, Location, NextHop, ServiceEntry, ServiceKey,
};
pub use local::{Container, HostInterface, Local, MacAddress, ReturnMode};

/// Labels of the orchestrator's containers that tell the mesh what they are.
pub mod orchestrator_label {
    /// The task it is of.
    pub const TASK: &str = "mesh.task.id";
    /// What the mesh calls the task by, unique in the cluster; no interface has it, and no packet on a wire.
    pub const ADDRESS: &str = "mesh.task.address";
}
