//! What the running agent lets others see: a snapshot of its state, and the counters on demand.

use std::{sync::Arc, time::SystemTime};

use crate::{
    datapath::{Counters, DatapathError, InterfaceMode},
    model::{Desired, NodeRole, ReturnMode},
    source::SourceState,
};

/// One consistent snapshot of the agent, replaced whole whenever something changes.
#[derive(Clone, Debug)]
pub struct View {
    /// This node's id; empty until Docker has told.
    pub node: String,
    /// This node's role; `None` until Docker has told, or when it is in no Swarm.
    pub role: Option<NodeRole>,
    /// The source's latest state.
    pub source: SourceState,
    /// What the data path has been told to be.
    pub desired: Arc<Desired>,
    /// The revision of the picture that `desired` was computed from.
    pub applied_revision: u64,
    /// The data path of each interface.
    pub modes: Vec<InterfaceMode>,
    /// Changes the kernel refused, each in one line; they are tried again.
    pub datapath_errors: Vec<String>,
    /// How replies of remote backends travel.
    pub return_mode: ReturnMode,
    /// What is wrong with the local engine just now; `None` while it answers.
    pub docker_trouble: Option<String>,
    /// When the agent started.
    pub started: SystemTime,
}

/// How the admin API and the metrics look into the agent.
pub trait Introspect: Send + Sync {
    /// The current snapshot.
    fn view(&self) -> Arc<View>;

    /// Reads the traffic counters from the kernel.
    ///
    /// # Errors
    /// When the kernel refuses to read a map.
    fn counters(&self) -> Result<Counters, DatapathError>;
}
