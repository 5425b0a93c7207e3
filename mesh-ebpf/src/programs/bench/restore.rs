//! Restores a packet, with the next flow's client.

use aya_ebpf::{
    macros::map,
    maps::{Array, PerCpuArray},
};
use mesh_ebpf::{
    bytes::Be16,
    frame::Frame,
    headers::{ETHERNET_LENGTH, IPV4_LENGTH, IPV6_L4_OFFSET, OUTER_LENGTH},
};

/// Bytes copied at once, few enough to be copied inline.
const PIECE: usize = 16;
/// Pieces to restore: all headers of an encapsulated packet, without TCP options.
const PIECES: usize = 7;
/// Offset of the client's address in a packet from it, and of its port 8 bytes later.
pub(crate) const PLAIN: usize = ETHERNET_LENGTH + 12;
/// Offset of the last four bytes of the client's address in an IPv6 packet from it, and of its port 20 bytes
/// later.
pub(crate) const IPV6: usize = ETHERNET_LENGTH + 20;
/// Offset of the client's address in an encapsulated answer to it. The port is 6 bytes later.
pub(crate) const INNER: usize = ETHERNET_LENGTH + OUTER_LENGTH + 16;

/// The packet's first bytes.
#[map]
static BENCH_FRAME: Array<[[u8; PIECE]; PIECES]> = Array::with_max_entries(1, 0);
/// Its whole length, and the mask that makes a flow's number of a counter.
#[map]
static BENCH_SETTINGS: Array<[u32; 2]> = Array::with_max_entries(1, 0);
/// Counts packets.
#[map]
static BENCH_NEXT: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);

/// Restores the packet's size and headers, with the next flow's client.
#[inline(always)]
pub(crate) fn restore<const CLIENT: usize, F: Frame>(frame: &mut F) -> Option<()> {
    let [length, mask] = *BENCH_SETTINGS.get(0)?;
    let now = frame.length();
    if now > length {
        frame.remove_outer(OUTER_LENGTH).ok()?;
    } else if now < length {
        frame.insert_outer(OUTER_LENGTH).ok()?;
    }
    let headers = BENCH_FRAME.get(0)?;
    let mut piece = 0;
    while piece < PIECES {
        *frame.at_mut::<[u8; PIECE]>(piece * PIECE)? = headers[piece];
        piece += 1;
    }
    let next = BENCH_NEXT.get_ptr_mut(0)?;
    // SAFETY: this CPU's own value, checked.
    let count = unsafe {
        let count = *next;
        *next = count.wrapping_add(1);
        count
    };
    // An odd factor yields each number once in 2^n, and neighbours far apart.
    let flow = count.wrapping_mul(0x9e37_79b1) & mask;
    let port = match CLIENT {
        PLAIN => ETHERNET_LENGTH + IPV4_LENGTH,
        IPV6 => IPV6_L4_OFFSET,
        _ => ETHERNET_LENGTH + OUTER_LENGTH + IPV4_LENGTH + 2,
    };
    *frame.at_mut::<Be16>(CLIENT + 2)? = Be16::new(flow as u16);
    *frame.at_mut::<Be16>(port)? = Be16::new(1024 + ((flow >> 16) as u16 & 0x7fff));
    Some(())
}
