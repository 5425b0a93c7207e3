//! The bytes of uploads and downloads: known to both sides and different at every offset, so that lost,
//! repeated or reordered segments are noticed. Depends on nothing.

/// Fills `buffer` with the pattern's bytes from `offset` on.
pub fn fill(buffer: &mut [u8], offset: u64) {
    let mut position = offset;
    let mut rest = buffer;
    while !rest.is_empty() {
        let block = mix(position / 8).to_le_bytes();
        let from = (position % 8) as usize;
        let count = (8 - from).min(rest.len());
        let (head, tail) = rest.split_at_mut(count);
        head.copy_from_slice(&block[from..from + count]);
        rest = tail;
        position += count as u64;
    }
}

/// The first offset at which `bytes`, which begin at `offset`, differ from the pattern.
#[must_use]
pub fn first_difference(bytes: &[u8], offset: u64) -> Option<u64> {
    let mut expected = vec![0; bytes.len()];
    fill(&mut expected, offset);
    bytes
        .iter()
        .zip(&expected)
        .position(|(is, should)| is != should)
        .map(|index| offset + index as u64)
}

/// The finalizer of splitmix64: neighbouring inputs give unrelated outputs.
fn mix(index: u64) -> u64 {
    let mut block = index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    block = (block ^ (block >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    block = (block ^ (block >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    block ^ (block >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_join_to_the_whole() {
        let mut whole = [0; 100];
        fill(&mut whole, 3);
        let mut pieces = [0; 100];
        for (index, piece) in pieces.chunks_mut(7).enumerate() {
            fill(piece, 3 + 7 * index as u64);
        }
        assert_eq!(whole, pieces);
    }

    #[test]
    fn one_wrong_byte_is_found() {
        let mut bytes = [0; 100];
        fill(&mut bytes, 1000);
        assert_eq!(first_difference(&bytes, 1000), None);
        bytes[42] ^= 1;
        assert_eq!(first_difference(&bytes, 1000), Some(1042));
    }
}
