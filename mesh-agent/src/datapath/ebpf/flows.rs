//! Upkeep of the flow table: counts open flows by backend, removes flows that are over.
//!
//! The table is an LRU and would work without it. But counting open connections takes a walk over all flows,
//! and only without dead flows does the number of entries show how full the table is.

use std::collections::BTreeMap;

use mesh_ebpf::{
    abi::{Event, Flow, FlowKey, Progress, Role},
    headers::PROTOCOL_TCP,
};

use super::{super::DatapathError, failed, maps::Maps};

/// Flows read per system call.
const BATCH: usize = 4096;
/// A table of more entries than this is walked every [`LARGE_INTERVAL`] seconds, a smaller one each second.
const LARGE: u64 = 20_000;
const LARGE_INTERVAL: u32 = 10;
/// Seconds that a flow stays after it is closed, for packets that are still under way.
const CLOSED_LINGER: u32 = 10;
/// Seconds without a packet after which a TCP flow with one side closed is over.
const HALF_CLOSED_IDLE: u32 = 300;
/// Seconds without a packet after which an open TCP flow is considered dead. Longer than any keep-alive.
const TCP_IDLE: u32 = 24 * 60 * 60;
/// Seconds without a packet after which a UDP flow is over.
const UDP_IDLE: u32 = 120;
/// Seconds without a packet after which a UDP flow no longer counts as active.
const UDP_ACTIVE: u32 = 30;

/// The result of the last walk.
#[derive(Default)]
pub(super) struct FlowSweep {
    active: BTreeMap<u32, u64>,
    open: BTreeMap<u32, u64>,
    entries: u64,
    removed: u64,
    evictions: u64,
    inserted_before: Option<u64>,
    next: u32,
}

/// What the walk does with an entry.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    /// Keep it, and count it as an open flow that entered here.
    Active,
    /// Keep it, and count it as an open flow of a replica here that entered at another node.
    Delivered,
    /// Keep it.
    Kept,
    /// Remove it.
    Over,
}

impl FlowSweep {
    /// Open flows that entered at this node, by backend index.
    pub(super) fn active(&self) -> &BTreeMap<u32, u64> {
        &self.active
    }

    /// All open flows, by backend index: those of other entry nodes only where the backend is local.
    pub(super) fn open(&self) -> &BTreeMap<u32, u64> {
        &self.open
    }

    /// Entries of the table; a flow takes one or two.
    pub(super) fn entries(&self) -> u64 {
        self.entries
    }

    /// Entries that are gone without having been removed by a walk.
    pub(super) fn evictions(&self) -> u64 {
        self.evictions
    }

    /// Walks the table if it is time to; returns whether it was. `generations` has each backend's current
    /// one.
    pub(super) fn run(
        &mut self,
        maps: &mut Maps,
        now: u32,
        generations: &BTreeMap<u32, u32>,
    ) -> Result<bool, DatapathError> {
        if now < self.next {
            return Ok(false);
        }
        let inserted = maps.events(Event::FlowInserted)?;
        let mut active: BTreeMap<u32, u64> = BTreeMap::new();
        let mut open: BTreeMap<u32, u64> = BTreeMap::new();
        let mut entries = 0;
        let mut over = Vec::new();
        super::batch::for_each(&maps.flows, BATCH, |key: &FlowKey, flow: &Flow| {
            entries += 1;
            let current = generations.get(&flow.backend) == Some(&flow.generation);
            match fate(key, flow, now, current) {
                Fate::Active => {
                    *active.entry(flow.backend).or_default() += 1;
                    *open.entry(flow.backend).or_default() += 1;
                }
                Fate::Delivered => *open.entry(flow.backend).or_default() += 1,
                Fate::Kept => {}
                Fate::Over => over.push((*key, *flow)),
            }
        })
        .map_err(|error| failed("walk the flow table", error))?;
        for (key, flow) in &over {
            // If it was opened again since it was read, it is not over; if it is gone, that is as good.
            let unchanged = maps.flows.get(key, 0).is_ok_and(|now| now == *flow);
            if unchanged && maps.flows.remove(key).is_ok() {
                self.removed += 1;
                entries -= 1;
            }
        }
        // What the first walk finds counts as inserted before it.
        let before = *self
            .inserted_before
            .get_or_insert(inserted.saturating_sub(entries + self.removed));
        self.evictions = self
            .evictions
            .max(inserted.saturating_sub(before + self.removed + entries));
        self.active = active;
        self.open = open;
        self.entries = entries;
        self.next = now + if entries > LARGE { LARGE_INTERVAL } else { 1 };
        Ok(true)
    }
}

fn fate(key: &FlowKey, flow: &Flow, now: u32, backend_is_current: bool) -> Fate {
    let idle = now.saturating_sub(flow.seen);
    // Each flow has one forward entry on a node.
    let open = match (flow.role == Role::FORWARD, flow.origin.is_tunnel()) {
        (true, false) => Fate::Active,
        (true, true) => Fate::Delivered,
        (false, _) => Fate::Kept,
    };
    if !backend_is_current {
        // Kept for a while, so that packets of a connection to a removed backend are refused, not ignored.
        return if idle > HALF_CLOSED_IDLE {
            Fate::Over
        } else {
            Fate::Kept
        };
    }
    if key.protocol != u32::from(PROTOCOL_TCP) {
        return match idle {
            idle if idle > UDP_IDLE => Fate::Over,
            idle if idle <= UDP_ACTIVE => open,
            _ => Fate::Kept,
        };
    }
    let closed = Progress::is_closed(flow.from_client, flow.from_backend);
    let half_closed = Progress::is_closing(flow.from_client, flow.from_backend);
    match idle {
        idle if closed && idle > CLOSED_LINGER => Fate::Over,
        idle if half_closed && idle > HALF_CLOSED_IDLE => Fate::Over,
        idle if idle > TCP_IDLE => Fate::Over,
        _ if !closed => open,
        _ => Fate::Kept,
    }
}

#[cfg(test)]
mod tests {
    use mesh_ebpf::{abi::Origin, headers::PROTOCOL_UDP};

    use super::*;

    fn check(protocol: u8, flow: Flow, idle: u32, current: bool, expected: Fate) {
        let key = FlowKey {
            protocol: u32::from(protocol),
            ..FlowKey::default()
        };
        let flow = Flow {
            seen: 1000,
            role: Role::FORWARD,
            ..flow
        };
        assert_eq!(
            fate(&key, &flow, 1000 + idle, current),
            expected,
            "{flow:?} idle {idle}"
        );
    }

    #[test]
    fn an_open_connection_is_active_for_a_day() {
        let open = Flow {
            origin: Origin::UPLINK,
            ..Flow::default()
        };
        check(PROTOCOL_TCP, open, 0, true, Fate::Active);
        check(PROTOCOL_TCP, open, TCP_IDLE, true, Fate::Active);
        check(PROTOCOL_TCP, open, TCP_IDLE + 1, true, Fate::Over);
    }

    #[test]
    fn a_closed_connection_lingers_and_is_removed() {
        let reset = Flow {
            origin: Origin::UPLINK,
            from_backend: Progress::RESET,
            ..Flow::default()
        };
        check(PROTOCOL_TCP, reset, CLOSED_LINGER, true, Fate::Kept);
        check(PROTOCOL_TCP, reset, CLOSED_LINGER + 1, true, Fate::Over);
        let half = Flow {
            origin: Origin::UPLINK,
            from_client: Progress::FINISHED,
            ..Flow::default()
        };
        check(PROTOCOL_TCP, half, CLOSED_LINGER + 1, true, Fate::Active);
        check(PROTOCOL_TCP, half, HALF_CLOSED_IDLE + 1, true, Fate::Over);
    }

    #[test]
    fn udp_is_active_for_half_a_minute() {
        let flow = Flow {
            origin: Origin::UPLINK,
            ..Flow::default()
        };
        check(PROTOCOL_UDP, flow, UDP_ACTIVE, true, Fate::Active);
        check(PROTOCOL_UDP, flow, UDP_ACTIVE + 1, true, Fate::Kept);
        check(PROTOCOL_UDP, flow, UDP_IDLE + 1, true, Fate::Over);
    }

    #[test]
    fn a_connection_of_another_entry_node_is_open_for_its_replica_only() {
        let flow = Flow {
            origin: Origin::TUNNEL,
            ..Flow::default()
        };
        check(PROTOCOL_TCP, flow, 0, true, Fate::Delivered);
        check(PROTOCOL_UDP, flow, UDP_ACTIVE, true, Fate::Delivered);
        check(PROTOCOL_UDP, flow, UDP_ACTIVE + 1, true, Fate::Kept);
        let closed = Flow {
            from_backend: Progress::RESET,
            ..flow
        };
        check(PROTOCOL_TCP, closed, 0, true, Fate::Kept);
    }

    #[test]
    fn a_flow_whose_backend_is_gone_is_kept_to_be_refused() {
        let flow = Flow {
            origin: Origin::UPLINK,
            ..Flow::default()
        };
        check(PROTOCOL_TCP, flow, 0, false, Fate::Kept);
        check(PROTOCOL_TCP, flow, HALF_CLOSED_IDLE + 1, false, Fate::Over);
    }
}
