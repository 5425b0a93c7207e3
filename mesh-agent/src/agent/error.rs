//! Why the agent could not start or continue.

use super::{ladder::NothingWorks, preflight::PreflightError};
use crate::datapath::DatapathError;

/// The agent could not start or continue.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Something that the agent needs is missing.
    #[error("this node is not ready for the mesh")]
    Preflight(#[from] PreflightError),
    /// None of the allowed data paths works.
    #[error("no data path works on this node; 'mesh-agent doctor' shows what the kernel lacks")]
    Load(#[from] NothingWorks),
    /// The network cannot be followed.
    #[error("cannot follow the node's network")]
    Network(#[from] crate::discovery::network::NetworkError),
    /// No netlink for mesh0.
    #[error("cannot prepare the device for local processes")]
    Mesh0(#[from] crate::mesh0::Mesh0Error),
    /// The metrics could not be registered.
    #[error("cannot prepare the metrics")]
    Metrics(#[from] crate::metrics::MetricsError),
    /// The admin socket could not be opened.
    #[error("cannot open the admin socket")]
    Admin(#[from] crate::admin::ServerError),
    /// Signals cannot be caught.
    #[error("cannot catch signals")]
    Signals(#[source] std::io::Error),
    /// A part of the agent has ended that never should.
    #[error("the agent's {part} ended unexpectedly{}; the data path stays as it is, restart the agent", how(*panicked))]
    PartEnded {
        /// Which part.
        part: &'static str,
        /// Whether by a panic; its message is in the log.
        panicked: bool,
    },
    /// The orchestrator cannot run here.
    #[cfg(feature = "orchestrator")]
    #[error("the orchestrator cannot run on this node")]
    Orchestrator(#[from] crate::orchestrator::OrchestratorError),
    /// `--orchestrator` in a build without it.
    #[cfg(not(feature = "orchestrator"))]
    #[error(
        "--orchestrator: this mesh-agent was built without the orchestrator; build it with the Cargo feature \
         `orchestrator`, or leave the flag out"
    )]
    WithoutOrchestrator,
    /// The kernel refused to remove a part of the data path.
    #[error("cannot remove the data path from the kernel")]
    Detach(#[source] DatapathError),
}

fn how(panicked: bool) -> &'static str {
    if panicked { " by a panic" } else { "" }
}
