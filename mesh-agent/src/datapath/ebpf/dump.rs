//! Reads the maps back for a dump, from the kernel alone: nothing of what the agent remembers.

use std::net::Ipv4Addr;

use aya::maps::MapError;
use mesh_ebpf::{
    abi::{self, BACKEND_LOCAL, Choice, Config, Endpoint, Flow, FlowKey, Origin, Role},
    headers::KEYED_OUTER_LENGTH,
};

use super::{
    super::{
        DatapathError,
        dump::{
            Dump, DumpedBackend, DumpedFlow, DumpedFrontend, DumpedMasquerade, DumpedPeer, DumpedPolicy,
            DumpedService, DumpedSettings,
        },
    },
    failed,
    mapped::{self, socket},
    maps::Maps,
    tables::{CLOSED, masquerade, policies, service_key},
};
use crate::model::{Container, Location, MacAddress, NextHop, NodeDatapath};

/// The maps' content, with at most `flows` entries of the flow table.
pub(super) fn read(maps: &Maps, flows: usize) -> Result<Dump, DatapathError> {
    let config = maps.config()?;
    Ok(Dump {
        datapath: NodeDatapath::Ebpf,
        settings: Some(DumpedSettings {
            node_address: config.node_address.into(),
            vni: config.vni.get() >> 8,
            direct_return: config.direct_return != 0,
            mesh0: config.mesh0,
        }),
        services: services(maps)?,
        backends: backends(maps)?,
        own_ipv6: mapped::own(maps)?,
        frontends: frontends(maps)?,
        peers: peers(maps)?,
        masquerades: masquerades(maps)?,
        policies: read_policies(maps)?,
        virtual_services: Vec::new(),
        flows: read_flows(maps, &config, flows)?,
    })
}

fn reading(map: &'static str) -> impl Fn(MapError) -> DatapathError {
    move |error| failed(format!("read {map}"), error)
}

fn services(maps: &Maps) -> Result<Vec<DumpedService>, DatapathError> {
    let mut services = Vec::new();
    for entry in maps.services.iter() {
        let (_, service) = entry.map_err(reading("SERVICES"))?;
        let Some(key) = service_key(service.protocol, service.port).filter(|key| *key != CLOSED) else {
            continue;
        };
        let ring = maps.read_ring(&service)?;
        let addresses = |slots: Vec<u32>| -> Result<Vec<Ipv4Addr>, DatapathError> {
            let slots = slots.into_iter();
            let addresses = slots.map(|index| Ok(backend(maps, index)?.key.address.into()));
            addresses.collect()
        };
        services.push(DumpedService {
            service: key,
            choice: choice_name(service.choice).to_owned(),
            ring: addresses(ring.entries)?,
            others: addresses(ring.others)?,
        });
    }
    services.sort_by_key(|service| service.service);
    Ok(services)
}

/// The name of a way of choosing.
pub(in crate::datapath) fn choice_name(choice: Choice) -> &'static str {
    match choice.within_ring() {
        Choice::HASH_ENDPOINT => "hash-endpoint",
        Choice::HASH_ADDRESS => "hash-address",
        Choice::LEAST => "least",
        Choice::RANDOM => "random",
        _ => "rotate",
    }
}

fn backend(maps: &Maps, index: u32) -> Result<abi::Backend, DatapathError> {
    maps.backends.get(&index, 0).map_err(reading("BACKENDS"))
}

fn backends(maps: &Maps) -> Result<Vec<DumpedBackend>, DatapathError> {
    let mut backends = Vec::new();
    for entry in maps.backend_index.iter() {
        let (key, index) = entry.map_err(reading("BACKEND_INDEX"))?;
        let Some(service) = service_key(key.protocol, key.port) else {
            continue;
        };
        let value = backend(maps, index)?;
        let location = if value.location == BACKEND_LOCAL {
            Location::Local(Container {
                ingress_address: key.address.into(),
                address: value.address.into(),
                mac: MacAddress(value.mac),
                host_interface: value.interface,
                gateway_mac: MacAddress(value.gateway_mac),
            })
        } else {
            let next_hop = maps.next_hops.get(&value.peer, 0).map_err(reading("NEXT_HOPS"))?;
            Location::Remote(next_hop.address.into())
        };
        backends.push(DumpedBackend {
            service,
            address: key.address.into(),
            target_port: value.target_port.get(),
            tag: value.tag.get(),
            location,
        });
    }
    backends.sort_by_key(|backend| (backend.service, backend.address));
    Ok(backends)
}

fn frontends(maps: &Maps) -> Result<Vec<DumpedFrontend>, DatapathError> {
    let mut frontends = Vec::new();
    let closed = index_of_closed(maps)?;
    for entry in maps.frontends.iter() {
        let (key, index) = entry.map_err(reading("FRONTENDS"))?;
        if let Some(service) = service_key(key.protocol, key.port) {
            frontends.push(DumpedFrontend {
                service,
                address: key.address.into(),
                closed: Some(index) == closed,
            });
        }
    }
    frontends.sort_unstable();
    Ok(frontends)
}

/// The service that closed frontends lead to.
fn index_of_closed(maps: &Maps) -> Result<Option<u32>, DatapathError> {
    for entry in maps.services.iter() {
        let (index, service) = entry.map_err(reading("SERVICES"))?;
        if service_key(service.protocol, service.port) == Some(CLOSED) {
            return Ok(Some(index));
        }
    }
    Ok(None)
}

fn masquerades(maps: &Maps) -> Result<Vec<DumpedMasquerade>, DatapathError> {
    let mut masquerades = Vec::new();
    for entry in maps.masquerades.iter() {
        let (key, source) = entry.map_err(reading("MASQUERADES"))?;
        masquerades.push(DumpedMasquerade {
            key: masquerade(&key),
            source: source.into(),
        });
    }
    masquerades.sort_unstable();
    Ok(masquerades)
}

fn read_policies(maps: &Maps) -> Result<Vec<DumpedPolicy>, DatapathError> {
    let policies = policies(maps)?;
    let mut dumped = Vec::new();
    for entry in maps.services.iter() {
        let (_, service) = entry.map_err(reading("SERVICES"))?;
        let key = service_key(service.protocol, service.port).filter(|key| *key != CLOSED);
        if let (Some(service), Some(policy)) = (key, policies.get(&service.policy.id())) {
            let rules = policy.to_string();
            dumped.push(DumpedPolicy { service, rules });
        }
    }
    dumped.sort_unstable();
    Ok(dumped)
}

fn peers(maps: &Maps) -> Result<Vec<DumpedPeer>, DatapathError> {
    let mut peers = Vec::new();
    for entry in maps.peer_index.iter() {
        let (address, index) = entry.map_err(reading("PEER_INDEX"))?;
        let value = maps.next_hops.get(&index, 0).map_err(reading("NEXT_HOPS"))?;
        peers.push(DumpedPeer {
            address: address.into(),
            next_hop: (value.interface != 0).then_some(NextHop {
                interface: value.interface,
                source_mac: MacAddress(value.source_mac),
                destination_mac: MacAddress(value.destination_mac),
                mtu: (value.inner_mtu != 0).then(|| u32::from(value.inner_mtu) + KEYED_OUTER_LENGTH as u32),
            }),
        });
    }
    peers.sort_by_key(|peer| peer.address);
    Ok(peers)
}

fn read_flows(maps: &Maps, config: &Config, limit: usize) -> Result<Vec<DumpedFlow>, DatapathError> {
    let mut flows = Vec::new();
    for entry in maps.flows.iter().chain(maps.half_open.iter()).take(limit) {
        let (key, record) = entry.map_err(reading("FLOWS"))?;
        flows.push(dumped_flow(maps, config, &key, &record.flow)?);
    }
    flows.sort_by_key(|flow| (flow.protocol, flow.source, flow.destination));
    Ok(flows)
}

fn dumped_flow(
    maps: &Maps,
    config: &Config,
    key: &FlowKey,
    flow: &Flow,
) -> Result<DumpedFlow, DatapathError> {
    let backend = backend(maps, flow.backend)?;
    let current = backend.generation == flow.generation;
    Ok(DumpedFlow {
        protocol: key.protocol,
        source: socket(Endpoint::new(key.source, key.source_port)),
        destination: socket(Endpoint::new(key.destination, key.destination_port)),
        role: role_name(flow.role).to_owned(),
        origin: origin_name(flow.origin).to_owned(),
        backend: current.then(|| Ipv4Addr::from(backend.key.address)),
        idle_seconds: config.now.saturating_sub(flow.seen),
    })
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::REPLY => "reply",
        Role::ALIAS => "alias",
        _ => "forward",
    }
}

fn origin_name(origin: Origin) -> &'static str {
    match origin {
        Origin::MESH0 => "mesh0",
        Origin::CONTAINER => "container",
        Origin::TUNNEL => "tunnel",
        Origin::TUNNEL_DIRECT => "tunnel-direct",
        _ => "uplink",
    }
}
