//! A datapath that keeps the desired state in memory and carries no traffic: what the agent's logic
//! is tested against, and the oracle that the kernels' datapaths are compared with.

use super::{ChangeError, Counters, Datapath, DatapathError, InterfaceMode};
use crate::{
    model::{Desired, NodeDatapath},
    plan::{DatapathChange, fold},
};

/// Desired state as the sum of the changes applied so far.
#[derive(Debug, Default)]
pub struct MemoryDatapath {
    /// What has been made true.
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
