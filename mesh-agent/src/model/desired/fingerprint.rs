//! Short fingerprints of ids that packets between nodes carry.

use crate::model::fnv1a::fnv1a_32;

/// The Geneve network identifier of a cluster: 24 bits of its id's FNV-1a hash, so that two
/// clusters on one network do not accept each other's packets.
#[must_use]
pub fn vni(cluster_id: &str) -> u32 {
    fnv1a_32(cluster_id.bytes()) & 0x00ff_ffff
}

/// A short fingerprint of a task's id that encapsulated packets carry, so that a stale packet for an
/// address that Swarm has since given to another task is refused rather than delivered.
#[must_use]
pub fn task_tag(task: &str) -> u16 {
    let hash = fnv1a_32(task.bytes());
    (hash >> 16) as u16 ^ (hash & 0xffff) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_identifiers_fit_their_field() {
        for id in ["", "cluster", "x8a7d5wefsfzt4xgjwqn7l4kt"] {
            assert!(vni(id) < 1 << 24);
        }
        assert_ne!(vni("a"), vni("b"));
    }
}
