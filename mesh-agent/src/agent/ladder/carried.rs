//! The counters of removed data paths, so that totals continue.

use std::collections::BTreeMap;

use crate::{
    datapath::{Counters, Traffic},
    model::{BackendKey, ServiceKey},
};

/// Totals to which those of the data path in use are added.
#[derive(Default)]
pub(super) struct Carried {
    backends: BTreeMap<BackendKey, Traffic>,
    services: BTreeMap<ServiceKey, Traffic>,
}

impl Carried {
    pub(super) fn add(&mut self, counters: &Counters) {
        for (key, traffic) in &counters.backends {
            *self.backends.entry(*key).or_default() += closed(*traffic);
        }
        for (key, traffic) in &counters.services {
            *self.services.entry(*key).or_default() += closed(*traffic);
        }
    }

    /// Adds the totals to `counters`. Only what is still desired is shown, and kept.
    pub(super) fn add_to(&mut self, counters: &mut Counters) {
        self.backends.retain(|key, _| counters.backends.contains_key(key));
        self.services.retain(|key, _| counters.services.contains_key(key));
        for (key, traffic) in &mut counters.backends {
            *traffic += self.backends.get(key).copied().unwrap_or_default();
        }
        for (key, traffic) in &mut counters.services {
            *traffic += self.services.get(key).copied().unwrap_or_default();
        }
    }
}

/// Connections of a removed data path are no longer open in it.
fn closed(traffic: Traffic) -> Traffic {
    Traffic {
        connections_active: 0,
        ..traffic
    }
}
