//! Keys of the model and of the maps, translated both ways. Pure.

use mesh_ebpf::{
    abi::{self, FrontendKey},
    bytes::Be16,
};

use crate::model::{BackendKey, Frontend, Protocol, ServiceKey};

pub(super) fn abi_key(key: BackendKey) -> abi::BackendKey {
    abi::BackendKey {
        address: key.address.into(),
        port: Be16::new(key.service.port),
        protocol: u16::from(key.service.protocol.number()),
    }
}

pub(super) fn abi_frontend(frontend: Frontend) -> FrontendKey {
    FrontendKey {
        address: frontend.address.into(),
        port: Be16::new(frontend.service.port),
        protocol: u16::from(frontend.service.protocol.number()),
    }
}

pub(in crate::datapath::ebpf) fn service_key(protocol: u16, port: Be16) -> Option<ServiceKey> {
    Some(ServiceKey {
        protocol: Protocol::from_number(u8::try_from(protocol).ok()?)?,
        port: port.get(),
    })
}
