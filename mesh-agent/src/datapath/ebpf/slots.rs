//! Allocation of slots in fixed-size tables. A freed slot is reused as late as possible: a packet that read
//! an index a moment ago must not find another owner there. Pure, but for the first generation.

use std::collections::{BTreeMap, BTreeSet};

/// Single slots.
pub(super) struct Slots {
    capacity: u32,
    used: BTreeSet<u32>,
    next: u32,
    generation: u32,
}

impl Slots {
    pub(super) fn new(capacity: u32) -> Self {
        // Flows of the earlier agent live on: a new agent must not repeat its generations.
        let generation = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(1, |since| since.as_millis() as u32);
        Self {
            capacity,
            used: BTreeSet::new(),
            next: 0,
            generation,
        }
    }

    /// Marks a slot as used.
    pub(super) fn take(&mut self, slot: u32) {
        self.used.insert(slot);
        self.next = (slot + 1) % self.capacity;
    }

    /// The first free slot after the one allocated last, in rotation; `None` when all are used.
    pub(super) fn allocate(&mut self) -> Option<u32> {
        let slot = (self.next..self.capacity)
            .chain(0..self.next)
            .find(|slot| !self.used.contains(slot))?;
        self.take(slot);
        Some(slot)
    }

    pub(super) fn release(&mut self, slot: u32) {
        self.used.remove(&slot);
    }

    /// A generation that no owner of any slot had lately; never 0.
    pub(super) fn next_generation(&mut self) -> u32 {
        self.generation = self.generation.wrapping_add(1).max(1);
        self.generation
    }
}

/// Ranges of slots.
pub(super) struct Ranges {
    capacity: u32,
    /// Length by offset.
    used: BTreeMap<u32, u32>,
    next: u32,
}

impl Ranges {
    pub(super) fn new(capacity: u32) -> Self {
        Self {
            capacity,
            used: BTreeMap::new(),
            next: 0,
        }
    }

    /// Marks a range as used.
    pub(super) fn take(&mut self, offset: u32, length: u32) {
        if length > 0 {
            self.used.insert(offset, length);
            self.next = offset + length;
        }
    }

    /// A free range; an empty one may start anywhere. `None` when there is no gap of that length.
    pub(super) fn allocate(&mut self, length: u32) -> Option<u32> {
        if length == 0 {
            return Some(0);
        }
        let offset = self.fit(self.next, length).or_else(|| self.fit(0, length))?;
        self.take(offset, length);
        Some(offset)
    }

    pub(super) fn release(&mut self, offset: u32, length: u32) {
        if length > 0 {
            self.used.remove(&offset);
        }
    }

    /// Slots in use.
    pub(super) fn used(&self) -> u32 {
        self.used.values().sum()
    }

    /// The first gap at or after `start`.
    fn fit(&self, start: u32, length: u32) -> Option<u32> {
        let before = self
            .used
            .range(..start)
            .next_back()
            .map_or(0, |(offset, length)| offset + length);
        let mut candidate = start.max(before);
        for (offset, used) in self.used.range(start..) {
            if offset - candidate >= length {
                break;
            }
            candidate = offset + used;
        }
        (candidate.checked_add(length)? <= self.capacity).then_some(candidate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_slot_is_reused_last() {
        let mut slots = Slots::new(3);
        assert_eq!([slots.allocate(), slots.allocate()], [Some(0), Some(1)]);
        slots.release(0);
        assert_eq!(
            [slots.allocate(), slots.allocate(), slots.allocate()],
            [Some(2), Some(0), None]
        );
    }

    #[test]
    fn generations_are_never_zero_and_do_not_repeat_soon() {
        let mut slots = Slots::new(1);
        slots.generation = u32::MAX - 1;
        assert_eq!(
            [
                slots.next_generation(),
                slots.next_generation(),
                slots.next_generation()
            ],
            [u32::MAX, 1, 2]
        );
    }

    #[test]
    fn ranges_never_overlap_and_use_every_gap() {
        let mut ranges = Ranges::new(10);
        assert_eq!(ranges.allocate(4), Some(0));
        assert_eq!(ranges.allocate(4), Some(4));
        assert_eq!(ranges.allocate(4), None);
        ranges.release(0, 4);
        assert_eq!(ranges.allocate(2), Some(8));
        assert_eq!(ranges.allocate(3), Some(0));
        assert_eq!(ranges.allocate(1), Some(3));
        assert_eq!(ranges.allocate(1), None);
        assert_eq!(ranges.allocate(0), Some(0));
        assert_eq!(ranges.used(), 10);
    }
}
