//! IPVS's requests as bytes: attributes in host byte order, addresses and ports in network byte order.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{DefaultNla, Emitable, NLA_F_NESTED};

use super::{Command, Destination, SchedulerFlags, Settings, VirtualService, numbers::*};

pub(super) fn list_services() -> Vec<u8> {
    message(GET_SERVICE, &[])
}

pub(super) fn list_destinations(service: &VirtualService) -> Vec<u8> {
    message(GET_DESTINATION, &[nested(SERVICE, &key(service))])
}

pub(super) fn command(command: &Command) -> Vec<u8> {
    match command {
        Command::NewService(service, settings) => full_service(NEW_SERVICE, service, settings),
        Command::SetService(service, settings) => full_service(SET_SERVICE, service, settings),
        Command::RemoveService(service) => message(DELETE_SERVICE, &[nested(SERVICE, &key(service))]),
        Command::NewDestination(service, destination, weight) => {
            with_destination(NEW_DESTINATION, service, &full_destination(destination, *weight))
        }
        Command::SetDestination(service, destination, weight) => {
            with_destination(SET_DESTINATION, service, &full_destination(destination, *weight))
        }
        Command::RemoveDestination(service, destination) => {
            with_destination(DELETE_DESTINATION, service, &destination_key(destination))
        }
    }
}

fn full_service(command: u8, service: &VirtualService, settings: &Settings) -> Vec<u8> {
    let mut scheduler = settings.scheduler.clone().into_bytes();
    scheduler.push(0);
    let mut attributes = key(service);
    attributes.extend([
        DefaultNla::new(SERVICE_SCHEDULER, scheduler),
        flags(settings),
        number(SERVICE_TIMEOUT, settings.persistence.unwrap_or(0)),
        number(SERVICE_NETMASK, whole_address(&service.address)),
    ]);
    message(command, &[nested(SERVICE, &attributes)])
}

/// `struct ip_vs_flags`: the flags, and a mask of those that are set or cleared.
fn flags(settings: &Settings) -> DefaultNla {
    let SchedulerFlags { first, second, third } = settings.flags;
    let set = [
        (settings.persistence.is_some(), FLAG_PERSISTENT),
        (first, FLAG_SCHEDULER_1),
        (second, FLAG_SCHEDULER_2),
        (third, FLAG_SCHEDULER_3),
    ];
    let flags = set
        .into_iter()
        .filter(|(on, _)| *on)
        .fold(0, |flags, (_, flag)| flags | flag);
    let mut value = flags.to_ne_bytes().to_vec();
    value.extend(u32::MAX.to_ne_bytes());
    DefaultNla::new(SERVICE_FLAGS, value)
}

fn with_destination(command: u8, service: &VirtualService, destination: &[DefaultNla]) -> Vec<u8> {
    message(
        command,
        &[nested(SERVICE, &key(service)), nested(DESTINATION, destination)],
    )
}

fn key(service: &VirtualService) -> Vec<DefaultNla> {
    vec![
        DefaultNla::new(SERVICE_FAMILY, family(&service.address).to_ne_bytes().to_vec()),
        DefaultNla::new(
            SERVICE_PROTOCOL,
            u16::from(service.protocol.number()).to_ne_bytes().to_vec(),
        ),
        DefaultNla::new(SERVICE_ADDRESS, octets(&service.address)),
        DefaultNla::new(SERVICE_PORT, service.port.to_be_bytes().to_vec()),
    ]
}

fn destination_key(destination: &Destination) -> Vec<DefaultNla> {
    vec![
        DefaultNla::new(
            DESTINATION_FAMILY,
            family(&destination.address).to_ne_bytes().to_vec(),
        ),
        DefaultNla::new(DESTINATION_ADDRESS, octets(&destination.address)),
        DefaultNla::new(DESTINATION_PORT, destination.port.to_be_bytes().to_vec()),
    ]
}

pub(super) fn full_destination(destination: &Destination, weight: u32) -> Vec<DefaultNla> {
    let mut attributes = destination_key(destination);
    attributes.extend([
        number(DESTINATION_METHOD, MASQUERADE),
        number(DESTINATION_WEIGHT, weight),
        number(DESTINATION_UPPER_THRESHOLD, 0),
        number(DESTINATION_LOWER_THRESHOLD, 0),
    ]);
    attributes
}

pub(super) fn message(command: u8, attributes: &[DefaultNla]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_BYTES + attributes.buffer_len()];
    bytes[0] = command;
    bytes[1] = VERSION;
    attributes.emit(&mut bytes[HEADER_BYTES..]);
    bytes
}

pub(super) fn nested(kind: u16, attributes: &[DefaultNla]) -> DefaultNla {
    let mut value = vec![0; attributes.buffer_len()];
    attributes.emit(&mut value);
    DefaultNla::new(kind | NLA_F_NESTED, value)
}

pub(super) fn number(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_ne_bytes().to_vec())
}

fn octets(address: &IpAddr) -> Vec<u8> {
    let mut octets = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    octets.resize(ADDRESS_BYTES, 0);
    octets
}

/// The longest prefix of an address family: no two clients share their persistence.
fn whole_address(address: &IpAddr) -> u32 {
    match address {
        IpAddr::V4(_) => u32::from_ne_bytes(Ipv4Addr::BROADCAST.octets()),
        IpAddr::V6(_) => Ipv6Addr::BITS,
    }
}
