//! Weighted turns: how often, and in which order, each of several backends comes up in one round. Pure.

/// The same proportions in the smallest whole numbers.
pub(super) fn reduced(weights: &[u64]) -> Vec<u64> {
    let divisor = weights.iter().copied().fold(0, greatest_common_divisor).max(1);
    weights.iter().map(|weight| weight / divisor).collect()
}

/// One round, as positions in `shares`: each position as often as its share, evenly spread. Each turn goes to
/// the position that is furthest behind its share ("smooth" weighted round robin), the first among equals.
pub(super) fn turns(shares: &[u64]) -> Vec<usize> {
    let shares: Vec<i64> = shares
        .iter()
        .map(|share| i64::try_from(*share).unwrap_or(i64::MAX))
        .collect();
    let total: i64 = shares.iter().sum();
    let mut credit = vec![0; shares.len()];
    let mut order = Vec::new();
    for _ in 0..total {
        for (credit, share) in credit.iter_mut().zip(&shares) {
            *credit += share;
        }
        let Some(next) = (0..credit.len()).rev().max_by_key(|position| credit[*position]) else {
            break;
        };
        credit[next] -= total;
        order.push(next);
    }
    order
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    match b {
        0 => a,
        _ => greatest_common_divisor(b, a % b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_position_has_its_share_evenly_spread() {
        assert_eq!(turns(&reduced(&[10, 30, 10])), [1, 0, 1, 2, 1]);
        assert_eq!(turns(&reduced(&[7, 7])), [0, 1]);
        assert_eq!(turns(&[0, 2]), [1, 1]);
        assert_eq!(turns(&[]), [] as [usize; 0]);
    }
}
