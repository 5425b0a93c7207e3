//! Probes between nodes: does a peer's data path answer? An agent sends them, the peer's program turns them
//! round, so that an answer proves the path that clients' packets take, whatever became of the peer's agent.

use crate::{
    abi::{Config, DropReason},
    bytes::Be16,
    checksum::Difference,
    frame::{ChecksumChange, Frame, Refused},
    headers::{ETHERNET_LENGTH, Ethernet, GeneveKind, L4_OFFSET, Outer, UDP_CHECKSUM_OFFSET},
    parse::Packet,
    verdict::Decision,
};

/// Decides about a probe from a peer.
///
/// A probe comes from the peer's Geneve port, so that its answer can reach nothing else there, and passes
/// whatever lets the tunnel's packets through.
#[inline(always)]
pub fn decide<'a>(config: &Config, outer: &Packet) -> Decision<'a> {
    if outer.key.source_port != config.geneve_port {
        return Decision::drop(DropReason::BadGeneve);
    }
    Decision::ANSWER_PROBE
}

/// Turns a probe into its answer, addressed to its sender. The ports are the same in both directions, and
/// what follows the headers stays as it is.
///
/// # Errors
/// [`Refused`] when the frame ends before.
#[inline(always)]
pub fn answer<F: Frame>(frame: &mut F) -> Result<(), Refused> {
    let ethernet = *frame.at::<Ethernet>(0).ok_or(Refused)?;
    let (ip, geneve) = {
        let outer = frame.at::<Outer>(ETHERNET_LENGTH).ok_or(Refused)?;
        (outer.ip, outer.geneve)
    };
    // Swapped addresses leave both checksums as they are; the kind changes UDP's.
    let word = |kind| Be16::from_raw(u16::from_ne_bytes([kind, geneve.option_length]));
    frame.change_checksum(ChecksumChange {
        offset: L4_OFFSET + UDP_CHECKSUM_OFFSET,
        udp: true,
        pseudo: Difference::NONE,
        body: Difference::NONE.replace16(word(geneve.option_kind), word(GeneveKind::ProbeAnswer as u8)),
    })?;
    let outer = frame.at_mut::<Outer>(ETHERNET_LENGTH).ok_or(Refused)?;
    outer.ip.source = ip.destination;
    outer.ip.destination = ip.source;
    outer.geneve.option_kind = GeneveKind::ProbeAnswer as u8;
    *frame.at_mut::<Ethernet>(0).ok_or(Refused)? = Ethernet {
        destination: ethernet.source,
        source: ethernet.destination,
        ethertype: ethernet.ethertype,
    };
    Ok(())
}

#[cfg(test)]
mod tests;
