//! Decides how a client's packet goes on from its entry node, once the flow's backend is known.

use crate::{
    abi::{BACKEND_LOCAL, Backend, Config, Hook, Origin},
    encapsulation,
    frame::Frame,
    parse::Packet,
    tables::FlowEntry,
    verdict::Decision,
};

/// What happens to a client's packet whose flow has this backend.
#[inline(always)]
pub fn decide<'a, F: Frame>(
    frame: &F,
    config: &Config,
    packet: &Packet,
    hook: Hook,
    flow: FlowEntry,
    backend: &'a Backend,
) -> Decision<'a> {
    if backend.location == BACKEND_LOCAL {
        return match hook {
            // Packets for this node are left to tc, which keeps aggregated packets whole.
            Hook::Xdp => Decision::PASS,
            Hook::TcUplink | Hook::TcContainer | Hook::TcMesh0 => Decision::deliver(flow, backend, false),
        };
    }
    if !encapsulation::fits(frame, packet, config.inner_mtu) {
        return Decision::TOO_BIG;
    }
    let direct = config.direct_return != 0 && flow.origin() == Origin::UPLINK;
    Decision::forward(flow, backend, direct)
}
