//! Frontends in the maps. Part of [`Tables`].

use std::{collections::BTreeSet, net::Ipv4Addr, sync::Arc};

use super::{CLOSED, Maps, Tables, keys::abi_frontend, remove};
use crate::{
    datapath::{DatapathError, ebpf::failed},
    model::{
        Frontend, Ingress, Prefix, ServiceKey, SourcePolicy, SourceRules, SourceVerdict, SourceVerdicts,
    },
};

impl Tables {
    /// Makes a frontend answer for its service.
    pub(in super::super) fn add_frontend(
        &mut self,
        maps: &mut Maps,
        frontend: Frontend,
    ) -> Result<(), DatapathError> {
        let index = self.answering_index(maps, frontend)?;
        maps.frontends
            .insert(abi_frontend(frontend), index, 0)
            .map_err(|error| failed(doing(frontend), error))?;
        self.frontends.insert(frontend, false);
        Ok(())
    }

    /// Removes a frontend, if it is there.
    pub(in super::super) fn remove_frontend(
        &mut self,
        maps: &mut Maps,
        frontend: Frontend,
    ) -> Result<(), DatapathError> {
        self.frontends.remove(&frontend);
        remove(&mut maps.frontends, &abi_frontend(frontend), "FRONTENDS")
    }

    /// Takes over at which addresses a service refuses everyone, and leads those of its frontends elsewhere
    /// for which that has changed.
    pub(super) fn close_frontends(
        &mut self,
        maps: &mut Maps,
        service: ServiceKey,
        closed: &BTreeSet<Ipv4Addr>,
    ) -> Result<(), DatapathError> {
        let Some(slot) = self.services.get_mut(&service) else {
            return Ok(());
        };
        let before = std::mem::replace(&mut slot.closed, closed.clone());
        for address in before.symmetric_difference(closed).copied() {
            let frontend = Frontend { address, service };
            if !self.frontends.contains_key(&frontend) {
                continue;
            }
            if let Err(error) = self.add_frontend(maps, frontend) {
                // So that the next attempt sees the difference again.
                if let Some(slot) = self.services.get_mut(&service) {
                    slot.closed = before;
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// The index of the service that answers at a frontend. It must be complete before a packet can find it.
    fn answering_index(&mut self, maps: &mut Maps, frontend: Frontend) -> Result<u32, DatapathError> {
        let service = self.services.get(&frontend.service);
        let is_closed = service.is_some_and(|service| service.closed.contains(&frontend.address));
        let key = if is_closed { CLOSED } else { frontend.service };
        let index = self
            .service_index(key)
            .ok_or_else(|| failed(doing(frontend), "the table of services is full"))?;
        if is_closed {
            let rules = SourceRules::from([(Prefix::ALL, SourceVerdicts::both(SourceVerdict::Reject))]);
            let no_one = SourcePolicy::new([(Ingress::Any, rules)]).map(Arc::new);
            let policy = self.policies.hold(maps, no_one.as_ref())?;
            if let Some(slot) = self.services.get_mut(&CLOSED) {
                slot.policy = policy;
                slot.adopted = false;
            }
        }
        self.write_ring(maps, key)?;
        Ok(index)
    }
}

fn doing(frontend: Frontend) -> String {
    format!("answer at {} port {}", frontend.address, frontend.service.port)
}
