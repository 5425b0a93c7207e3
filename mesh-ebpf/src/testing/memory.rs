//! What the test tables' entries live in: memory that is freed with the tables only, as in the kernel it is
//! when the program ends.

use core::ptr::NonNull;
use std::{cell::RefCell, collections::BTreeMap};

use crate::abi::{Flow, FlowKey, FlowRecord, Held};

/// Fragments' memory, kept as long as the table.
#[derive(Default)]
pub(crate) struct Memory(RefCell<Vec<NonNull<Held>>>);

impl Memory {
    pub(crate) fn keep(&self, held: Held) -> NonNull<Held> {
        let held = NonNull::from(Box::leak(Box::new(held)));
        self.0.borrow_mut().push(held);
        held
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        for held in self.0.borrow_mut().drain(..) {
            // SAFETY: leaked by `keep`, and listed here only.
            drop(unsafe { Box::from_raw(held.as_ptr()) });
        }
    }
}

/// The flow table. What is replaced or forgotten stays readable as long as the table, as in the kernel
/// it does until the program ends.
#[derive(Default)]
pub(crate) struct Flows {
    pub(crate) entries: RefCell<BTreeMap<FlowKey, NonNull<FlowRecord>>>,
    replaced: RefCell<Vec<NonNull<FlowRecord>>>,
}

impl Flows {
    pub(crate) fn store(&self, key: &FlowKey, flow: &Flow) {
        let entry = NonNull::from(Box::leak(Box::new(FlowRecord::from(*flow))));
        if let Some(old) = self.entries.borrow_mut().insert(*key, entry) {
            self.replaced.borrow_mut().push(old);
        }
    }

    pub(crate) fn find(&self, key: &FlowKey) -> Option<NonNull<FlowRecord>> {
        self.entries.borrow().get(key).copied()
    }

    pub(crate) fn remove(&self, key: &FlowKey) -> bool {
        let old = self.entries.borrow_mut().remove(key);
        self.replaced.borrow_mut().extend(old);
        old.is_some()
    }

    pub(crate) fn forget(&self) {
        let entries = std::mem::take(&mut *self.entries.borrow_mut());
        self.replaced.borrow_mut().extend(entries.into_values());
    }
}

impl Drop for Flows {
    fn drop(&mut self) {
        self.forget();
        for entry in self.replaced.borrow_mut().drain(..) {
            // SAFETY: leaked by `store`, held in exactly one collection; the tests keep no entry longer
            // than its tables, by the contract of `FlowEntry::new`.
            drop(unsafe { Box::from_raw(entry.as_ptr()) });
        }
    }
}
