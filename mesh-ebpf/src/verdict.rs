//! What shall become of a packet: first decided ([`Decision`], nothing written yet), then done
//! ([`Action`], what is left for the hook to return). Imports `abi` and `tables`.

use crate::{
    abi::{Backend, DropReason},
    tables::FlowEntry,
};

/// What shall become of a packet. Deciding may open a flow; it does not touch the packet.
///
/// A struct, not the [`Verdict`] it stands for: whichever way the decision was reached, every field is
/// written. An enum leaves the payload of other variants undefined, the compiler is free to copy it
/// about, and the kernel's verifier refuses a program that copies what was never written.
#[derive(Clone, Copy, Debug)]
pub struct Decision<'a> {
    kind: Kind,
    reason: DropReason,
    flow: Option<FlowEntry>,
    backend: Option<&'a Backend>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Pass,
    Drop,
    Refuse,
    TooBig,
    Deliver,
    DeliverDecapsulated,
    Forward,
    Reply,
    DeliverReply,
}

impl<'a> Decision<'a> {
    /// [`Verdict::Pass`].
    pub const PASS: Self = Self {
        kind: Kind::Pass,
        reason: DropReason::RewriteFailed,
        flow: None,
        backend: None,
    };

    /// [`Verdict::TooBig`].
    pub const TOO_BIG: Self = Self {
        kind: Kind::TooBig,
        reason: DropReason::TooBig,
        ..Self::PASS
    };

    /// [`Verdict::Drop`].
    #[inline(always)]
    pub const fn drop(reason: DropReason) -> Self {
        Self {
            kind: Kind::Drop,
            reason,
            ..Self::PASS
        }
    }

    /// [`Verdict::Refuse`].
    #[inline(always)]
    pub const fn refuse(reason: DropReason) -> Self {
        Self {
            kind: Kind::Refuse,
            reason,
            ..Self::PASS
        }
    }

    /// [`Verdict::Deliver`].
    #[inline(always)]
    pub const fn deliver(flow: FlowEntry, backend: &'a Backend, decapsulate: bool) -> Self {
        let kind = if decapsulate {
            Kind::DeliverDecapsulated
        } else {
            Kind::Deliver
        };
        Self {
            kind,
            flow: Some(flow),
            backend: Some(backend),
            ..Self::PASS
        }
    }

    /// [`Verdict::Forward`].
    #[inline(always)]
    pub const fn forward(flow: FlowEntry, backend: &'a Backend) -> Self {
        Self {
            kind: Kind::Forward,
            flow: Some(flow),
            backend: Some(backend),
            ..Self::PASS
        }
    }

    /// [`Verdict::Reply`].
    #[inline(always)]
    pub const fn reply(flow: FlowEntry) -> Self {
        Self {
            kind: Kind::Reply,
            flow: Some(flow),
            ..Self::PASS
        }
    }

    /// [`Verdict::DeliverReply`].
    #[inline(always)]
    pub const fn deliver_reply(flow: FlowEntry) -> Self {
        Self {
            kind: Kind::DeliverReply,
            flow: Some(flow),
            ..Self::PASS
        }
    }

    /// Whether the packet is not the mesh's.
    #[inline(always)]
    pub fn is_pass(&self) -> bool {
        self.kind == Kind::Pass
    }

    /// The decision, to match on.
    #[inline(always)]
    pub fn verdict(self) -> Verdict<'a> {
        match (self.kind, self.flow, self.backend) {
            (Kind::Drop, ..) => Verdict::Drop(self.reason),
            (Kind::Refuse, ..) => Verdict::Refuse(self.reason),
            (Kind::TooBig, ..) => Verdict::TooBig,
            (Kind::Deliver, Some(flow), Some(backend)) => Verdict::Deliver {
                flow,
                backend,
                decapsulate: false,
            },
            (Kind::DeliverDecapsulated, Some(flow), Some(backend)) => Verdict::Deliver {
                flow,
                backend,
                decapsulate: true,
            },
            (Kind::Forward, Some(flow), Some(backend)) => Verdict::Forward { flow, backend },
            (Kind::Reply, Some(flow), _) => Verdict::Reply { flow },
            (Kind::DeliverReply, Some(flow), _) => Verdict::DeliverReply { flow },
            // The constructors leave no other combination than a pass.
            (
                Kind::Pass
                | Kind::Deliver
                | Kind::DeliverDecapsulated
                | Kind::Forward
                | Kind::Reply
                | Kind::DeliverReply,
                ..,
            ) => Verdict::Pass,
        }
    }
}

/// A [`Decision`], spelt out.
#[derive(Clone, Copy, Debug)]
pub enum Verdict<'a> {
    /// Not the mesh's: the kernel goes on with it.
    Pass,
    /// Drop and count.
    Drop(DropReason),
    /// Tell the sender that nobody is there (TCP: RST; UDP: ICMP port unreachable), and count.
    Refuse(DropReason),
    /// Tell the sender that it does not fit into the tunnel (ICMP "fragmentation needed"), and count.
    TooBig,
    /// To a container of this node.
    Deliver {
        /// The flow.
        flow: FlowEntry,
        /// The container.
        backend: &'a Backend,
        /// Whether it came encapsulated.
        decapsulate: bool,
    },
    /// To the node of a remote backend.
    Forward {
        /// The flow.
        flow: FlowEntry,
        /// The backend.
        backend: &'a Backend,
    },
    /// A reply of a local backend to the client, or to the entry node.
    Reply {
        /// The flow (its entry for replies).
        flow: FlowEntry,
    },
    /// An encapsulated reply, to this node's client.
    DeliverReply {
        /// The flow.
        flow: FlowEntry,
    },
}

/// What the hook returns, the packet being ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The kernel goes on with it.
    Pass,
    /// Drop; counted already.
    Drop,
    /// Out of an interface.
    Transmit {
        /// Interface index.
        interface: u32,
    },
    /// Out of the interface it came from (for mesh0: back into it), as an answer.
    Answer,
    /// Into the container at the other end of a veth.
    IntoContainer {
        /// Interface index of the host end.
        interface: u32,
    },
    /// Into this node's own stack, as if received on an interface.
    IntoHost {
        /// Interface index.
        interface: u32,
    },
    /// Out of an interface, once the kernel has resolved the neighbour (tc only).
    Route {
        /// Interface index.
        interface: u32,
    },
}

#[cfg(test)]
mod tests {
    use core::ptr::NonNull;

    use super::*;
    use crate::abi::Flow;

    #[test]
    fn a_decision_spells_out_as_what_it_was_made() {
        let mut flow = Flow::default();
        // SAFETY: the flow outlives the entry, and nobody else uses it meanwhile.
        let entry = unsafe { FlowEntry::new(NonNull::from(&mut flow)) };
        let backend = Backend::default();
        let reason = DropReason::Fragment;
        assert!(matches!(Decision::PASS.verdict(), Verdict::Pass));
        assert!(matches!(Decision::drop(reason).verdict(), Verdict::Drop(found) if found == reason));
        assert!(matches!(Decision::refuse(reason).verdict(), Verdict::Refuse(found) if found == reason));
        assert!(matches!(Decision::TOO_BIG.verdict(), Verdict::TooBig));
        for expected in [false, true] {
            let verdict = Decision::deliver(entry, &backend, expected).verdict();
            assert!(matches!(verdict, Verdict::Deliver { decapsulate, .. } if decapsulate == expected));
        }
        let forward = Decision::forward(entry, &backend);
        assert!(matches!(forward.verdict(), Verdict::Forward { .. }));
        assert!(matches!(Decision::reply(entry).verdict(), Verdict::Reply { .. }));
        assert!(matches!(
            Decision::deliver_reply(entry).verdict(),
            Verdict::DeliverReply { .. }
        ));
        assert!(Decision::PASS.is_pass() && !forward.is_pass());
    }
}
