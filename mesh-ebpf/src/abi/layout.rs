//! Since which version each map has had its present layout.

/// Each map, and the version of the maps that last changed its entries: their types, or what they mean.
///
/// An agent that finds the maps of another version goes on using those whose layout is its own. So a change
/// to an entry sets its map's number to the new [`super::VERSION`]. What was the same in version 4 has 4:
/// nothing older is taken over.
pub const LAYOUTS: [(&str, u32); 40] = [
    ("AFFINITIES", 9),
    ("ANSWERED", 7),
    ("BACKENDS", 4),
    ("BACKEND_COUNTERS", 4),
    ("BACKEND_INDEX", 4),
    ("BACKEND_PORTS", 7),
    ("BACKEND_SIGNALS", 9),
    ("BREAKERS", 4),
    ("CONFIG", 4),
    ("DATAGRAMS", 7),
    ("DIALLED", 4),
    ("DROPS", 8),
    ("EVENTS", 8),
    ("EXCEPTIONAL", 7),
    ("FLOOD", 8),
    ("FLOWS", 9),
    ("FRONTENDS", 4),
    ("HALF_OPEN", 9),
    ("HELD", 7),
    ("HOST_MACS", 9),
    ("IN_RING", 9),
    ("KEYED", 5),
    ("KEYS", 5),
    ("LOADS", 4),
    ("MARKS", 8),
    ("MASQUERADES", 5),
    ("NEXT_HOPS", 5),
    ("OPENINGS", 9),
    ("OWN_DATAGRAMS", 7),
    ("PAST_LIMIT", 8),
    ("PEER_INDEX", 4),
    ("PORT_FILTER", 4),
    ("RING", 4),
    ("ROTATION", 4),
    ("SCRATCH", 7),
    ("SERVICES", 4),
    ("SOURCE_OPENINGS", 8),
    ("SOURCE_RULES", 7),
    ("STAGED", 9),
    ("UNTRACKED", 9),
];
