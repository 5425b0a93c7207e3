//! What happens to a packet: the [`Decision`], which writes nothing to it, and the [`Action`] that is left
//! for the hook once the decision has been executed.

use crate::{
    abi::{Backend, DropReason, Hook},
    headers::GeneveKind,
    tables::FlowEntry,
};

/// What happens to a packet. Deciding may open a flow; it does not change the packet.
///
/// A struct rather than the [`Verdict`] it represents, so that every field is always initialised. An
/// enum leaves the payload of its other variants undefined, the compiler is free to copy it, and the
/// kernel's verifier refuses a program that copies uninitialised memory.
#[derive(Clone, Copy, Debug)]
pub struct Decision<'a> {
    kind: Kind,
    reason: DropReason,
    flow: Option<FlowEntry>,
    backend: Option<&'a Backend>,
    peer: u32,
    returned: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Pass,
    Exceptional,
    Drop,
    Refuse,
    Deliver,
    DeliverDecapsulated,
    Forward,
    ForwardDirect,
    Reply,
    DeliverReply,
    AnswerProbe,
    SendBack,
}

impl<'a> Decision<'a> {
    /// [`Verdict::Pass`].
    pub const PASS: Self = Self {
        kind: Kind::Pass,
        reason: DropReason::RewriteFailed,
        flow: None,
        backend: None,
        peer: 0,
        returned: false,
    };

    /// [`Verdict::AnswerProbe`].
    pub const ANSWER_PROBE: Self = Self {
        kind: Kind::AnswerProbe,
        ..Self::PASS
    };

    /// [`Verdict::Exceptional`]. XDP has no program for these: it leaves them to tc.
    #[inline(always)]
    pub const fn exceptional(hook: Hook) -> Self {
        let kind = match hook {
            Hook::Xdp => Kind::Pass,
            Hook::TcUplink | Hook::TcContainer | Hook::TcMesh0 => Kind::Exceptional,
        };
        Self { kind, ..Self::PASS }
    }

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

    /// [`Verdict::RefuseReturned`].
    #[inline(always)]
    pub const fn refuse_returned(flow: FlowEntry, reason: DropReason) -> Self {
        Self {
            kind: Kind::Refuse,
            reason,
            flow: Some(flow),
            returned: true,
            ..Self::PASS
        }
    }

    /// [`Verdict::SendBack`].
    #[inline(always)]
    pub const fn send_back(peer: u32, reason: DropReason) -> Self {
        Self {
            kind: Kind::SendBack,
            reason,
            peer,
            ..Self::PASS
        }
    }

    /// The same decision about a client's packet that a peer has sent back, and that is still encapsulated.
    #[inline(always)]
    pub const fn of_returned(self) -> Self {
        let kind = match self.kind {
            Kind::Deliver => Kind::DeliverDecapsulated,
            Kind::Pass
            | Kind::Exceptional
            | Kind::Drop
            | Kind::Refuse
            | Kind::DeliverDecapsulated
            | Kind::Forward
            | Kind::ForwardDirect
            | Kind::Reply
            | Kind::DeliverReply
            | Kind::SendBack
            | Kind::AnswerProbe => self.kind,
        };
        Self {
            kind,
            returned: true,
            ..self
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

    /// [`Verdict::Forward`]; `direct` if replies go to the client directly.
    #[inline(always)]
    pub const fn forward(flow: FlowEntry, backend: &'a Backend, direct: bool) -> Self {
        let kind = if direct {
            Kind::ForwardDirect
        } else {
            Kind::Forward
        };
        Self {
            kind,
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

    /// Whether the packet stays as it is: it is not the mesh's, or for another program of ours.
    #[inline(always)]
    pub const fn leaves_packet(&self) -> bool {
        matches!(self.kind, Kind::Pass | Kind::Exceptional)
    }

    /// The verdict that this decision represents.
    #[inline(always)]
    pub fn verdict(self) -> Verdict<'a> {
        match (self.kind, self.flow, self.backend) {
            (Kind::Drop, ..) => Verdict::Drop(self.reason),
            (Kind::Refuse, Some(flow), _) => Verdict::RefuseReturned {
                flow,
                reason: self.reason,
            },
            (Kind::SendBack, ..) => Verdict::SendBack {
                peer: self.peer,
                reason: self.reason,
            },
            (Kind::Refuse, ..) => Verdict::Refuse(self.reason),
            (Kind::AnswerProbe, ..) => Verdict::AnswerProbe,
            (Kind::Exceptional, ..) => Verdict::Exceptional,
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
            (Kind::Forward, Some(flow), Some(backend)) => Verdict::Forward {
                flow,
                backend,
                kind: GeneveKind::Forward,
                returned: self.returned,
            },
            (Kind::ForwardDirect, Some(flow), Some(backend)) => Verdict::Forward {
                flow,
                backend,
                kind: GeneveKind::ForwardDirect,
                returned: self.returned,
            },
            (Kind::Reply, Some(flow), _) => Verdict::Reply { flow },
            (Kind::DeliverReply, Some(flow), _) => Verdict::DeliverReply { flow },
            // The constructors allow no other combination than a pass.
            (
                Kind::Pass
                | Kind::Deliver
                | Kind::DeliverDecapsulated
                | Kind::Forward
                | Kind::ForwardDirect
                | Kind::Reply
                | Kind::DeliverReply,
                ..,
            ) => Verdict::Pass,
        }
    }
}

/// A [`Decision`], to match on.
#[derive(Clone, Copy, Debug)]
pub enum Verdict<'a> {
    /// Leave it to the next program or the kernel.
    Pass,
    /// For the program of exceptional packets.
    Exceptional,
    /// Drop and count.
    Drop(DropReason),
    /// Refuse: answer with RST (TCP) or ICMP "port unreachable" (UDP), and count.
    Refuse(DropReason),
    /// The same, of a client's packet that a peer has sent back: the answer is for the client.
    RefuseReturned {
        /// The flow.
        flow: FlowEntry,
        /// Why.
        reason: DropReason,
    },
    /// A client's packet that this node cannot deliver: back through the tunnel to the entry node, counted.
    SendBack {
        /// The entry node's index.
        peer: u32,
        /// Why.
        reason: DropReason,
    },
    /// A client's packet, to a container of this node.
    Deliver {
        /// The flow.
        flow: FlowEntry,
        /// The container.
        backend: &'a Backend,
        /// Whether it arrived through the tunnel, from its entry node or sent back to it.
        decapsulate: bool,
    },
    /// A client's packet, through the tunnel to the backend's node.
    Forward {
        /// The flow.
        flow: FlowEntry,
        /// The backend.
        backend: &'a Backend,
        /// Forward or forward with direct return.
        kind: GeneveKind,
        /// Whether another node has sent it back, so that it is still encapsulated.
        returned: bool,
    },
    /// A local backend's reply, to the client or to the entry node.
    Reply {
        /// The flow, by its reply entry.
        flow: FlowEntry,
    },
    /// A remote backend's reply that arrived through the tunnel, to the client.
    DeliverReply {
        /// The flow.
        flow: FlowEntry,
    },
    /// A peer's probe, back to the peer.
    AnswerProbe,
}

/// What is left for the hook, the packet being rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Leave it to the next program or the kernel.
    Pass,
    /// Leave it to the hook's program of exceptional packets, [`crate::exceptional`] (tc only).
    Exceptional,
    /// Drop it; it is counted already.
    Drop,
    /// Leave it, with an Ethernet header, to the hook's program of exceptional packets: it is to be split
    /// into fragments of at most so many bytes, from the IP header on (tc only).
    Split {
        /// The bytes.
        mtu: u16,
    },
    /// Let it arrive at the hook again (tc only).
    Again,
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
    use crate::abi::FlowRecord;

    #[test]
    fn a_decision_has_the_verdict_that_it_was_made_with() {
        let mut flow = FlowRecord::default();
        // SAFETY: the flow outlives the entry, and nothing else uses it meanwhile.
        let entry = unsafe { FlowEntry::new(NonNull::from(&mut flow)) };
        let backend = Backend::default();
        let reason = DropReason::Fragment;
        assert!(matches!(Decision::PASS.verdict(), Verdict::Pass));
        assert!(matches!(
            Decision::exceptional(Hook::TcUplink).verdict(),
            Verdict::Exceptional
        ));
        assert!(matches!(Decision::drop(reason).verdict(), Verdict::Drop(found) if found == reason));
        assert!(matches!(Decision::refuse(reason).verdict(), Verdict::Refuse(found) if found == reason));
        assert!(matches!(
            Decision::refuse_returned(entry, reason).verdict(),
            Verdict::RefuseReturned { reason: found, .. } if found == reason
        ));
        assert!(matches!(
            Decision::send_back(7, reason).verdict(),
            Verdict::SendBack { peer: 7, reason: found } if found == reason
        ));
        assert!(matches!(Decision::ANSWER_PROBE.verdict(), Verdict::AnswerProbe));
        assert!(matches!(
            Decision::deliver(entry, &backend, false).of_returned().verdict(),
            Verdict::Deliver {
                decapsulate: true,
                ..
            }
        ));
        for expected in [false, true] {
            let verdict = Decision::deliver(entry, &backend, expected).verdict();
            assert!(matches!(verdict, Verdict::Deliver { decapsulate, .. } if decapsulate == expected));
        }
        for (direct, expected) in [(false, GeneveKind::Forward), (true, GeneveKind::ForwardDirect)] {
            let verdict = Decision::forward(entry, &backend, direct).verdict();
            assert!(matches!(verdict, Verdict::Forward { kind, returned: false, .. } if kind == expected));
            let verdict = Decision::forward(entry, &backend, direct).of_returned().verdict();
            assert!(matches!(verdict, Verdict::Forward { kind, returned: true, .. } if kind == expected));
        }
        assert!(matches!(Decision::reply(entry).verdict(), Verdict::Reply { .. }));
        assert!(matches!(
            Decision::deliver_reply(entry).verdict(),
            Verdict::DeliverReply { .. }
        ));
    }
}
