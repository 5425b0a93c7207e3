//! A probe on the wire: a Geneve packet with the mesh's option and nothing encapsulated. In place of a
//! backend, the option carries a nonce that the peer's program sends back.

use mesh_ebpf::headers::{
    ETHERTYPE_IPV4, GENEVE_CLASS, GENEVE_FLAGS, GENEVE_OPTION_LENGTH, GENEVE_VERSION_AND_LENGTH, Geneve,
    GeneveKind,
};

/// Bytes of a probe's UDP payload.
pub(super) const LENGTH: usize = size_of::<Geneve>();
/// Offset of the option's type.
const KIND: usize = 10;
/// Offset of the nonce.
const NONCE: usize = 12;

/// A probe's payload.
pub(super) fn probe(vni: u32, nonce: u64) -> [u8; LENGTH] {
    packet(GeneveKind::Probe, vni, nonce)
}

/// The nonce of an answer; `None` for any other packet.
pub(super) fn answer(vni: u32, payload: &[u8]) -> Option<u64> {
    let nonce = payload.get(NONCE..LENGTH)?.try_into().ok()?;
    let nonce = u64::from_be_bytes(nonce);
    (payload[..LENGTH] == packet(GeneveKind::ProbeAnswer, vni, nonce)).then_some(nonce)
}

fn packet(kind: GeneveKind, vni: u32, nonce: u64) -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    bytes[0] = GENEVE_VERSION_AND_LENGTH;
    bytes[1] = GENEVE_FLAGS;
    bytes[2..4].copy_from_slice(&ETHERTYPE_IPV4.get().to_be_bytes());
    bytes[4..8].copy_from_slice(&(vni << 8).to_be_bytes());
    bytes[8..10].copy_from_slice(&GENEVE_CLASS.get().to_be_bytes());
    bytes[KIND] = kind as u8;
    bytes[11] = GENEVE_OPTION_LENGTH;
    bytes[NONCE..].copy_from_slice(&nonce.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_of_the_same_cluster_has_a_nonce() {
        let (vni, nonce) = (0x00ab_cdef, 0x0102_0304_0506_0708);
        let mut packet = probe(vni, nonce);
        assert_eq!(answer(vni, &packet), None, "a probe that no program has answered");
        packet[KIND] = GeneveKind::ProbeAnswer as u8;
        assert_eq!(answer(vni, &packet), Some(nonce));
        assert_eq!(answer(vni + 1, &packet), None, "another cluster's");
        assert_eq!(answer(vni, &packet[..LENGTH - 1]), None, "cut short");
    }
}
