//! The tables of new flows past their service's limits, in ordinary collections.

use core::ptr::NonNull;
use std::{
    cell::{Cell, RefCell, UnsafeCell},
    collections::BTreeMap,
};

use super::{TestTables, memory::Flows};
use crate::{
    abi::{FLOOD_MEMORY, Flow, FlowKey, Openings, span},
    bytes::Be32,
    flood_tables::{FloodTables, Mark, OpeningsEntry},
    tables::FlowEntry,
};

/// What these tables hold.
#[derive(Default)]
pub(super) struct FloodMemory {
    /// Limits of new flows, by service.
    openings: RefCell<BTreeMap<u32, Box<UnsafeCell<Openings>>>>,
    source_openings: RefCell<BTreeMap<(u32, u32), (u64, u64)>>,
    flooded: Cell<Option<u64>>,
    untracked: RefCell<BTreeMap<u32, Flow>>,
    staged: Flows,
    marks: Cell<[bool; 3]>,
    past_limit: RefCell<BTreeMap<(u32, u16), u64>>,
}

impl TestTables {
    /// The same node with limits of new flows for each service.
    pub(crate) fn limited(self, limits: Openings) -> Self {
        for service in self.services.keys() {
            let limits = Box::new(UnsafeCell::new(limits));
            self.flood.openings.borrow_mut().insert(*service, limits);
        }
        self
    }

    /// A service's limits of new flows, and its counts.
    pub(crate) fn openings_of(&self, service: u32) -> Openings {
        let all = self.flood.openings.borrow();
        // SAFETY: what the entry's users write, they have written.
        all.get(&service)
            .map_or_else(Openings::default, |openings| unsafe { *openings.get() })
    }
}

impl FloodTables for TestTables {
    fn stage(&self, flow: &Flow) -> Option<FlowEntry> {
        let key = FlowKey::default();
        self.flood.staged.store(&key, flow);
        // SAFETY: as for the entries of the flow tables.
        self.flood
            .staged
            .find(&key)
            .map(|entry| unsafe { FlowEntry::new(entry) })
    }

    fn mark(&self, mark: Mark, value: bool) {
        let mut marks = self.flood.marks.get();
        marks[mark as usize] = value;
        self.flood.marks.set(marks);
    }

    fn is_marked(&self, mark: Mark) -> bool {
        self.flood.marks.get()[mark as usize]
    }

    fn keep_untracked(&self, slot: u32, flow: &Flow) {
        self.flood.untracked.borrow_mut().insert(slot, *flow);
    }

    fn untracked(&self, slot: u32) -> Option<FlowEntry> {
        let kept = self.flood.untracked.borrow().get(&slot).copied();
        self.stage(&kept.unwrap_or_default())
    }

    fn openings(&self, service: u32) -> Option<OpeningsEntry> {
        let mut all = self.flood.openings.borrow_mut();
        let openings = NonNull::new(all.entry(service).or_default().get())?;
        // SAFETY: boxed, and freed with the tables only.
        Some(unsafe { OpeningsEntry::new(openings) })
    }

    fn add_one(&self, counter: NonNull<u64>) -> u64 {
        // SAFETY: a field of an entry of these tables, which nothing else refers to meanwhile.
        unsafe {
            let before = counter.read();
            counter.write(before + 1);
            before
        }
    }

    fn count_source(&self, service: u32, client: Be32, span: u64) -> u64 {
        let mut counts = self.flood.source_openings.borrow_mut();
        let (counted, count) = counts.entry((service, client.get())).or_default();
        if *counted != span {
            (*counted, *count) = (span, 0);
        }
        *count += 1;
        *count
    }

    fn span(&self) -> u64 {
        span(self.clock.get())
    }

    fn is_flooded(&self) -> bool {
        let flooded = self.flood.flooded.get();
        flooded.is_some_and(|flooded| self.span() - flooded <= FLOOD_MEMORY)
    }

    fn note_flood(&self, span: u64) {
        self.flood.flooded.set(Some(span));
    }

    fn is_past_limit(&self, key: &FlowKey) -> bool {
        let past = self.flood.past_limit.borrow();
        past.get(&(key.protocol, key.destination_port.get())) == Some(&self.span())
    }

    fn note_past_limit(&self, key: &FlowKey, span: u64) {
        let port = (key.protocol, key.destination_port.get());
        self.flood.past_limit.borrow_mut().insert(port, span);
    }
}
