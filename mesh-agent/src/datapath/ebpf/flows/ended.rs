//! The flows that the upkeep of their tables has ended, for those who watch. What a packet has ended, the
//! programs report themselves.

use mesh_ebpf::{
    abi::{Flow, FlowKey, Progress, Role},
    headers::PROTOCOL_TCP,
};

/// How many of one walk are kept.
const KEPT: usize = 2_048;

/// A flow that has ended without a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Ended {
    /// Of its client's packets.
    pub(in super::super) key: FlowKey,
    /// Index of its backend.
    pub(in super::super) backend: u32,
    /// The backend's generation.
    pub(in super::super) generation: u32,
    /// Why it has ended.
    pub(in super::super) reason: &'static str,
}

/// Those of one walk.
#[derive(Debug, Default)]
pub(in super::super) struct AllEnded {
    /// The first of them.
    pub(in super::super) list: Vec<Ended>,
    /// How many more there were.
    pub(in super::super) skipped: u64,
}

impl AllEnded {
    /// Adds a flow, if its end is to be reported.
    pub(super) fn note(&mut self, ended: Option<Ended>) {
        match ended {
            Some(ended) if self.list.len() < KEPT => self.list.push(ended),
            Some(_) => self.skipped += 1,
            None => {}
        }
    }
}

impl Ended {
    /// Of a forward entry whose client may no longer come in.
    pub(super) fn denied(key: &FlowKey, flow: &Flow) -> Option<Self> {
        reported(key, flow, "denied")
    }

    /// Of an entry that was over.
    pub(super) fn over(key: &FlowKey, flow: &Flow, backend_is_current: bool) -> Option<Self> {
        let reason = if !backend_is_current {
            "backend_removed"
        } else if !flow.opening.is_open() {
            "unanswered"
        } else if key.protocol == u32::from(PROTOCOL_TCP)
            && Progress::is_closing(flow.from_client, flow.from_backend)
        {
            "half_closed"
        } else {
            "idle"
        };
        reported(key, flow, reason)
    }

    /// Of a forward entry that was removed to make room.
    pub(super) fn pushed_out(key: &FlowKey, flow: &Flow) -> Option<Self> {
        reported(key, flow, "pushed_out")
    }
}

/// None of a flow whose end a packet has shown, or that entered at another node, which reports it.
fn reported(key: &FlowKey, flow: &Flow, reason: &'static str) -> Option<Ended> {
    let is_known = Progress::is_closed(flow.from_client, flow.from_backend) || flow.origin.is_tunnel();
    (flow.role == Role::FORWARD && !is_known).then_some(Ended {
        key: *key,
        backend: flow.backend,
        generation: flow.generation,
        reason,
    })
}

#[cfg(test)]
mod tests {
    use mesh_ebpf::{
        abi::{Opening, Origin},
        headers::PROTOCOL_UDP,
    };

    use super::*;

    fn reason(protocol: u8, flow: Flow, backend_is_current: bool) -> Option<&'static str> {
        let key = FlowKey {
            protocol: protocol.into(),
            ..FlowKey::default()
        };
        Ended::over(&key, &flow, backend_is_current).map(|ended| ended.reason)
    }

    #[test]
    fn a_flow_that_ends_without_a_packet_says_why() {
        let open = Flow {
            role: Role::FORWARD,
            origin: Origin::UPLINK,
            opening: Opening::OPEN,
            ..Flow::default()
        };
        let half_open = Flow {
            opening: Opening::asked(1),
            ..open
        };
        let half_closed = Flow {
            from_client: Progress::FINISHED,
            ..open
        };
        assert_eq!(reason(PROTOCOL_UDP, open, true), Some("idle"));
        assert_eq!(reason(PROTOCOL_TCP, open, true), Some("idle"));
        assert_eq!(reason(PROTOCOL_TCP, half_closed, true), Some("half_closed"));
        assert_eq!(reason(PROTOCOL_UDP, half_open, true), Some("unanswered"));
        assert_eq!(reason(PROTOCOL_TCP, open, false), Some("backend_removed"));
    }

    #[test]
    fn an_end_that_is_reported_elsewhere_is_not_reported_again() {
        let closed = Flow {
            role: Role::FORWARD,
            origin: Origin::UPLINK,
            opening: Opening::OPEN,
            from_client: Progress::FINISHED,
            from_backend: Progress::FINISHED,
            ..Flow::default()
        };
        let of_peer = Flow {
            origin: Origin::TUNNEL,
            from_backend: Progress::OPEN,
            ..closed
        };
        let other_entry = Flow {
            role: Role::REPLY,
            from_backend: Progress::OPEN,
            ..closed
        };
        for flow in [closed, of_peer, other_entry] {
            assert_eq!(reason(PROTOCOL_TCP, flow, true), None, "{flow:?}");
        }
    }

    #[test]
    fn what_is_too_much_is_counted() {
        let mut all = AllEnded::default();
        let ended = Some(Ended {
            key: FlowKey::default(),
            backend: 1,
            generation: 2,
            reason: "idle",
        });
        (0..KEPT + 3).for_each(|_| all.note(ended));
        assert_eq!((all.list.len(), all.skipped), (KEPT, 3));
    }
}
