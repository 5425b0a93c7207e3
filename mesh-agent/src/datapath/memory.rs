//! A data path that keeps the desired state in memory and carries no traffic: the agent's logic is tested
//! against it, and it is the oracle that the kernel's data paths are compared with.

use std::net::Ipv4Addr;

use super::{
    ChangeError, Counters, Datapath, DatapathError, InterfaceMode,
    dump::{
        Dump, DumpedBackend, DumpedFrontend, DumpedIpv6, DumpedMasquerade, DumpedPeer, DumpedPolicy,
        DumpedService, DumpedSettings,
    },
    ebpf::{
        dump::choice_name,
        rings::{Candidate, ring},
    },
};
use crate::{
    model::{Desired, NodeDatapath, ReturnMode, ServiceEntry, ServiceKey, desired::task_tag},
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

    fn dump(&mut self, _: usize) -> Result<Dump, DatapathError> {
        Ok(dump(&self.state))
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

/// What the maps of the eBPF data path would hold.
fn dump(state: &Desired) -> Dump {
    let settings = &state.settings;
    let services = state
        .services
        .iter()
        .map(|(key, service)| dumped(state, *key, service));
    let backends = state.backends.iter().map(|(key, backend)| DumpedBackend {
        service: key.service,
        address: key.address,
        target_port: backend.target_port,
        tag: task_tag(&backend.task),
        location: backend.location,
    });
    let own_ipv6 = state.own_ipv6.iter().map(|(address, mapped)| DumpedIpv6 {
        address: *address,
        mapped: *mapped,
    });
    let mut frontends: Vec<_> = state
        .frontends
        .iter()
        .map(|frontend| DumpedFrontend {
            service: frontend.service,
            address: frontend.address,
            closed: state
                .services
                .get(&frontend.service)
                .is_some_and(|service| service.closed.contains(&frontend.address)),
        })
        .collect();
    frontends.sort_unstable();
    let peers = state.peers.iter().map(|(address, next_hop)| DumpedPeer {
        address: *address,
        next_hop: *next_hop,
    });
    let policies = state.services.iter().filter_map(|(key, service)| {
        let policy = service.policy.as_ref()?;
        Some(DumpedPolicy {
            service: *key,
            rules: policy.to_string(),
        })
    });
    let masquerades = state.masquerades.iter().map(|(key, source)| DumpedMasquerade {
        key: *key,
        source: *source,
    });
    Dump {
        datapath: NodeDatapath::Ebpf,
        settings: Some(DumpedSettings {
            node_address: settings.node_address.unwrap_or(Ipv4Addr::UNSPECIFIED),
            vni: settings.vni,
            direct_return: settings.return_mode == ReturnMode::Dsr,
            mesh0: settings.mesh0.map_or(0, |mesh0| mesh0.index),
        }),
        services: services.collect(),
        backends: backends.collect(),
        own_ipv6: own_ipv6.collect(),
        frontends,
        peers: peers.collect(),
        masquerades: masquerades.collect(),
        policies: policies.collect(),
        virtual_services: Vec::new(),
        flows: Vec::new(),
    }
}

fn dumped(state: &Desired, key: ServiceKey, service: &ServiceEntry) -> DumpedService {
    let candidates: Vec<_> = (0..)
        .zip(&service.active)
        .filter_map(|(index, key)| {
            Some(Candidate {
                key: *key,
                index,
                weight: state.backends.get(key)?.weight,
                share: state.backends.get(key)?.share,
                local: state.backends.get(key)?.location.is_local(),
            })
        })
        .collect();
    let ring = ring(service.balance, &candidates);
    let addresses = |slots: Vec<u32>| {
        let slots = slots.into_iter();
        let found = slots.filter_map(|slot| candidates.iter().find(|candidate| candidate.index == slot));
        found.map(|candidate| candidate.key.address).collect()
    };
    DumpedService {
        service: key,
        choice: choice_name(ring.choice).to_owned(),
        ring: addresses(ring.entries),
        others: addresses(ring.others),
    }
}
