//! A frame in ordinary memory, for the packet logic to read: one that was never sent, or the captured head of
//! one that was.

use mesh_ebpf::{
    abi::{FlowKey, is_mapped_own},
    bytes::Plain,
    frame::ReadFrame,
    headers::{
        ETHERNET_LENGTH, ETHERTYPE_IPV4, IPV4_LENGTH, Ipv4, L4_OFFSET, PROTOCOL_TCP, TCP_LENGTH, UDP_LENGTH,
    },
};
use nix::net::if_::if_indextoname;

/// The first bytes of a frame, or all.
pub(super) struct StoredFrame {
    bytes: Vec<u8>,
    length: u32,
    interface: u32,
}

impl StoredFrame {
    /// The first bytes of a frame of this length.
    pub(super) fn captured(bytes: Vec<u8>, length: u32, interface: u32) -> Self {
        Self {
            bytes,
            length,
            interface,
        }
    }

    /// The bytes that there are.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// A packet of a tuple, without payload, for this node, as it arrives by an interface; TCP with these
    /// flags.
    pub(super) fn imagined(key: &FlowKey, tcp_flags: u8, interface: u32) -> Self {
        let is_tcp = key.protocol == u32::from(PROTOCOL_TCP);
        let l4_length = if is_tcp { TCP_LENGTH } else { UDP_LENGTH };
        let total_length = (IPV4_LENGTH + l4_length) as u16;
        let mut bytes = vec![0; ETHERNET_LENGTH + usize::from(total_length)];
        let mut put =
            |offset: usize, field: &[u8]| bytes[offset..offset + field.len()].copy_from_slice(field);
        put(12, &ETHERTYPE_IPV4.get().to_be_bytes());
        let ip = ETHERNET_LENGTH;
        put(ip, &[0x45]);
        put(ip + 2, &total_length.to_be_bytes());
        put(ip + 8, &[64, key.protocol as u8]);
        put(ip + 12, &key.source.get().to_be_bytes());
        put(ip + 16, &key.destination.get().to_be_bytes());
        put(L4_OFFSET, &key.source_port.get().to_be_bytes());
        put(L4_OFFSET + 2, &key.destination_port.get().to_be_bytes());
        if is_tcp {
            put(L4_OFFSET + 12, &[(TCP_LENGTH as u8 / 4) << 4, tcp_flags]);
        } else {
            put(L4_OFFSET + 4, &(UDP_LENGTH as u16).to_be_bytes());
        }
        let length = bytes.len() as u32;
        Self::captured(bytes, length, interface)
    }
}

impl ReadFrame for StoredFrame {
    fn length(&self) -> u32 {
        self.length
    }

    fn segments(&self) -> u32 {
        1
    }

    fn segment_size(&self) -> u32 {
        0
    }

    fn at<T: Plain>(&self, offset: usize) -> Option<&T> {
        const { assert!(align_of::<T>() == 1, "a header in a frame has no alignment") };
        let field = self.bytes.get(offset..offset.checked_add(size_of::<T>())?)?;
        // SAFETY: the slice has as many bytes as a `T`, which needs no alignment (asserted above) and is
        // `Plain`, so that any bytes are one, and is borrowed for as long as the frame.
        Some(unsafe { &*field.as_ptr().cast::<T>() })
    }

    /// Nothing else has such an address.
    fn was_ipv6(&self) -> bool {
        self.at::<Ipv4>(ETHERNET_LENGTH)
            .is_some_and(|ip| is_mapped_own(ip.destination))
    }

    fn interface(&self) -> u32 {
        self.interface
    }

    fn has_interface(&self, index: u32) -> bool {
        if_indextoname(index).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use mesh_ebpf::{
        bytes::Be16,
        headers::{PROTOCOL_UDP, TCP_SYN},
        parse::parse,
    };

    use super::*;

    #[test]
    fn the_packet_logic_reads_back_what_is_asked_about() {
        for (protocol, flags) in [(PROTOCOL_TCP, TCP_SYN), (PROTOCOL_UDP, 0)] {
            let key = FlowKey {
                source: std::net::Ipv4Addr::new(192, 0, 2, 7).into(),
                destination: std::net::Ipv4Addr::new(10, 0, 0, 1).into(),
                source_port: Be16::new(40_000),
                destination_port: Be16::new(9200),
                protocol: u32::from(protocol),
            };
            let packet = parse(&StoredFrame::imagined(&key, flags, 2), ETHERNET_LENGTH).unwrap();
            assert_eq!(packet.key, key);
            assert_eq!(packet.tcp_flags, flags);
            assert!(packet.may_open_flow());
        }
    }
}
