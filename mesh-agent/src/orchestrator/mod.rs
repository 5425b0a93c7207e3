//! The agent's side of the orchestrator: `mesh-agent run --orchestrator`. Runs this node's tasks in its
//! engine, and gives the mesh its snapshot of the cluster from the orchestrator's objects. Only `agent`
//! imports it.

mod api;
mod certificates;
mod examined;
mod exchange;
mod identity;
mod listener;
mod managers;
mod open;
pub mod options;
mod peers;
pub mod program;
mod relayed;
mod run;
pub mod runtime;
mod source;
mod subject;
#[cfg(test)]
mod testing;
mod tls;
mod tunnel_key;
mod worker;
mod workers;

pub use examined::worker_checks;
pub use identity::IdentityError;
pub use open::{Opened, OrchestratorError, open};
pub use options::OrchestratorOptions;
pub use run::{Mesh, run};
pub use tls::TlsError;
