//! The mesh's plain data: the cluster as a source reports it, what a node finds on itself, and the desired
//! data path computed from both. Nothing here does I/O or imports another module of ours.

pub mod announced;
pub mod balance;
pub mod checks;
mod clients;
pub mod cluster;
pub mod desired;
pub mod drain_target;
pub mod drained;
mod draining;
pub(crate) mod fnv1a;
pub mod health;
mod idle_limits;
mod ipv6_rules;
mod limits;
pub mod local;
pub mod mapped;
mod node_condition;
mod node_policy;
pub mod occupied;
pub mod port_policy;
mod publish_on;
mod replicas;
pub mod reserved;
mod slow_start;
pub mod source_policy;
pub mod subnet;
pub mod tunnel_key;
mod weights;

pub use balance::{Algorithm, Balance, NodeDatapath};
pub use checks::Checks;
pub use clients::Clients;
pub use cluster::{
    AgentConnection, Cluster, Node, NodeId, NodeRole, Protocol, PublishedPort, Service, ServiceId, Task,
    TaskId, TaskState,
};
pub use desired::{
    Backend, BackendKey, BackendState, Desired, Frontend, Location, Masquerade, ServiceEntry, ServiceKey,
};
pub use drain_target::DrainTarget;
pub use drained::{DrainReport, DrainRequest, Drained, DrainedReplica};
pub use draining::{DrainTimes, Draining, EndedDrains};
pub use health::{FailedChecks, HealthCheck, HealthProbe};
pub use idle_limits::IdleLimits;
pub use ipv6_rules::Ipv6Rules;
pub use limits::Limits;
pub use local::{Attached, Container, HostInterface, Local, MacAddress, NextHop, NoHook, ReturnMode};
pub use node_condition::{NodeCondition, NodeSubject};
pub(crate) use node_policy::Compiled;
pub use node_policy::{NodePolicy, PolicyRule, PolicyRuleError};
pub use occupied::OccupiedPort;
pub use port_policy::{PortPolicies, PortPolicy};
pub use publish_on::PublishOn;
pub use replicas::Replicas;
pub use reserved::ReservedPort;
pub use slow_start::{FULL_SHARE, Shares, SlowStart};
pub use source_policy::{
    Ingress, Prefix, PrefixError, SourcePolicy, SourceRules, SourceVerdict, SourceVerdicts,
};
pub use subnet::Subnet;
pub use tunnel_key::{KeyId, TunnelKey, TunnelKeys};
pub use weights::{NodeWeight, Weights};

/// Labels by which the mesh recognises the orchestrator's containers.
pub mod orchestrator_label {
    /// The task's id.
    pub const TASK: &str = "mesh.task.id";
    /// The address that identifies the task in the mesh, unique in the cluster. No interface has it, and it
    /// is in no packet's IP header.
    pub const ADDRESS: &str = "mesh.task.address";
}
