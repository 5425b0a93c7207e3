//! Which objects changes have touched: what the control loops have to examine.

use std::collections::{BTreeMap, BTreeSet};

use super::{NodeId, ServiceId, Slot};

/// What has changed since the control loops last looked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// Services, and what of them.
    pub services: BTreeMap<ServiceId, Touched>,
    /// Nodes that are other than they were, new or gone.
    pub nodes: BTreeSet<NodeId>,
    /// Tasks wait for a node, and it is worth trying.
    pub unplaced: bool,
}

/// What of a service has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// The service itself: every slot has to be looked at.
    pub service: bool,
    /// Slots whose tasks have changed.
    pub slots: BTreeSet<Slot>,
}

impl Events {
    /// Nothing has changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && self.nodes.is_empty() && !self.unplaced
    }

    /// A whole service has to be looked at.
    pub fn touch_service(&mut self, service: &ServiceId) {
        self.services.entry(service.clone()).or_default().service = true;
    }

    /// A slot has to be looked at.
    pub fn touch_slot(&mut self, service: &ServiceId, slot: &Slot) {
        match self.services.get_mut(service) {
            Some(touched) if touched.service => {}
            Some(touched) => drop(touched.slots.insert(slot.clone())),
            None => {
                let slots = BTreeSet::from([slot.clone()]);
                self.services.insert(
                    service.clone(),
                    Touched {
                        service: false,
                        slots,
                    },
                );
            }
        }
    }

    /// Adds what else has changed.
    pub fn extend(&mut self, other: Self) {
        for (service, touched) in other.services {
            let entry = self.services.entry(service).or_default();
            entry.service |= touched.service;
            entry.slots.extend(touched.slots);
        }
        self.nodes.extend(other.nodes);
        self.unplaced |= other.unplaced;
    }
}
