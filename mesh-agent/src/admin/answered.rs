//! At which of the node's addresses each port is answered. Pure.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::model::{Desired, Frontend, ServiceKey};

/// Where a port is answered.
#[derive(Clone, Debug, Default)]
pub(super) struct Addresses {
    pub(super) ipv4: Vec<Ipv4Addr>,
    pub(super) ipv6: Vec<Ipv6Addr>,
}

/// The addresses at which services do not refuse everyone.
pub(super) fn answered(desired: &Desired) -> BTreeMap<ServiceKey, Addresses> {
    let is_closed = |frontend: &Frontend| {
        let service = desired.services.get(&frontend.service);
        service.is_some_and(|service| service.closed.contains(&frontend.address))
    };
    let mut answered = BTreeMap::<ServiceKey, Addresses>::new();
    for frontend in desired.frontends.iter().filter(|frontend| !is_closed(frontend)) {
        let addresses = answered.entry(frontend.service).or_default();
        match desired.actual(frontend.address) {
            IpAddr::V4(address) => addresses.ipv4.push(address),
            IpAddr::V6(address) => addresses.ipv6.push(address),
        }
    }
    answered
}
