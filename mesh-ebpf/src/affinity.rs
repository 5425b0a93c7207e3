//! Keeps clients at their backends, for services with affinity.
//!
//! The table has the backend that a client's last open flow went to. A client that is not in it gets the one
//! that a hash of its address selects, which is the same on every node. So it is written only as a flow
//! opens: until then, the hash finds the same backend again, and forged addresses fill no entries.

use crate::{
    abi::{Affinity, AffinityKey, Backend},
    bytes::Be32,
    tables::{FlowEntry, Tables},
};

/// The backend that a client has affinity with: for as long after its last new flow as the service says, and
/// while the backend takes new flows.
#[inline(always)]
pub fn backend<T: Tables>(tables: &T, service: u32, client: Be32) -> Option<u32> {
    let known = tables.affinity(&AffinityKey { service, client })?;
    let lifetime = u64::from(tables.openings(service)?.affinity()) * 1_000_000_000;
    let is_recent = tables.clock().wrapping_sub(known.since) <= lifetime;
    (is_recent && tables.takes_new_flows(known.backend, known.generation)).then_some(known.backend)
}

/// Records that a client's flow has opened on its entry node.
#[inline(always)]
pub fn note<T: Tables>(tables: &T, forward: FlowEntry, backend: &Backend) {
    let service = backend.service;
    if forward.origin().is_tunnel() || !has_affinity(tables, service) {
        return;
    }
    let key = AffinityKey {
        service,
        client: forward.client().address,
    };
    let affinity = Affinity {
        backend: forward.backend(),
        generation: forward.generation(),
        since: tables.clock(),
    };
    tables.note_affinity(&key, &affinity);
}

#[inline(always)]
fn has_affinity<T: Tables>(tables: &T, service: u32) -> bool {
    tables
        .openings(service)
        .is_some_and(|openings| openings.affinity() != 0)
}

#[cfg(test)]
mod tests;
