//! A data path that keeps the desired state in memory and carries no traffic: the agent's logic is tested
//! against it, and it is the oracle that the kernel's data paths are compared with.

use super::{ChangeError, Counters, Datapath, DatapathError, InterfaceMode};
use crate::{
    model::{Desired, NodeDatapath},
    plan::{DatapathChange, fold},
};

/// A data path whose state is the sum of the changes applied to it.
#[derive(Debug, Default)]
pub struct MemoryDatapath {
    /// What has been applied.
    pub state: Desired,
}

impl Datapath for MemoryDatapath {
    fn apply(&mut self, changes: &[DatapathChange]) -> Vec<ChangeError> {
        for change in changes.iter().cloned() {
            fold(&mut self.state, change);
        }
        Vec::new()
    }

    fn counters(&mut self) -> Result<Counters, DatapathError> {
        Ok(Counters {
            backends: self
                .state
                .backends
                .keys()
                .map(|key| (*key, Default::default()))
                .collect(),
            services: self
                .state
                .services
                .keys()
                .map(|key| (*key, Default::default()))
                .collect(),
            ..Counters::default()
        })
    }

    fn kind(&self) -> NodeDatapath {
        NodeDatapath::Ebpf
    }

    fn modes(&self) -> Vec<InterfaceMode> {
        Vec::new()
    }

    fn maintain(&mut self) -> Result<(), DatapathError> {
        Ok(())
    }

    fn detach(&mut self) -> Result<(), DatapathError> {
        self.state = Desired::default();
        Ok(())
    }
}
