//! The running agent: puts source, discovery, data path and listeners together. The only module that imports
//! all the others; only binaries import it.

mod announcement;
mod clean;
mod datapath_factory;
mod drains;
mod error;
mod hooks;
mod inputs;
mod introspect;
mod ladder;
mod local_device;
mod logging;
mod membership;
mod node;
mod out_of_reach;
mod parts;
mod preflight;
mod reconcile;
mod reserved_ports;
mod run;
mod service_manager;
mod signals;
mod sources;
mod supervisor;

pub use clean::{CleanError, CleanOptions, Cleaned, clean};
pub use error::AgentError;
pub use ladder::{DatapathFactory, NothingWorks};
pub use logging::start_logging;
pub use preflight::PreflightError;
pub use reconcile::Reconciler;
pub use run::run;
