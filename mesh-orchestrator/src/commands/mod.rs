//! What users and agents may do to the cluster: each command checks a request against the state and returns
//! the changes that carry it out. It applies nothing. Imports `objects` and `spec`.

mod admission;
mod error;
mod node;
mod service;

pub use error::CommandError;
pub use node::{
    admit_worker, describe_node, is_worker, modify_node, put_node, remove_node, set_node_status, worker_id,
};
pub use service::{
    create_service, rebalance_service, remove_service, roll_back_to, rollback_service, scale_service,
    update_service,
};
pub(crate) use service::{known_service, roll_back};
