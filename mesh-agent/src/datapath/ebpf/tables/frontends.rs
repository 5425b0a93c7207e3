//! Frontends in the maps. Part of [`Tables`].

use super::{Maps, Tables, keys::abi_frontend, remove};
use crate::{
    datapath::{DatapathError, ebpf::failed},
    model::Frontend,
};

impl Tables {
    /// Makes a frontend answer for its service.
    pub(in super::super) fn add_frontend(
        &mut self,
        maps: &mut Maps,
        frontend: Frontend,
    ) -> Result<(), DatapathError> {
        let doing = || format!("answer at {} port {}", frontend.address, frontend.service.port);
        let index = self
            .service_index(frontend.service)
            .ok_or_else(|| failed(doing(), "the table of services is full"))?;
        // The service must be complete before a packet can find it.
        self.write_ring(maps, frontend.service)?;
        maps.frontends
            .insert(abi_frontend(frontend), index, 0)
            .map_err(|error| failed(doing(), error))?;
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
}
