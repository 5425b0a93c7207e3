//! The desired data path: a pure function of the cluster and of what the node finds on itself.
//!
//! Invariant: whatever the source, datapaths see only this model. A backend is listed once per published
//! port, under the key that encapsulated packets name it by.

mod access;
mod compute;
mod failing;
mod fingerprint;
mod node_condition;
mod published;
mod reachability;
#[cfg(test)]
mod tests;
mod types;

pub use compute::desired;
pub use failing::failing_open;
pub use fingerprint::{task_tag, vni};
pub use types::{
    Backend, BackendKey, BackendState, Desired, Frontend, Location, Masquerade, ServiceEntry, ServiceKey,
    Settings,
};
