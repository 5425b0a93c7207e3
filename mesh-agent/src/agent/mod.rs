//! The running agent: puts sources, discovery, the data path and the windows on them together. The only
//! module that imports all the others; only binaries import it.

mod announcement;
mod datapath_factory;
mod inputs;
mod introspect;
mod ladder;
mod local_device;
mod logging;
mod membership;
mod parts;
mod preflight;
mod privileges;
mod reconcile;
mod run;
mod signals;
mod sources;
mod supervisor;

pub use ladder::{DatapathFactory, NothingWorks};
pub use logging::start_logging;
pub use preflight::PreflightError;
pub use privileges::{PrivilegesError, pass_privileges_on, reduce_privileges};
pub use reconcile::Reconciler;
pub use run::{Ended, run};

use crate::datapath::DatapathError;

/// The agent could not start, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Something that the agent needs is missing.
    #[error("this node is not ready for the mesh")]
    Preflight(#[from] PreflightError),
    /// None of the data paths asked for works.
    #[error("no data path works on this node; 'mesh-agent doctor' says what the kernel lacks")]
    Load(#[from] NothingWorks),
    /// The network cannot be followed.
    #[error("cannot follow the node's network")]
    Network(#[from] crate::discovery::network::NetworkError),
    /// No netlink for mesh0.
    #[error("cannot prepare the device of local processes")]
    Mesh0(#[from] crate::mesh0::Mesh0Error),
    /// The metrics could not be put together.
    #[error("cannot prepare the metrics")]
    Metrics(#[from] crate::metrics::MetricsError),
    /// The admin socket could not be opened.
    #[error("cannot open the admin socket")]
    Admin(#[from] crate::admin::ServerError),
    /// The metrics' port could not be opened.
    #[error("cannot open the metrics' port")]
    MetricsPort(#[from] crate::metrics::MetricsServerError),
    /// Signals cannot be caught.
    #[error("cannot catch signals")]
    Signals(#[source] std::io::Error),
    /// A part of the agent that never ends has ended.
    #[error("the agent's {task} ended unexpectedly{}; the data path stays as it is, restart the agent", how(*panicked))]
    TaskEnded {
        /// Which part.
        task: &'static str,
        /// Whether by a panic; the log has its message.
        panicked: bool,
    },
    /// The orchestrator cannot run here.
    #[error("the orchestrator cannot run on this node")]
    Orchestrator(#[from] crate::orchestrator::OrchestratorError),
    /// The kernel kept something when the agent took the data path out.
    #[error("cannot take the data path out of the kernel")]
    Detach(#[source] DatapathError),
}

fn how(panicked: bool) -> &'static str {
    if panicked { " by a panic" } else { "" }
}
