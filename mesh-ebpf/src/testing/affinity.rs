//! The tables of clients' affinities, in ordinary collections.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
};

use super::TestTables;
use crate::{
    abi::{Affinity, AffinityKey},
    affinity_tables::AffinityTables,
};

/// Affinities by client.
#[derive(Default)]
pub(super) struct AffinityMemory {
    known: RefCell<BTreeMap<AffinityKey, Affinity>>,
    look_ups: Cell<u32>,
}

impl TestTables {
    /// How many clients are kept at a backend.
    pub(crate) fn affinity_count(&self) -> usize {
        self.affinity.known.borrow().len()
    }

    /// How often one was looked for.
    pub(crate) fn affinity_look_ups(&self) -> u32 {
        self.affinity.look_ups.get()
    }
}

impl AffinityTables for TestTables {
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        self.affinity.look_ups.set(self.affinity.look_ups.get() + 1);
        self.affinity.known.borrow().get(key).copied()
    }

    fn note_affinity(&self, key: &AffinityKey, affinity: &Affinity) {
        self.affinity.known.borrow_mut().insert(*key, *affinity);
    }

    fn takes_new_flows(&self, backend: u32, generation: u32) -> bool {
        let known = self.backends.get(backend as usize);
        known.is_some_and(|known| {
            let service = &self.services[&known.service];
            let slots = service.ring_offset as usize..(service.ring_offset + service.ring_length) as usize;
            known.generation == generation && self.ring[slots].contains(&backend)
        })
    }
}
