//! Which objects have changed: what the control loops have to examine.

use std::collections::{BTreeMap, BTreeSet};

use super::{NodeId, ServiceId, Slot};

/// What has changed since the control loops last ran.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// Services, and what has changed of each.
    pub services: BTreeMap<ServiceId, Touched>,
    /// Nodes that were changed, added or removed.
    pub nodes: BTreeSet<NodeId>,
    /// Tasks wait for a node, and a change may let some of them be placed.
    pub unplaced: bool,
}

/// What of a service has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// The service itself: every slot has to be examined.
    pub service: bool,
    /// Slots whose tasks have changed.
    pub slots: BTreeSet<Slot>,
}

impl Events {
    /// Whether nothing has changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && self.nodes.is_empty() && !self.unplaced
    }

    /// Marks a whole service as changed.
    pub fn touch_service(&mut self, service: &ServiceId) {
        self.services.entry(service.clone()).or_default().service = true;
    }

    /// Marks a slot as changed.
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

    /// Adds the events of another set.
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
