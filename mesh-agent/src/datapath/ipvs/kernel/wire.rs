//! IPVS's messages as bytes: attributes in host byte order, addresses and ports in network byte order.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{DecodeError, DefaultNla, Emitable, NLA_F_NESTED, NlasIterator};

use super::{
    Command, Destination, DestinationState, SchedulerFlags, Settings, Statistics, VirtualService,
    whole_address,
};
use crate::model::Protocol;

/// `IPVS_GENL_VERSION`.
const VERSION: u8 = 1;
/// Bytes of generic netlink's header: command, version, two reserved.
const HEADER_BYTES: usize = 4;
/// Bytes of the address attribute, whatever the family.
const ADDRESS_BYTES: usize = 16;

// `enum` of IPVS_CMD_*.
const NEW_SERVICE: u8 = 1;
const SET_SERVICE: u8 = 2;
const DELETE_SERVICE: u8 = 3;
const GET_SERVICE: u8 = 4;
const NEW_DESTINATION: u8 = 5;
const SET_DESTINATION: u8 = 6;
const DELETE_DESTINATION: u8 = 7;
const GET_DESTINATION: u8 = 8;

// IPVS_CMD_ATTR_*.
const SERVICE: u16 = 1;
const DESTINATION: u16 = 2;

// IPVS_SVC_ATTR_*.
const SERVICE_FAMILY: u16 = 1;
const SERVICE_PROTOCOL: u16 = 2;
const SERVICE_ADDRESS: u16 = 3;
const SERVICE_PORT: u16 = 4;
const SERVICE_MARK: u16 = 5;
const SERVICE_SCHEDULER: u16 = 6;
const SERVICE_FLAGS: u16 = 7;
const SERVICE_TIMEOUT: u16 = 8;
const SERVICE_NETMASK: u16 = 9;

// IPVS_DEST_ATTR_*.
const DESTINATION_ADDRESS: u16 = 1;
const DESTINATION_PORT: u16 = 2;
const DESTINATION_METHOD: u16 = 3;
const DESTINATION_WEIGHT: u16 = 4;
const DESTINATION_UPPER_THRESHOLD: u16 = 5;
const DESTINATION_LOWER_THRESHOLD: u16 = 6;
const DESTINATION_ACTIVE: u16 = 7;
const DESTINATION_INACTIVE: u16 = 8;
const DESTINATION_STATISTICS: u16 = 10;
const DESTINATION_FAMILY: u16 = 11;
const DESTINATION_STATISTICS_64: u16 = 12;

// IPVS_STATS_ATTR_*.
const STATISTICS_CONNECTIONS: u16 = 1;
const STATISTICS_PACKETS_IN: u16 = 2;
const STATISTICS_PACKETS_OUT: u16 = 3;
const STATISTICS_BYTES_IN: u16 = 4;
const STATISTICS_BYTES_OUT: u16 = 5;

// IP_VS_SVC_F_*.
const FLAG_PERSISTENT: u32 = 0x01;
const FLAG_SCHEDULER_1: u32 = 0x08;
const FLAG_SCHEDULER_2: u32 = 0x10;
const FLAG_SCHEDULER_3: u32 = 0x20;

/// `IP_VS_CONN_F_MASQ`: NAT.
const MASQUERADE: u32 = 0;

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

/// `struct ip_vs_flags`: the flags, and which of them are meant.
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

fn full_destination(destination: &Destination, weight: u32) -> Vec<DefaultNla> {
    let mut attributes = destination_key(destination);
    attributes.extend([
        number(DESTINATION_METHOD, MASQUERADE),
        number(DESTINATION_WEIGHT, weight),
        number(DESTINATION_UPPER_THRESHOLD, 0),
        number(DESTINATION_LOWER_THRESHOLD, 0),
    ]);
    attributes
}

fn message(command: u8, attributes: &[DefaultNla]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_BYTES + attributes.buffer_len()];
    bytes[0] = command;
    bytes[1] = VERSION;
    attributes.emit(&mut bytes[HEADER_BYTES..]);
    bytes
}

fn nested(kind: u16, attributes: &[DefaultNla]) -> DefaultNla {
    let mut value = vec![0; attributes.buffer_len()];
    attributes.emit(&mut value);
    DefaultNla::new(kind | NLA_F_NESTED, value)
}

fn number(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_ne_bytes().to_vec())
}

fn family(address: &IpAddr) -> u16 {
    // Both are small positive numbers.
    match address {
        IpAddr::V4(_) => libc::AF_INET as u16,
        IpAddr::V6(_) => libc::AF_INET6 as u16,
    }
}

fn octets(address: &IpAddr) -> Vec<u8> {
    let mut octets = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    octets.resize(ADDRESS_BYTES, 0);
    octets
}

/// Attributes of one level, by kind; of a kind that comes twice, the last.
struct Attributes<'a>(Vec<(u16, &'a [u8])>);

impl<'a> Attributes<'a> {
    fn read(mut bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut attributes = Vec::new();
        // The iterator checks the lengths; the slices are taken here, as they must outlive it.
        while let Some(attribute) = NlasIterator::new(bytes).next() {
            let attribute = attribute?;
            let length = usize::from(attribute.length());
            let value = bytes.get(4..length).ok_or("an attribute beyond its message")?;
            attributes.push((attribute.kind(), value));
            bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(Self(attributes))
    }

    fn find(&self, kind: u16) -> Option<&'a [u8]> {
        self.0
            .iter()
            .rev()
            .find(|(found, _)| *found == kind)
            .map(|(_, value)| *value)
    }

    fn bytes<const N: usize>(&self, kind: u16) -> Result<[u8; N], DecodeError> {
        self.find(kind)
            .and_then(|value| value.first_chunk().copied())
            .ok_or_else(|| format!("attribute {kind} is missing or shorter than {N} bytes").into())
    }

    fn u16(&self, kind: u16) -> Result<u16, DecodeError> {
        self.bytes(kind).map(u16::from_ne_bytes)
    }

    fn u32(&self, kind: u16) -> Result<u32, DecodeError> {
        self.bytes(kind).map(u32::from_ne_bytes)
    }

    fn port(&self, kind: u16) -> Result<u16, DecodeError> {
        self.bytes(kind).map(u16::from_be_bytes)
    }

    fn nested(&self, kind: u16) -> Result<Self, DecodeError> {
        let value = self
            .find(kind)
            .ok_or_else(|| DecodeError::from(format!("attribute {kind} is missing")))?;
        Self::read(value)
    }

    fn address(&self, kind: u16, family: u16) -> Result<IpAddr, DecodeError> {
        let octets: [u8; ADDRESS_BYTES] = self.bytes(kind)?;
        match i32::from(family) {
            libc::AF_INET => {
                let [a, b, c, d, ..] = octets;
                Ok(Ipv4Addr::new(a, b, c, d).into())
            }
            libc::AF_INET6 => Ok(Ipv6Addr::from(octets).into()),
            other => Err(format!("address family {other}").into()),
        }
    }
}

/// What follows generic netlink's header.
fn body(payload: &[u8]) -> Result<Attributes<'_>, DecodeError> {
    Attributes::read(
        payload
            .get(HEADER_BYTES..)
            .ok_or("a message without its header")?,
    )
}

/// Reads a listed service; `None` for one that is not of a TCP or UDP port.
pub(super) fn read_service(payload: &[u8]) -> Result<Option<(VirtualService, Settings)>, DecodeError> {
    let service = body(payload)?.nested(SERVICE)?;
    if service.find(SERVICE_MARK).is_some() {
        return Ok(None);
    }
    let number = service.u16(SERVICE_PROTOCOL)?;
    let Some(protocol) = [Protocol::Tcp, Protocol::Udp]
        .into_iter()
        .find(|protocol| u16::from(protocol.number()) == number)
    else {
        return Ok(None);
    };
    let key = VirtualService {
        address: service.address(SERVICE_ADDRESS, service.u16(SERVICE_FAMILY)?)?,
        port: service.port(SERVICE_PORT)?,
        protocol,
    };
    let scheduler = service.find(SERVICE_SCHEDULER).unwrap_or_default();
    let flags = service.u32(SERVICE_FLAGS)?;
    let settings = Settings {
        scheduler: String::from_utf8_lossy(scheduler)
            .trim_end_matches('\0')
            .to_owned(),
        flags: SchedulerFlags {
            first: flags & FLAG_SCHEDULER_1 != 0,
            second: flags & FLAG_SCHEDULER_2 != 0,
            third: flags & FLAG_SCHEDULER_3 != 0,
        },
        persistence: match flags & FLAG_PERSISTENT {
            0 => None,
            _ => Some(service.u32(SERVICE_TIMEOUT)?),
        },
    };
    Ok(Some((key, settings)))
}

/// Reads a listed destination of a service; `None` for one of another address family (which only
/// tunnelling allows).
pub(super) fn read_destination(
    payload: &[u8],
    service: &VirtualService,
) -> Result<Option<(Destination, DestinationState)>, DecodeError> {
    let destination = body(payload)?.nested(DESTINATION)?;
    let service_family = family(&service.address);
    // Kernels before 3.18 do not say; then it is the service's.
    let family = destination.u16(DESTINATION_FAMILY).unwrap_or(service_family);
    if family != service_family {
        return Ok(None);
    }
    let key = Destination {
        address: destination.address(DESTINATION_ADDRESS, family)?,
        port: destination.port(DESTINATION_PORT)?,
    };
    let state = DestinationState {
        weight: destination.u32(DESTINATION_WEIGHT)?,
        active: destination.u32(DESTINATION_ACTIVE)?,
        inactive: destination.u32(DESTINATION_INACTIVE)?,
        statistics: statistics(&destination)?,
    };
    Ok(Some((key, state)))
}

/// Statistics of 64 bits; kernels before 4.1 have 32 bits for all but the bytes.
fn statistics(destination: &Attributes<'_>) -> Result<Statistics, DecodeError> {
    if destination.find(DESTINATION_STATISTICS_64).is_some() {
        let list = destination.nested(DESTINATION_STATISTICS_64)?;
        let wide = |kind| list.bytes(kind).map(u64::from_ne_bytes);
        return Ok(Statistics {
            connections: wide(STATISTICS_CONNECTIONS)?,
            packets_in: wide(STATISTICS_PACKETS_IN)?,
            packets_out: wide(STATISTICS_PACKETS_OUT)?,
            bytes_in: wide(STATISTICS_BYTES_IN)?,
            bytes_out: wide(STATISTICS_BYTES_OUT)?,
        });
    }
    let list = destination.nested(DESTINATION_STATISTICS)?;
    let narrow = |kind| list.u32(kind).map(u64::from);
    let wide = |kind| list.bytes(kind).map(u64::from_ne_bytes);
    Ok(Statistics {
        connections: narrow(STATISTICS_CONNECTIONS)?,
        packets_in: narrow(STATISTICS_PACKETS_IN)?,
        packets_out: narrow(STATISTICS_PACKETS_OUT)?,
        bytes_in: wide(STATISTICS_BYTES_IN)?,
        bytes_out: wide(STATISTICS_BYTES_OUT)?,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            any::<[u8; 4]>().prop_map(|octets| IpAddr::V4(octets.into())),
            any::<[u8; 16]>().prop_map(|octets| IpAddr::V6(octets.into())),
        ]
    }

    prop_compose! {
        fn service()(address in address(), port in any::<u16>(), tcp in any::<bool>()) -> VirtualService {
            let protocol = if tcp { Protocol::Tcp } else { Protocol::Udp };
            VirtualService { address, port, protocol }
        }
    }

    prop_compose! {
        fn settings()(
            scheduler in "[a-z]{1,15}",
            persistence in prop::option::of(1_u32..100_000),
            flags in any::<[bool; 3]>(),
        ) -> Settings {
            let [first, second, third] = flags;
            Settings { scheduler, persistence, flags: SchedulerFlags { first, second, third } }
        }
    }

    proptest! {
        #[test]
        fn a_service_is_read_as_it_was_written(service in service(), settings in settings()) {
            let bytes = command(&Command::NewService(service, settings.clone()));
            prop_assert_eq!(read_service(&bytes).unwrap(), Some((service, settings)));
        }

        #[test]
        fn nonsense_is_never_fatal(bytes in prop::collection::vec(any::<u8>(), 0..200), service in service()) {
            let _ = read_service(&bytes);
            let _ = read_destination(&bytes, &service);
        }
    }

    #[test]
    fn a_destination_is_read_with_its_statistics() {
        for (address, other) in [("192.0.2.1", "192.0.2.7"), ("2001:db8::1", "2001:db8::7")] {
            let service = VirtualService {
                address: address.parse().unwrap(),
                port: 9200,
                protocol: Protocol::Tcp,
            };
            let destination = Destination {
                address: other.parse().unwrap(),
                port: 80,
            };
            let sums: Vec<DefaultNla> = (1..=5_u16)
                .map(|kind| DefaultNla::new(kind, (u64::from(kind) << 33).to_ne_bytes().to_vec()))
                .collect();
            let mut attributes = full_destination(&destination, 3);
            attributes.extend([
                number(DESTINATION_ACTIVE, 5),
                number(DESTINATION_INACTIVE, 6),
                nested(DESTINATION_STATISTICS_64, &sums),
            ]);
            let bytes = message(NEW_DESTINATION, &[nested(DESTINATION, &attributes)]);
            let (read, state) = read_destination(&bytes, &service).unwrap().unwrap();
            assert_eq!(read, destination);
            assert_eq!((state.weight, state.active, state.inactive), (3, 5, 6));
            assert_eq!(state.statistics.connections, 1 << 33);
            assert_eq!(state.statistics.bytes_out, 5 << 33);
        }
    }

    #[test]
    fn services_by_mark_and_of_other_protocols_are_left_out() {
        let marked = message(NEW_SERVICE, &[nested(SERVICE, &[number(SERVICE_MARK, 1)])]);
        assert_eq!(read_service(&marked).unwrap(), None);
        let sctp = DefaultNla::new(SERVICE_PROTOCOL, 132_u16.to_ne_bytes().to_vec());
        let sctp = message(NEW_SERVICE, &[nested(SERVICE, &[sctp])]);
        assert_eq!(read_service(&sctp).unwrap(), None);
    }
}
