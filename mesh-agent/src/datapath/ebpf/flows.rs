//! Upkeep of the flow tables: counts open flows by backend, removes flows that are over, and makes room among
//! the open ones before they fill their table.
//!
//! A flow is judged by its forward entry, which knows both directions. Its other entry stays as long as that.

use std::{
    collections::{BTreeMap, HashSet},
    net::{IpAddr, Ipv6Addr},
};

use aya::maps::{HashMap, MapData};
use mesh_ebpf::{
    abi::{Event, Flow, FlowKey, FlowRecord, Origin, Progress, Role},
    bytes::Be32,
    headers::PROTOCOL_TCP,
};

use self::ended::{AllEnded, Ended};
use super::{
    super::DatapathError,
    failed, mapped,
    maps::Maps,
    tables::{Access, service_key},
};
use crate::model::{IdleLimits, ServiceKey};

pub(super) mod ended;

/// Tables of more entries than this are walked every [`LARGE_INTERVAL`] seconds, smaller ones each second.
const LARGE: u64 = 20_000;
const LARGE_INTERVAL: u32 = 10;
/// Seconds that a flow stays after it is closed, for packets that are still under way.
const CLOSED_LINGER: u32 = 10;
/// Seconds without a packet after which a TCP flow with one side closed is over.
const HALF_CLOSED_IDLE: u32 = 300;
/// Seconds without a packet after which a TCP flow that did not get to talk is over.
const HALF_OPEN_IDLE: u32 = 60;
/// Seconds without a packet after which an open TCP flow is over: those of a keep-alive (Linux:
/// `tcp_keepalive_time`), and its probes. A label may say otherwise.
const TCP_IDLE: u32 = 2 * 60 * 60 + 15 * 60;
/// Seconds without a packet after which a UDP flow is over. A label may say otherwise.
const UDP_IDLE: u32 = 120;
/// Seconds without a packet after which a UDP flow no longer counts as active.
const UDP_ACTIVE: u32 = 30;
/// A table of open flows that is fuller than this makes room: sixteenths of its size.
const FULL: u64 = 15;
/// How full it is afterwards.
const ROOM_MADE: u64 = 14;

/// The result of the last walk.
#[derive(Default)]
pub(super) struct FlowSweep {
    active: BTreeMap<u32, u64>,
    open: BTreeMap<u32, u64>,
    /// Entries of the table of open flows.
    entries: u64,
    half_open: HalfOpen,
    pushed_out: u64,
    ended: AllEnded,
    /// What the flows were judged by last.
    access: BTreeMap<ServiceKey, Access>,
    next: u32,
}

/// The table of half-open flows, which pushes out entries by itself.
#[derive(Default)]
struct HalfOpen {
    entries: u64,
    removed: u64,
    pushed_out: u64,
    /// What was inserted and has left by the programs' own doing, before the first walk.
    before: Option<u64>,
}

/// What the walk does with a flow.
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

/// What the entries of a flow have in common, and no entry of another flow has.
type Identity = (FlowKey, u32, u32);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Table {
    HalfOpen,
    Open,
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

    /// Entries of the table of open flows; a flow takes one or two.
    pub(super) fn entries(&self) -> u64 {
        self.entries
    }

    /// Entries of the table of half-open flows.
    pub(super) fn half_open_entries(&self) -> u64 {
        self.half_open.entries
    }

    /// Open flows that were removed to make room.
    pub(super) fn pushed_out(&self) -> u64 {
        self.pushed_out
    }

    /// Entries of half-open flows that newer ones have pushed out.
    pub(super) fn half_open_pushed_out(&self) -> u64 {
        self.half_open.pushed_out
    }

    /// The flows that the last walk has ended.
    pub(super) fn take_ended(&mut self) -> AllEnded {
        std::mem::take(&mut self.ended)
    }

    /// Walks the tables if it is time to; returns whether it was. `generations` has each backend's current
    /// one, `idle` the limits of services that do not have the default ones, `capacity` is the size of the
    /// table of open flows.
    pub(super) fn run(
        &mut self,
        maps: &mut Maps,
        now: u32,
        generations: &BTreeMap<u32, u32>,
        access: BTreeMap<ServiceKey, Access>,
        idle: &BTreeMap<ServiceKey, IdleLimits>,
        capacity: u32,
    ) -> Result<bool, DatapathError> {
        // New flows are judged as they open, so the open ones only when rules have changed.
        let judges = access != self.access;
        if now < self.next && !judges {
            return Ok(false);
        }
        let entered = maps.events(Event::FlowInserted)?;
        let left = maps.events(Event::FlowOpened)?;
        let mut walk = Walk {
            now,
            generations,
            access: judges.then_some(&access),
            ipv6_clients: if judges {
                mapped::ipv6_clients(maps)?
            } else {
                BTreeMap::new()
            },
            idle,
            active: BTreeMap::new(),
            open: BTreeMap::new(),
            alive: HashSet::new(),
            over: Vec::new(),
            others: Vec::new(),
            denied: Vec::new(),
            ended: AllEnded::default(),
        };
        // In the direction that entries take, so that none is missed on its way.
        let half_open = walk.table(&maps.half_open, Table::HalfOpen)?;
        let entries = walk.table(&maps.flows, Table::Open)?;
        let (removed_half_open, removed) = walk.clean_up(maps);
        self.active = walk.active;
        self.open = walk.open;
        self.ended = walk.ended;
        self.access = access;
        self.half_open
            .count(entered.saturating_sub(left), half_open, removed_half_open);
        self.entries = entries - removed;
        if self.entries > u64::from(capacity) * FULL / 16 {
            let flows = make_room(
                &mut maps.flows,
                self.entries - u64::from(capacity) * ROOM_MADE / 16,
                &mut self.ended,
            )
            .map_err(|error| failed("make room in the flow table", error))?;
            self.pushed_out += flows;
        }
        let all = self.entries + self.half_open.entries;
        self.next = now + if all > LARGE { LARGE_INTERVAL } else { 1 };
        Ok(true)
    }
}

impl HalfOpen {
    /// `entered`: what was inserted and has not gone on to the other table.
    fn count(&mut self, entered: u64, entries: u64, removed: u64) {
        self.removed += removed;
        self.entries = entries - removed;
        // What the first walk finds counts as inserted before it.
        let accounted = self.removed + self.entries;
        let before = *self.before.get_or_insert(entered.saturating_sub(accounted));
        self.pushed_out = self.pushed_out.max(entered.saturating_sub(before + accounted));
    }
}

/// A walk over both tables.
struct Walk<'a> {
    now: u32,
    generations: &'a BTreeMap<u32, u32>,
    /// The rules to judge open flows by; none if they have not changed.
    access: Option<&'a BTreeMap<ServiceKey, Access>>,
    /// The IPv6 clients, for that, by what stands for them.
    ipv6_clients: BTreeMap<Be32, Ipv6Addr>,
    /// For how long the flows of some services may be idle.
    idle: &'a BTreeMap<ServiceKey, IdleLimits>,
    active: BTreeMap<u32, u64>,
    open: BTreeMap<u32, u64>,
    /// The flows that stay.
    alive: HashSet<Identity>,
    /// Forward entries of flows that do not.
    over: Vec<(Table, FlowKey, Flow)>,
    /// Other entries that have been idle for long enough to be removed with their flow.
    others: Vec<(Table, FlowKey, Flow)>,
    /// Forward entries of clients that may no longer come in.
    denied: Vec<(Table, FlowKey, Flow)>,
    ended: AllEnded,
}

impl Walk<'_> {
    /// Reads a table; returns how many entries it has.
    fn table(
        &mut self,
        map: &HashMap<MapData, FlowKey, FlowRecord>,
        table: Table,
    ) -> Result<u64, DatapathError> {
        let mut entries = 0;
        super::batch::for_each(map, |key: &FlowKey, record: &FlowRecord| {
            entries += 1;
            self.entry(table, key, &record.flow);
        })
        .map_err(|error| failed("walk the flow table", error))?;
        Ok(entries)
    }

    fn entry(&mut self, table: Table, key: &FlowKey, flow: &Flow) {
        if flow.role != Role::FORWARD {
            // Its own packets are the flow's: it is not seen later than that.
            if self.now.saturating_sub(flow.seen) > CLOSED_LINGER {
                self.others.push((table, *key, *flow));
            }
            return;
        }
        if self
            .access
            .is_some_and(|access| is_denied(access, &self.ipv6_clients, key, flow))
        {
            self.denied.push((table, *key, *flow));
            return;
        }
        let current = is_current(self.generations, flow);
        match fate(key, flow, self.now, current, self.limits(key, flow)) {
            Fate::Active => {
                *self.active.entry(flow.backend).or_default() += 1;
                *self.open.entry(flow.backend).or_default() += 1;
            }
            Fate::Delivered => *self.open.entry(flow.backend).or_default() += 1,
            Fate::Kept => {}
            Fate::Over => {
                self.over.push((table, *key, *flow));
                return;
            }
        }
        self.alive.insert(identity(key, flow));
    }

    /// For how long a flow may be idle.
    fn limits(&self, key: &FlowKey, flow: &Flow) -> IdleLimits {
        if self.idle.is_empty() {
            return IdleLimits::default();
        }
        service_key(key.protocol as u16, flow.frontend.port)
            .and_then(|service| self.idle.get(&service).copied())
            .unwrap_or_default()
    }

    /// Removes what is over; returns how many entries of each table.
    fn clean_up(&mut self, maps: &mut Maps) -> (u64, u64) {
        let (mut half_open, mut open) = (0, 0);
        let others = std::mem::take(&mut self.others);
        let orphans = others
            .into_iter()
            .filter(|(_, key, flow)| !self.alive.contains(&identity(key, flow)));
        for (table, key, flow) in self.over.drain(..).chain(orphans) {
            let (map, removed) = match table {
                Table::HalfOpen => (&mut maps.half_open, &mut half_open),
                Table::Open => (&mut maps.flows, &mut open),
            };
            // If it was opened again since it was read, it is not over; if it is gone, that is as good.
            let unchanged = map.get(&key, 0).is_ok_and(|now| now.flow == flow);
            if unchanged && map.remove(&key).is_ok() {
                *removed += 1;
                let is_current = is_current(self.generations, &flow);
                self.ended.note(Ended::over(&key, &flow, is_current));
            }
        }
        for (table, key, flow) in self.denied.drain(..) {
            let (map, removed) = match table {
                Table::HalfOpen => (&mut maps.half_open, &mut half_open),
                Table::Open => (&mut maps.flows, &mut open),
            };
            if map.remove(&key).is_ok() {
                *removed += 1;
                self.ended.note(Ended::denied(&key, &flow));
            }
        }
        (half_open, open)
    }
}

fn is_current(generations: &BTreeMap<u32, u32>, flow: &Flow) -> bool {
    generations.get(&flow.backend) == Some(&flow.generation)
}

/// Whether the rules of a flow's service are against it by now. They hold where it entered, and not for
/// processes of the node (see `mesh_ebpf::source_rules`).
fn is_denied(
    access: &BTreeMap<ServiceKey, Access>,
    ipv6_clients: &BTreeMap<Be32, Ipv6Addr>,
    key: &FlowKey,
    flow: &Flow,
) -> bool {
    if flow.origin != Origin::UPLINK && flow.origin != Origin::CONTAINER {
        return false;
    }
    service_key(key.protocol as u16, flow.frontend.port)
        .and_then(|service| access.get(&service))
        .is_some_and(|access| {
            let from_container = flow.origin == Origin::CONTAINER;
            let policy = access.policy.as_ref();
            let client = match ipv6_clients.get(&flow.client.address) {
                Some(client) => IpAddr::V6(*client),
                None => IpAddr::V4(flow.client.address.into()),
            };
            access.closed.contains(&flow.frontend.address.into())
                || policy.is_some_and(|policy| !policy.keeps(from_container, client))
        })
}

/// Removes the flows that will be missed least, of at least so many entries; returns how many.
fn make_room(
    map: &mut HashMap<MapData, FlowKey, FlowRecord>,
    entries: u64,
    all_ended: &mut AllEnded,
) -> Result<u64, Box<dyn std::error::Error + Send + Sync>> {
    let mut flows = Vec::new();
    super::batch::for_each(map, |key: &FlowKey, FlowRecord { flow, .. }: &FlowRecord| {
        if flow.role == Role::FORWARD {
            let is_open = !Progress::is_closing(flow.from_client, flow.from_backend);
            flows.push((is_open, flow.seen, *key, Ended::pushed_out(key, flow)));
        }
    })?;
    // A flow has one entry or two. What closes goes first, then what has been idle for longest.
    let last = (entries as usize).min(flows.len());
    if last < flows.len() {
        flows.select_nth_unstable_by_key(last, |(is_open, seen, key, _)| (*is_open, *seen, *key));
    }
    let mut removed = 0;
    for (_, _, key, ended) in &flows[..last] {
        if map.remove(key).is_ok() {
            removed += 1;
            all_ended.note(*ended);
        }
    }
    // Their other entries are found without them by the next walk.
    Ok(removed)
}

/// A flow's identity, from any of its entries.
fn identity(key: &FlowKey, flow: &Flow) -> Identity {
    let forward = FlowKey::between(flow.client, flow.frontend, key.protocol);
    (forward, flow.backend, flow.generation)
}

/// What happens to a flow, by its forward entry.
fn fate(key: &FlowKey, flow: &Flow, now: u32, backend_is_current: bool, limits: IdleLimits) -> Fate {
    let idle = now.saturating_sub(flow.seen);
    let open = if flow.origin.is_tunnel() {
        Fate::Delivered
    } else {
        Fate::Active
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
            idle if idle > limits.udp.unwrap_or(UDP_IDLE) => Fate::Over,
            idle if idle <= UDP_ACTIVE => open,
            _ => Fate::Kept,
        };
    }
    let closed = Progress::is_closed(flow.from_client, flow.from_backend);
    let half_closed = Progress::is_closing(flow.from_client, flow.from_backend);
    match idle {
        idle if closed && idle > CLOSED_LINGER => Fate::Over,
        idle if half_closed && idle > HALF_CLOSED_IDLE => Fate::Over,
        idle if !flow.opening.is_open() && idle > HALF_OPEN_IDLE => Fate::Over,
        idle if flow.opening.is_open() && idle > limits.tcp.unwrap_or(TCP_IDLE) => Fate::Over,
        _ if !closed && flow.opening.is_open() => open,
        _ => Fate::Kept,
    }
}

#[cfg(test)]
mod tests;
