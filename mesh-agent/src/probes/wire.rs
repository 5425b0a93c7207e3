//! A probe on the wire: a Geneve packet with the mesh's option and nothing encapsulated, or an ICMP echo
//! request. In place of a backend, the option carries a nonce that the peer's program sends back; an echo
//! request carries the same.

use mesh_ebpf::headers::{
    ETHERTYPE_IPV4, GENEVE_CLASS, GENEVE_FLAGS, GENEVE_OPTION_LENGTH, GENEVE_VERSION_AND_LENGTH, Geneve,
    GeneveKind, IPV4_LENGTH, KEY_LENGTH, KEYED_OPTION_LENGTH, KEYED_VERSION_AND_LENGTH, UDP_LENGTH,
};

use crate::model::TunnelKey;

/// Bytes of the longest probe's UDP payload.
pub(super) const LENGTH: usize = WITHOUT_KEY + KEY_LENGTH;
/// Bytes of a probe without a key.
const WITHOUT_KEY: usize = size_of::<Geneve>();
/// ICMP's echo request and reply: type, code, checksum, identifier, number.
const ECHO: [u8; ECHO_LENGTH] = [8, 0, 0, 0, 0, 0, 0, 0];
const ECHO_REPLY: u8 = 0;
const ECHO_LENGTH: usize = 8;
/// Offset of the option's type.
const KIND: usize = 10;
/// Offset of the nonce.
const NONCE: usize = 12;

/// A probe's payload, with the key that the peer's packets carry.
pub(super) fn probe(vni: u32, nonce: u64, key: Option<TunnelKey>) -> Vec<u8> {
    let mut payload = packet(GeneveKind::Probe, vni, nonce, key.is_some()).to_vec();
    payload.extend(key.into_iter().flat_map(TunnelKey::to_bytes));
    payload
}

/// The payload of a probe whose packet has so many bytes from its IP header on.
pub(super) fn padded(vni: u32, nonce: u64, key: Option<TunnelKey>, size: u16) -> Vec<u8> {
    let mut payload = probe(vni, nonce, key);
    payload.resize(usize::from(size) - IPV4_LENGTH - UDP_LENGTH, 0);
    payload
}

/// The nonce of an answer, padded or not; `None` for any other packet. The nonce alone proves who sent it.
pub(super) fn answer(vni: u32, payload: &[u8]) -> Option<u64> {
    let nonce = payload.get(NONCE..WITHOUT_KEY)?.try_into().ok()?;
    let nonce = u64::from_be_bytes(nonce);
    let has_key = payload.first() == Some(&KEYED_VERSION_AND_LENGTH);
    let expected = packet(GeneveKind::ProbeAnswer, vni, nonce, has_key);
    let is_whole = !has_key || payload.len() >= LENGTH;
    (is_whole && payload[..WITHOUT_KEY] == expected).then_some(nonce)
}

/// An echo request. The kernel fills in the checksum and the identifier.
pub(super) fn echo(nonce: u64) -> Vec<u8> {
    [ECHO, nonce.to_be_bytes()].concat()
}

/// The nonce of an echo reply; `None` for any other packet.
pub(super) fn echo_reply(packet: &[u8]) -> Option<u64> {
    let (header, nonce) = packet.split_first_chunk::<ECHO_LENGTH>()?;
    let nonce = u64::from_be_bytes(nonce.try_into().ok()?);
    (header[0] == ECHO_REPLY).then_some(nonce)
}

fn packet(kind: GeneveKind, vni: u32, nonce: u64, has_key: bool) -> [u8; WITHOUT_KEY] {
    let (version_and_length, option_length) = if has_key {
        (KEYED_VERSION_AND_LENGTH, KEYED_OPTION_LENGTH)
    } else {
        (GENEVE_VERSION_AND_LENGTH, GENEVE_OPTION_LENGTH)
    };
    let mut bytes = [0; WITHOUT_KEY];
    bytes[0] = version_and_length;
    bytes[1] = GENEVE_FLAGS;
    bytes[2..4].copy_from_slice(&ETHERTYPE_IPV4.get().to_be_bytes());
    bytes[4..8].copy_from_slice(&(vni << 8).to_be_bytes());
    bytes[8..10].copy_from_slice(&GENEVE_CLASS.get().to_be_bytes());
    bytes[KIND] = kind as u8;
    bytes[11] = option_length;
    bytes[NONCE..].copy_from_slice(&nonce.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_of_the_same_cluster_has_a_nonce() {
        let (vni, nonce) = (0x00ab_cdef, 0x0102_0304_0506_0708);
        for key in [None, Some(TunnelKey::derive(b"secret", "cluster"))] {
            let mut packet = probe(vni, nonce, key);
            assert_eq!(packet.len(), if key.is_some() { LENGTH } else { WITHOUT_KEY });
            assert_eq!(answer(vni, &packet), None, "a probe that no program has answered");
            packet[KIND] = GeneveKind::ProbeAnswer as u8;
            assert_eq!(answer(vni, &packet), Some(nonce));
            assert_eq!(answer(vni + 1, &packet), None, "another cluster's");
            assert_eq!(answer(vni, &packet[..packet.len() - 1]), None, "cut short");
        }
    }
}
