//! Lets the agent read and write the maps' types through aya.

use super::{
    Affinity, AffinityKey, Backend, BackendCounters, BackendKey, BackendSignals, Breaker, Config, Dialled,
    Flow, FlowKey, FlowRecord, FrontendKey, Ipv6Address, Keys, Load, MappedClient, Masquerade, NextHop,
    Openings, OwnKey, Reported, Service, SourceKey, SourceOpenings, SourceRule, SourceVerdicts,
};
use crate::bytes::Be32;

macro_rules! pod {
    ($($name:ty),* $(,)?) => { $(
        // SAFETY: `repr(C)` without padding (each type's size is asserted where it is defined), integers
        // only.
        unsafe impl aya::Pod for $name {}
    )* };
}
pod!(
    Affinity,
    AffinityKey,
    Backend,
    BackendCounters,
    BackendKey,
    BackendSignals,
    Breaker,
    Config,
    Dialled,
    Flow,
    FlowKey,
    FlowRecord,
    FrontendKey,
    Ipv6Address,
    Keys,
    Load,
    MappedClient,
    Masquerade,
    NextHop,
    Openings,
    OwnKey,
    Reported,
    Service,
    SourceKey,
    SourceOpenings,
    SourceRule,
    SourceVerdicts,
);
// SAFETY: transparent over u32.
unsafe impl aya::Pod for Be32 {}
