//! Decides how a client's packet goes on from its entry node, once the flow's backend is known.

use crate::{
    abi::{BACKEND_LOCAL, Backend, Config, Hook, Origin, is_mapped_client},
    bytes::Be32,
    tables::FlowEntry,
    verdict::Decision,
};

/// What happens to a client's packet whose flow has this backend.
#[inline(always)]
pub fn decide<'a>(config: &Config, hook: Hook, flow: FlowEntry, backend: &'a Backend) -> Decision<'a> {
    if backend.location == BACKEND_LOCAL {
        return match hook {
            // Packets for this node are left to tc, which keeps aggregated packets whole.
            Hook::Xdp => Decision::PASS,
            Hook::TcUplink | Hook::TcContainer | Hook::TcMesh0 => Decision::deliver(flow, backend, false),
        };
    }
    let direct = is_direct(config, flow.origin(), flow.client().address, backend);
    Decision::forward(flow, backend, direct)
}

/// Whether replies go to the client directly, past this node, the entry node.
#[inline(always)]
pub fn is_direct(config: &Config, origin: Origin, client: Be32, backend: &Backend) -> bool {
    config.direct_return != 0
        && origin == Origin::UPLINK
        && backend.location != BACKEND_LOCAL
        // Only this node knows whom a mapped address stands for.
        && !is_mapped_client(client)
}
