//! The local Docker Engine: one client for everything that asks it, and the JSON of its API. Knows nothing of
//! the mesh and imports nothing of it.

pub(crate) mod api;
mod client;
mod engine;
mod error;
#[cfg(feature = "orchestrator")]
mod raw;
mod swarm_state;

#[cfg(feature = "orchestrator")]
pub(crate) use client::Connection;
pub use client::Docker;
pub(crate) use engine::host;
pub use engine::{EngineInfo, RemoteManager};
pub use error::DockerError;
#[cfg(feature = "orchestrator")]
pub(crate) use error::{refusal_message, shortened};
pub(crate) use swarm_state::data_path_address;
