//! The maps of clients' affinities. Part of [`crate::tables::Tables`].

use crate::abi::{Affinity, AffinityKey};

/// The maps. Every method is one look-up at most.
pub trait AffinityTables {
    /// The backend that a client's last open flow of a service went to.
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity>;
    /// Replaces it. Old ones are pushed out.
    fn note_affinity(&self, key: &AffinityKey, affinity: &Affinity);
    /// Whether a backend of this generation is in its service's ring.
    fn takes_new_flows(&self, backend: u32, generation: u32) -> bool;
}
