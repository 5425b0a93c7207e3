//! Decides how a client's packet goes on from its entry node, once the flow's backend is known.

use crate::{
    abi::{BACKEND_LOCAL, Backend, Config, Hook, Origin},
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
    let direct = config.direct_return != 0 && flow.origin() == Origin::UPLINK;
    Decision::forward(flow, backend, direct)
}
