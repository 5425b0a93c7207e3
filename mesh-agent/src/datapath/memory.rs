//! A datapath that keeps the desired state in memory and carries no traffic: what the agent's logic
//! is tested against, and the oracle that the kernels' datapaths are compared with.

use super::{ChangeError, Counters, Datapath, DatapathError, InterfaceMode};
use crate::{model::Desired, plan::Change};

/// Desired state as the sum of the changes applied so far.
#[derive(Debug, Default)]
pub struct MemoryDatapath {
    /// What has been made true.
    pub state: Desired,
}

impl Datapath for MemoryDatapath {
    fn apply(&mut self, changes: &[Change]) -> Vec<ChangeError> {
        for change in changes.iter().cloned() {
            let state = &mut self.state;
            match change {
                Change::Configure(settings) => state.settings = settings,
                Change::UpsertPeer(address, hop) => drop(state.peers.insert(address, hop)),
                Change::UpsertBackend(key, backend) => drop(state.backends.insert(key, backend)),
                Change::UpsertService(key, service) => drop(state.services.insert(key, service)),
                Change::AddFrontend(frontend) => drop(state.frontends.insert(frontend)),
                Change::AttachContainer(index) => drop(state.container_interfaces.insert(index)),
                Change::AttachBridge(name, bridge) => drop(state.bridges.insert(name, bridge)),
                Change::AttachUplink(name, uplink) => drop(state.uplinks.insert(name, uplink)),
                Change::DetachUplink(name) => drop(state.uplinks.remove(&name)),
                Change::DetachBridge(name) => drop(state.bridges.remove(&name)),
                Change::RemoveFrontend(frontend) => drop(state.frontends.remove(&frontend)),
                Change::RemoveService(key) => drop(state.services.remove(&key)),
                Change::RemoveBackend(key) => drop(state.backends.remove(&key)),
                Change::DetachContainer(index) => drop(state.container_interfaces.remove(&index)),
                Change::RemovePeer(address) => drop(state.peers.remove(&address)),
            }
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
