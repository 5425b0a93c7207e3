//! Allocation of places in fixed-size tables, such that a freed place is reused as late as possible:
//! a packet that read an index a moment ago must not find somebody else there.

use std::collections::{BTreeMap, BTreeSet};

/// Single places.
pub(super) struct Places {
    capacity: u32,
    used: BTreeSet<u32>,
    next: u32,
    generation: u32,
}

impl Places {
    pub(super) fn new(capacity: u32) -> Self {
        // A new agent must not repeat generations of the one before it: flows of that one live on.
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

    /// Marks a place as used.
    pub(super) fn take(&mut self, place: u32) {
        self.used.insert(place);
        self.next = (place + 1) % self.capacity;
    }

    /// A free place, the longest-free first; `None` when there is none.
    pub(super) fn allocate(&mut self) -> Option<u32> {
        let place = (self.next..self.capacity)
            .chain(0..self.next)
            .find(|place| !self.used.contains(place))?;
        self.take(place);
        Some(place)
    }

    pub(super) fn release(&mut self, place: u32) {
        self.used.remove(&place);
    }

    /// A generation that no tenant of any place has had lately; never 0.
    pub(super) fn next_generation(&mut self) -> u32 {
        self.generation = self.generation.wrapping_add(1).max(1);
        self.generation
    }
}

/// Ranges of places.
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

    /// A free range; an empty one is anywhere. `None` when there is no room.
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

    /// Places in use.
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
    fn a_freed_place_is_reused_last() {
        let mut places = Places::new(3);
        assert_eq!([places.allocate(), places.allocate()], [Some(0), Some(1)]);
        places.release(0);
        assert_eq!(
            [places.allocate(), places.allocate(), places.allocate()],
            [Some(2), Some(0), None]
        );
    }

    #[test]
    fn generations_are_never_zero_and_never_repeat_at_once() {
        let mut places = Places::new(1);
        places.generation = u32::MAX - 1;
        assert_eq!(
            [
                places.next_generation(),
                places.next_generation(),
                places.next_generation()
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
