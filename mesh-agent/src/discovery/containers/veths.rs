//! Which containers' veths are gone. The kernel reports it as soon as the engine takes a container's network
//! away, long before the engine's own event. Pure; imports nothing.

use std::collections::BTreeSet;

/// The host ends of containers' veths that are there.
#[derive(Debug, Default)]
pub(super) struct Veths(BTreeSet<u32>);

impl Veths {
    /// Takes the interfaces that are there now; returns those that have gone since the last call. An
    /// interface that is not listed yet is not gone: its container may have been inspected sooner than the
    /// network watcher saw it.
    pub(super) fn update(&mut self, now: &BTreeSet<u32>) -> BTreeSet<u32> {
        let gone = self.0.difference(now).copied().collect();
        self.0.clone_from(now);
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_interfaces_that_were_there_are_gone() {
        let mut veths = Veths::default();
        assert_eq!(veths.update(&[3, 5].into()), [].into());
        assert_eq!(veths.update(&[5, 8].into()), [3].into());
        assert_eq!(veths.update(&[5, 8].into()), [].into(), "once");
    }
}
