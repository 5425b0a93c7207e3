//! The cluster's objects: services, tasks and nodes, with their indexes. Imports only `spec`.
//!
//! Invariant: [`State`] changes only through [`State::apply`], and a task's observed and desired states only
//! move forward.

pub mod change;
pub mod events;
pub mod id;
pub mod index;
pub mod node;
pub mod ports;
pub mod refused;
pub mod service;
pub mod state;
pub mod task;
pub mod task_state;
pub mod time;

pub use change::ObjectChange;
pub use events::{Events, Touched};
pub use id::{NodeId, ServiceId, TaskId};
pub use node::{Availability, Node, NodeRole, NodeStatus};
pub use ports::{EndpointPort, PortLedger};
pub use refused::Refused;
pub use service::{Previous, Rebalance, Service, UpdateState, UpdateStatus};
pub use state::State;
pub use task::{Slot, Task, TaskStatus};
pub use task_state::TaskState;
pub use time::Timestamp;
