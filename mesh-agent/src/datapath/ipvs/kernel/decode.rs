//! IPVS's listed services and destinations, read from bytes: attributes in host byte order, addresses and
//! ports in network byte order.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{DecodeError, NlasIterator};

use super::{
    Destination, DestinationState, SchedulerFlags, Settings, Statistics, VirtualService, numbers::*,
};
use crate::model::Protocol;

/// Attributes of one level, by kind; if a kind comes twice, the last one counts.
struct Attributes<'a>(Vec<(u16, &'a [u8])>);

impl<'a> Attributes<'a> {
    fn read(mut bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut attributes = Vec::new();
        // The iterator checks the lengths. The slices are taken here, as they must outlive it.
        while let Some(attribute) = NlasIterator::new(bytes).next() {
            let attribute = attribute?;
            let length = usize::from(attribute.length());
            let value = bytes
                .get(4..length)
                .ok_or("an attribute that exceeds its message")?;
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

/// The attributes after generic netlink's header.
fn body(payload: &[u8]) -> Result<Attributes<'_>, DecodeError> {
    Attributes::read(payload.get(HEADER_BYTES..).ok_or("a message without a header")?)
}

/// Reads a listed service; `None` if it is not one of a TCP or UDP port.
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

/// Reads a listed destination of a service; `None` if it has another address family (which only tunnelling
/// allows).
pub(super) fn read_destination(
    payload: &[u8],
    service: &VirtualService,
) -> Result<Option<(Destination, DestinationState)>, DecodeError> {
    let destination = body(payload)?.nested(DESTINATION)?;
    let service_family = family(&service.address);
    // Kernels before 3.18 leave it out; then it is the service's.
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

    use netlink_packet_core::DefaultNla;

    use super::{
        super::{
            Command,
            encode::{command, full_destination, message, nested, number},
        },
        *,
    };

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
        fn a_service_is_decoded_as_it_was_encoded(service in service(), settings in settings()) {
            let bytes = command(&Command::NewService(service, settings.clone()));
            prop_assert_eq!(read_service(&bytes).unwrap(), Some((service, settings)));
        }

        #[test]
        fn malformed_messages_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), service in service()) {
            let _ = read_service(&bytes);
            let _ = read_destination(&bytes, &service);
        }
    }

    #[test]
    fn a_destination_is_decoded_with_its_statistics() {
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
