//! The cluster that the tests' frames are from and for: addresses, two services, and the peer's packets.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};

use mesh_agent::model::{
    Backend, BackendKey, BackendState, Balance, Desired, Frontend, Location, Protocol, ServiceEntry,
    ServiceKey, desired::task_tag,
};

use crate::frames::{Macs, Tunnel};

/// This node's address.
pub const NODE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// An IPv6 address of this node's.
pub const OWN_IPV6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
/// What stands for it in the pipeline.
pub const OWN_MAPPED: Ipv4Addr = Ipv4Addr::new(252, 7, 8, 9);
/// The other node's.
pub const PEER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
/// Of a machine on the same wire that is no node.
pub const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 66);
/// The service address, which local processes are sent to.
pub const SERVICE_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 96, 1);
/// The container's address on Docker's bridge.
pub const CONTAINER: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 5);
/// A client outside.
pub const CLIENT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 10), 40_000);
/// A service by TCP.
pub const WEB: ServiceKey = ServiceKey {
    protocol: Protocol::Tcp,
    port: 9200,
};
/// A service by UDP.
pub const DNS: ServiceKey = ServiceKey {
    protocol: Protocol::Udp,
    port: 5300,
};

/// Of this node's uplink.
pub const UPLINK_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Of the peer's uplink.
pub const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// Of the router to everything else.
pub const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];
/// Of mesh0.
pub const MESH0_MAC: [u8; 6] = [2, 0, 0, 0, 1, 0];
/// Of the container's interface.
pub const CONTAINER_MAC: [u8; 6] = [2, 0x42, 172, 18, 0, 5];
/// Of Docker's bridge, the container's gateway.
pub const GATEWAY_MAC: [u8; 6] = [2, 0x42, 172, 18, 0, 1];

/// The Geneve network identifier of the cluster.
pub(crate) const VNI: u32 = 0x00ab_cdef;

/// Adds a service, answered at the node's address and the service address, whose replicas' ingress
/// addresses end in the numbers given.
pub fn serve(state: &mut Desired, key: ServiceKey, backends: &[(u8, Location)]) {
    let mut entry = ServiceEntry {
        id: format!("service-{}", key.port),
        name: "web".to_owned(),
        balance: Balance::default(),
        active: Vec::new(),
        limits: Default::default(),
        policy: None,
        closed: Default::default(),
        idle: Default::default(),
    };
    for (number, location) in backends {
        let name = backend_key(key, *number);
        entry.active.push(name);
        state.backends.insert(
            name,
            Backend {
                task: task(*number),
                task_name: format!("web.{number}"),
                slot: Some(u64::from(*number)),
                node: "node".to_owned(),
                node_name: "node".to_owned(),
                target_port: target(key).port(),
                location: *location,
                state: BackendState::Active,
                weight: 1,
                share: 10,
            },
        );
    }
    state.services.insert(key, entry);
    for address in [NODE, SERVICE_ADDRESS] {
        state.frontends.insert(Frontend {
            address,
            service: key,
        });
    }
}

/// Serves a service at the node's IPv6 address, too.
pub fn serve_ipv6(state: &mut Desired, service: ServiceKey) {
    state.own_ipv6.insert(OWN_IPV6, OWN_MAPPED);
    let address = OWN_MAPPED;
    state.frontends.insert(Frontend { address, service });
}

/// The key of a replica.
#[must_use]
pub fn backend_key(service: ServiceKey, number: u8) -> BackendKey {
    BackendKey {
        service,
        address: ingress(number),
    }
}

/// The address at which clients dial a service.
#[must_use]
pub fn frontend(key: ServiceKey) -> SocketAddrV4 {
    SocketAddrV4::new(NODE, key.port)
}

/// The address at which the container serves it.
#[must_use]
pub fn target(key: ServiceKey) -> SocketAddrV4 {
    SocketAddrV4::new(CONTAINER, if key == WEB { 80 } else { 53 })
}

/// From the router to the node.
#[must_use]
pub fn arriving() -> Macs {
    Macs {
        source: ROUTER_MAC,
        destination: UPLINK_MAC,
    }
}

/// Into the container.
#[must_use]
pub fn into_container() -> Macs {
    Macs {
        source: GATEWAY_MAC,
        destination: CONTAINER_MAC,
    }
}

/// Out of the container.
#[must_use]
pub fn out_of_container() -> Macs {
    Macs {
        source: CONTAINER_MAC,
        destination: GATEWAY_MAC,
    }
}

/// Out of the uplink, to the router or to the peer.
#[must_use]
pub fn leaving_to(mac: [u8; 6]) -> Macs {
    Macs {
        source: UPLINK_MAC,
        destination: mac,
    }
}

/// What this node sends to the peer about replica 5.
#[must_use]
pub fn to_peer(service: ServiceKey, kind: u8, source_port: u16) -> Tunnel {
    Tunnel {
        macs: leaving_to(PEER_MAC),
        from: NODE,
        to: PEER,
        source_port,
        kind,
        vni: VNI,
        backend: SocketAddrV4::new(ingress(5), target(service).port()),
        tag: task_tag(&task(5)),
        key: None,
    }
}

/// What the peer sends to this node about replica 5.
#[must_use]
pub fn from_peer(service: ServiceKey, kind: u8) -> Tunnel {
    Tunnel {
        macs: Macs {
            source: PEER_MAC,
            destination: UPLINK_MAC,
        },
        from: PEER,
        to: NODE,
        ..to_peer(service, kind, 0xc123)
    }
}

/// The same about another replica.
#[must_use]
pub fn from_peer_about(number: u8, service: ServiceKey, kind: u8) -> Tunnel {
    Tunnel {
        backend: SocketAddrV4::new(ingress(number), target(service).port()),
        tag: task_tag(&task(number)),
        ..from_peer(service, kind)
    }
}

/// The address of a replica on the ingress network, which names it in the cluster.
#[must_use]
pub fn ingress(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 255, 0, number)
}

fn task(number: u8) -> String {
    format!("task{number}")
}
