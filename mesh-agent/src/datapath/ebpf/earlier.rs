//! What maps of earlier releases hold, as far as this one converts it.

use mesh_ebpf::abi::{Endpoint, Flow, Opening, Origin, Progress, Role};
use mesh_ebpf::bytes::Be32;

/// An entry of the flow table before version 6, which had no table of half-open flows.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(8))]
pub(super) struct FlowBefore6 {
    frontend: Endpoint,
    client: Endpoint,
    presented: Endpoint,
    backend: u32,
    generation: u32,
    from_client: Progress,
    from_backend: Progress,
    peer: u32,
    peer_address: Be32,
    seen: u32,
    origin: Origin,
    role: Role,
    opening: u16,
}

const _: () = assert!(size_of::<FlowBefore6>() == 56);

// SAFETY: `repr(C)`, without padding (asserted), integers only.
unsafe impl aya::Pod for FlowBefore6 {}

impl From<FlowBefore6> for Flow {
    /// Whether it was open is unknown. What was not is removed a while later than it might be.
    fn from(earlier: FlowBefore6) -> Self {
        Self {
            frontend: earlier.frontend,
            client: earlier.client,
            presented: earlier.presented,
            backend: earlier.backend,
            generation: earlier.generation,
            from_client: earlier.from_client,
            from_backend: earlier.from_backend,
            peer: earlier.peer,
            peer_address: earlier.peer_address,
            seen: earlier.seen,
            origin: earlier.origin,
            role: earlier.role,
            opening: Opening::OPEN,
            // Whatever comes next is in sequence.
            client_next: 0,
            backend_next: 0,
        }
    }
}
