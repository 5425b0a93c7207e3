//! Clamps TCP's maximum segment size (RFC 9293, 3.7.1), so that every segment fits into the tunnel.

use crate::{
    bytes::{Be16, Plain},
    checksum::Difference,
    frame::{ChecksumChange, Frame, Refused},
    headers::{IPV4_LENGTH, L4_OFFSET, TCP_CHECKSUM_OFFSET, TCP_LENGTH, Tcp},
};

const OPTION_END: u8 = 0;
const OPTION_NOTHING: u8 = 1;
const OPTION_MSS: u8 = 2;
const OPTION_MSS_LENGTH: u8 = 4;
/// Options to look at; real SYNs have at most eight, and nearly always MSS first.
const MAX_OPTIONS: usize = 10;
/// The most bytes that the options of a TCP header can have together.
const MAX_OPTIONS_LENGTH: u8 = 40;

#[derive(Clone, Copy)]
#[repr(C, packed)]
struct MssOption {
    kind: u8,
    length: u8,
    value: Be16,
}

// SAFETY: packed, no padding, integers only.
unsafe impl Plain for MssOption {}

/// Lowers the MSS option of a SYN or SYN-ACK (not encapsulated), so that the packet of a segment is at
/// most `mtu` bytes. Leaves smaller values, and SYNs without the option.
///
/// # Errors
/// [`Refused`] when the checksum could not be written.
#[inline(always)]
pub fn clamp<F: Frame>(frame: &mut F, mtu: u16) -> Result<(), Refused> {
    let limit = mtu.saturating_sub((IPV4_LENGTH + TCP_LENGTH) as u16);
    let Some(tcp) = frame.at::<Tcp>(L4_OFFSET) else {
        return Ok(());
    };
    let end = L4_OFFSET + usize::from(tcp.data_offset >> 4) * 4;
    let mut offset = L4_OFFSET + TCP_LENGTH;
    let mut seen = 0;
    while seen < MAX_OPTIONS {
        if offset + size_of::<MssOption>() > end {
            return Ok(());
        }
        let Some(option) = frame.at::<MssOption>(offset) else {
            return Ok(());
        };
        let (kind, length, old) = (option.kind, option.length, option.value);
        match kind {
            OPTION_END => return Ok(()),
            OPTION_NOTHING => offset += 1,
            OPTION_MSS if length == OPTION_MSS_LENGTH => {
                if old.get() <= limit {
                    return Ok(());
                }
                return lower(frame, offset, old, Be16::new(limit));
            }
            // No option has this length, so the next one cannot be found.
            _ if !(2..=MAX_OPTIONS_LENGTH).contains(&length) => return Ok(()),
            _ => offset += usize::from(length & 0x3f),
        }
        seen += 1;
    }
    Ok(())
}

#[inline(always)]
fn lower<F: Frame>(frame: &mut F, offset: usize, old: Be16, new: Be16) -> Result<(), Refused> {
    let option = frame.at_mut::<MssOption>(offset).ok_or(Refused)?;
    option.value = new;
    // At an odd offset, the two bytes belong to different words of the sum, as if they were swapped.
    let (old, new) = if offset.is_multiple_of(2) {
        (old, new)
    } else {
        (
            Be16::from_raw(old.raw().swap_bytes()),
            Be16::from_raw(new.raw().swap_bytes()),
        )
    };
    frame.change_checksum(ChecksumChange {
        offset: L4_OFFSET + TCP_CHECKSUM_OFFSET,
        udp: false,
        pseudo: Difference::NONE,
        body: Difference::NONE.replace16(old, new),
    })
}

#[cfg(test)]
mod tests;
