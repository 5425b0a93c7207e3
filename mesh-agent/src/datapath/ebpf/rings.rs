//! The ring that a service's new flows choose a backend from, for each balancing algorithm. Pure; imports the
//! model.

use mesh_ebpf::abi::Choice;

use crate::{
    datapath::turns::{reduced, turns},
    model::{Algorithm, BackendKey, Balance, FULL_SHARE, fnv1a::fnv1a_64},
};

/// Sizes of hash tables: primes, as Maglev's permutations need.
const TABLE_SIZES: [usize; 4] = [251, 1021, 4093, 16_381];
/// A hash table has this many entries for each backend at least, up to the largest size, so that shares
/// differ by about 1 % (Maglev, NSDI 2016, section 5.3).
const ENTRIES_EACH: usize = 100;
/// A ring of turns that is made anew with each step of a slow start has no more than about so many.
const MOST_TURNS: u64 = 4096;
/// What one flow adds to the load of a backend of weight 1, where the least loaded is chosen.
const LOAD_STEP: u64 = 1 << 16;

/// An active backend as the ring sees it.
#[derive(Clone, Copy, Debug)]
pub(in crate::datapath) struct Candidate {
    /// Its cluster-wide name.
    pub(in crate::datapath) key: BackendKey,
    /// Its index in the maps.
    pub(in crate::datapath) index: u32,
    /// Its weight; with 0 it gets no new flows.
    pub(in crate::datapath) weight: u32,
    /// How much of its share it gets, of ten parts.
    pub(in crate::datapath) share: u8,
    /// Whether it is a container of this node.
    pub(in crate::datapath) local: bool,
}

/// What a service's new flows choose from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::datapath) struct Ring {
    /// How an entry is chosen.
    pub(in crate::datapath) choice: Choice,
    /// The backend's index in each entry.
    pub(in crate::datapath) entries: Vec<u32>,
    /// The same of the backends that are chosen only where none of the ring works.
    pub(in crate::datapath) others: Vec<u32>,
}

impl Ring {
    /// What is written to the map: the entries and, where others may follow, their number and those.
    pub(super) fn slots(&self) -> Vec<u32> {
        let mut slots = self.entries.clone();
        if self.choice.prefers() {
            slots.push(self.others.len() as u32);
            slots.extend(&self.others);
        }
        slots
    }

    /// How many slots that takes.
    pub(super) fn length(&self) -> u32 {
        let behind = if self.choice.prefers() {
            1 + self.others.len()
        } else {
            0
        };
        (self.entries.len() + behind) as u32
    }

    /// Whether a client's address chooses.
    pub(super) fn is_by_address(&self) -> bool {
        self.choice.within_ring() == Choice::HASH_ADDRESS
    }

    /// Whether it has the backend with an index.
    pub(super) fn names(&self, index: u32) -> bool {
        self.entries.contains(&index) || self.others.contains(&index)
    }
}

/// The ring of a service's candidates.
pub(in crate::datapath) fn ring(balance: Balance, candidates: &[Candidate]) -> Ring {
    let candidates = candidates.iter().copied();
    let candidates = candidates.filter(|candidate| candidate.weight > 0);
    if !balance.prefer_local {
        let (choice, entries) = spread(balance, &candidates.collect::<Vec<_>>());
        return Ring {
            choice,
            entries,
            others: Vec::new(),
        };
    }
    let (mut own, mut others): (Vec<_>, Vec<_>) = candidates.partition(|candidate| candidate.local);
    if own.is_empty() {
        std::mem::swap(&mut own, &mut others);
    }
    let (choice, entries) = spread(balance, &own);
    Ring {
        choice: choice.preferring(),
        entries,
        others: spread(balance, &others).1,
    }
}

/// How one of several backends is chosen, and the entries to choose from.
fn spread(balance: Balance, candidates: &[Candidate]) -> (Choice, Vec<u32>) {
    if balance.affinity.is_some() {
        return (Choice::HASH_ADDRESS, hash_table(candidates));
    }
    let plain = || candidates.iter().map(|candidate| candidate.index).collect();
    match balance.algorithm {
        Algorithm::RoundRobin if candidates.iter().all(|candidate| candidate.share == FULL_SHARE) => {
            (Choice::ROTATE, plain())
        }
        Algorithm::RoundRobin => (Choice::ROTATE, weighted(candidates, |_| 1)),
        Algorithm::WeightedRoundRobin => (Choice::ROTATE, weighted(candidates, |candidate| candidate.weight)),
        Algorithm::Random => (Choice::RANDOM, weighted(candidates, |candidate| candidate.weight)),
        Algorithm::Maglev => (Choice::HASH_ENDPOINT, hash_table(candidates)),
        Algorithm::LeastConnection | Algorithm::WeightedLeastConnection => (Choice::LEAST, plain()),
    }
}

/// What one flow adds to its backend's load.
pub(super) fn load_step(balance: Balance, weight: u32, share: u8) -> u64 {
    let step = match balance.algorithm {
        Algorithm::WeightedLeastConnection => LOAD_STEP / u64::from(weight.max(1)),
        Algorithm::RoundRobin
        | Algorithm::WeightedRoundRobin
        | Algorithm::Random
        | Algorithm::Maglev
        | Algorithm::LeastConnection => LOAD_STEP,
    };
    step * u64::from(FULL_SHARE) / u64::from(share.max(1))
}

/// Each backend as often as its weight and its share say.
fn weighted(candidates: &[Candidate], weight: impl Fn(&Candidate) -> u32) -> Vec<u32> {
    let part = |candidate: &Candidate| u64::from(weight(candidate)) * u64::from(candidate.share);
    let mut parts = reduced(&candidates.iter().map(part).collect::<Vec<_>>());
    let all: u64 = parts.iter().sum();
    let is_exact = candidates.iter().all(|candidate| candidate.share == FULL_SHARE);
    if all > MOST_TURNS && !is_exact {
        // For a short time: about the right shares are as good.
        for part in &mut parts {
            *part = (*part * MOST_TURNS / all).max(1);
        }
    }
    turns(&parts)
        .into_iter()
        .map(|turn| candidates[turn].index)
        .collect()
}

/// Maglev's table: each backend's name determines a permutation of all positions, and backends take turns, by
/// weight, to claim the next free position of theirs. So every node makes the same table, and a backend that
/// comes or goes moves little more than its own share.
fn hash_table(candidates: &[Candidate]) -> Vec<u32> {
    let mut candidates = candidates.to_vec();
    candidates.sort_unstable_by_key(|candidate| candidate.key);
    let Some(heaviest) = candidates.iter().map(|candidate| candidate.weight).max() else {
        return Vec::new();
    };
    let wanted = candidates.len() * ENTRIES_EACH;
    let size = TABLE_SIZES
        .into_iter()
        .find(|size| *size >= wanted)
        .unwrap_or(TABLE_SIZES[TABLE_SIZES.len() - 1]);
    let mut table: Vec<Option<u32>> = vec![None; size];
    let mut walks: Vec<Walk> = candidates
        .iter()
        .map(|candidate| Walk::new(candidate.key, size))
        .collect();
    let mut credit = vec![0; candidates.len()];
    let mut free = size;
    while free > 0 {
        for (number, candidate) in candidates.iter().enumerate() {
            // A lighter backend skips rounds in proportion.
            credit[number] += candidate.weight;
            if credit[number] < heaviest {
                continue;
            }
            credit[number] -= heaviest;
            while table[walks[number].position].is_some() {
                walks[number].advance(size);
            }
            table[walks[number].position] = Some(candidate.index);
            free -= 1;
            if free == 0 {
                break;
            }
        }
    }
    table.into_iter().flatten().collect()
}

/// A backend's permutation of the table's positions.
struct Walk {
    position: usize,
    stride: usize,
}

impl Walk {
    fn new(key: BackendKey, size: usize) -> Self {
        let name = key
            .address
            .octets()
            .into_iter()
            .chain(key.service.port.to_be_bytes());
        let hash = mix(fnv1a_64(name.chain([key.service.protocol.number()])));
        // As the size is a prime, any stride but 0 visits every position.
        Self {
            position: (hash as u32) as usize % size,
            stride: 1 + (hash >> 32) as usize % (size - 1),
        }
    }

    fn advance(&mut self, size: usize) {
        self.position = (self.position + self.stride) % size;
    }
}

/// Spreads the difference of two hashes over all bits, because names differ in their last bytes only.
fn mix(hash: u64) -> u64 {
    let mixed = (hash ^ hash >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed ^ mixed >> 33
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeMap, BTreeSet},
        net::Ipv4Addr,
    };

    use proptest::prelude::*;

    use super::*;
    use crate::model::{Protocol, ServiceKey};

    fn candidates(weights: &[u32]) -> Vec<Candidate> {
        (0..)
            .zip(weights)
            .map(|(index, weight)| Candidate {
                key: BackendKey {
                    service: ServiceKey {
                        protocol: Protocol::Tcp,
                        port: 9200,
                    },
                    address: Ipv4Addr::from(0x0a00_0002 + index),
                },
                index: 100 + index,
                weight: *weight,
                share: FULL_SHARE,
                local: index % 2 == 0,
            })
            .collect()
    }

    /// The ring of a balance that prefers no backends.
    fn even(balance: Balance, candidates: &[Candidate]) -> (Choice, Vec<u32>) {
        let ring = ring(balance, candidates);
        assert!(ring.others.is_empty());
        (ring.choice, ring.entries)
    }

    fn by(algorithm: Algorithm) -> Balance {
        Balance {
            algorithm,
            ..Balance::default()
        }
    }

    fn count(entries: &[u32]) -> BTreeMap<u32, usize> {
        let mut counts = BTreeMap::new();
        for position in entries {
            *counts.entry(*position).or_default() += 1;
        }
        counts
    }

    #[test]
    fn round_robin_ignores_weights() {
        let (choice, entries) = even(by(Algorithm::RoundRobin), &candidates(&[1, 5, 2]));
        assert_eq!((choice, entries), (Choice::ROTATE, vec![100, 101, 102]));
    }

    #[test]
    fn weighted_round_robin_interleaves_its_turns() {
        let (choice, entries) = even(by(Algorithm::WeightedRoundRobin), &candidates(&[10, 30, 10]));
        assert_eq!((choice, entries), (Choice::ROTATE, vec![101, 100, 101, 102, 101]));
    }

    #[test]
    fn a_random_choice_is_of_entries_in_proportion_to_the_weights() {
        let (choice, entries) = even(by(Algorithm::Random), &candidates(&[10, 30, 10]));
        assert_eq!(choice, Choice::RANDOM);
        assert_eq!(count(&entries), [(100, 1), (101, 3), (102, 1)].into());
    }

    #[test]
    fn affinity_hashes_the_address_with_every_algorithm() {
        for algorithm in Algorithm::ALL {
            let balance = Balance {
                algorithm,
                affinity: Some(300),
                ..Balance::default()
            };
            assert_eq!(even(balance, &candidates(&[1, 1])).0, Choice::HASH_ADDRESS);
        }
    }

    #[test]
    fn a_nodes_own_backends_are_preferred_and_the_others_follow() {
        for algorithm in Algorithm::ALL {
            let balance = Balance {
                prefer_local: true,
                ..by(algorithm)
            };
            let all = ring(balance, &candidates(&[1, 2, 3, 4]));
            assert!(all.choice.prefers(), "{algorithm:?}");
            assert_eq!(count(&all.entries).into_keys().collect::<Vec<_>>(), [100, 102]);
            assert_eq!(count(&all.others).into_keys().collect::<Vec<_>>(), [101, 103]);
            let slots = all.slots();
            assert_eq!(slots.len() as u32, all.length());
            assert_eq!(slots[all.entries.len()] as usize, all.others.len());

            let remote = ring(balance, &candidates(&[0, 2, 0, 4]));
            assert_eq!(count(&remote.entries).into_keys().collect::<Vec<_>>(), [101, 103]);
            assert!(remote.choice.prefers() && remote.others.is_empty());
        }
    }

    #[test]
    fn a_flow_counts_less_towards_the_load_of_a_heavier_backend() {
        let weighted = by(Algorithm::WeightedLeastConnection);
        assert_eq!(load_step(weighted, 4, 10) * 4, load_step(weighted, 1, 10));
        let plain = by(Algorithm::LeastConnection);
        assert_eq!(load_step(plain, 4, 10), load_step(plain, 1, 10));
    }

    #[test]
    fn a_flow_counts_more_towards_the_load_of_a_backend_that_starts_slowly() {
        for algorithm in [Algorithm::LeastConnection, Algorithm::WeightedLeastConnection] {
            let full = load_step(by(algorithm), 3, 10);
            assert_eq!(load_step(by(algorithm), 3, 1), 10 * full);
            assert_eq!(load_step(by(algorithm), 3, 5), 2 * full);
        }
    }

    #[test]
    fn a_backend_that_starts_slowly_has_fewer_turns() {
        let mut starting = candidates(&[1, 1, 2]);
        starting[1].share = 5;
        for (algorithm, expected) in [
            (Algorithm::RoundRobin, [2, 1, 2]),
            (Algorithm::WeightedRoundRobin, [2, 1, 4]),
            (Algorithm::Random, [2, 1, 4]),
        ] {
            let (_, entries) = even(by(algorithm), &starting);
            let counts: Vec<_> = count(&entries).into_values().collect();
            assert_eq!(counts, expected, "{algorithm:?}");
        }
        for candidate in &mut starting {
            candidate.share = 1;
        }
        let (_, entries) = even(by(Algorithm::RoundRobin), &starting);
        assert_eq!(
            count(&entries).into_values().collect::<Vec<_>>(),
            [1, 1, 1],
            "all are new"
        );
    }

    #[test]
    fn many_backends_of_odd_weights_that_start_slowly_do_not_fill_the_ring_table() {
        let mut starting = candidates(&(1..=99).collect::<Vec<_>>());
        starting[7].share = 3;
        let (_, entries) = even(by(Algorithm::WeightedRoundRobin), &starting);
        assert!(entries.len() <= MOST_TURNS as usize + 99, "{}", entries.len());
        let counts = count(&entries);
        assert_eq!(counts.len(), 99);
        assert!(counts[&198].abs_diff(2 * counts[&149]) <= 4, "{counts:?}");
    }

    #[test]
    fn a_hash_table_gives_each_its_share() {
        let (choice, entries) = even(by(Algorithm::Maglev), &candidates(&[1, 1, 2]));
        assert_eq!((choice, entries.len()), (Choice::HASH_ENDPOINT, 1021));
        let counts = count(&entries);
        assert!(counts[&102].abs_diff(2 * counts[&100]) <= 4, "{counts:?}");
        assert!(counts[&100].abs_diff(counts[&101]) <= 2, "{counts:?}");
    }

    #[test]
    fn removing_a_backend_moves_little_more_than_its_own_share() {
        let before = candidates(&[1; 10]);
        let mut after = before.clone();
        after.remove(3);
        let (before, after) = (hash_table(&before), hash_table(&after));
        assert_eq!(before.len(), after.len());
        let moved = before
            .iter()
            .zip(&after)
            .filter(|(before, after)| **before != 103 && before != after)
            .count();
        assert!(moved < before.len() / 10, "{moved} of {} moved", before.len());
    }

    #[test]
    fn every_node_makes_the_same_table() {
        let mut there = candidates(&[1, 2, 3]);
        let here = hash_table(&there);
        there.reverse();
        assert_eq!(hash_table(&there), here);
    }

    /// Candidates of equal weights with these addresses.
    fn at_addresses(addresses: &BTreeSet<u32>) -> Vec<Candidate> {
        let mut found = candidates(&vec![1; addresses.len()]);
        for (candidate, address) in found.iter_mut().zip(addresses) {
            candidate.key.address = Ipv4Addr::from(*address);
        }
        found
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// The paper's section 5.3: as backends take turns, the shares of equal ones differ by an entry. When
        /// one goes, few entries of the others move: a tenth at times, where a hash by the number of backends
        /// moves almost all.
        #[test]
        fn maglev_is_even_and_moves_few_entries(
            addresses in prop::collection::btree_set(0x0a00_0001_u32..0x0a00_ffff, 2..60),
        ) {
            let all = at_addresses(&addresses);
            let table = hash_table(&all);
            let counts: Vec<usize> = count(&table).into_values().collect();
            let (most, fewest) = (counts.iter().max().unwrap(), counts.iter().min().unwrap());
            prop_assert!(most - fewest <= 1, "{counts:?}");

            let gone = all[addresses.len() / 2];
            let others: Vec<_> = all.iter().copied().filter(|one| one.index != gone.index).collect();
            let without = hash_table(&others);
            if without.len() == table.len() {
                let moved = table.iter().zip(&without);
                let moved = moved.filter(|(before, after)| **before != gone.index && before != after).count();
                prop_assert!(moved * 5 <= table.len(), "{moved} of {}", table.len());
            }
        }

        #[test]
        fn maglev_follows_the_weights(weights in prop::collection::vec(1_u32..=10, 1..40)) {
            let table = hash_table(&candidates(&weights));
            let sum: u32 = weights.iter().sum();
            for (index, weight) in (100..).zip(&weights) {
                let found = table.iter().filter(|entry| **entry == index).count() as f64;
                let expected = table.len() as f64 * f64::from(*weight) / f64::from(sum);
                prop_assert!((found - expected).abs() <= 0.02 * expected + 10.0, "{found} of {expected}");
            }
        }

        /// In one round, each backend has its share exactly.
        #[test]
        fn turns_follow_the_weights_exactly(weights in prop::collection::vec(1_u32..=10, 1..20)) {
            for algorithm in [Algorithm::WeightedRoundRobin, Algorithm::Random] {
                let (_, entries) = even(by(algorithm), &candidates(&weights));
                let sum: u32 = weights.iter().sum();
                for (index, weight) in (100..).zip(&weights) {
                    let found = entries.iter().filter(|entry| **entry == index).count();
                    prop_assert_eq!(found * sum as usize, entries.len() * *weight as usize);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn every_ring_names_every_candidate_and_no_other(
            weights in prop::collection::vec(0_u32..5, 0..30),
            algorithm in prop::sample::select(Algorithm::ALL.to_vec()),
            affinity in prop::option::of(1_u32..100),
            prefer_local: bool,
        ) {
            let candidates = candidates(&weights);
            let balance = Balance { algorithm, affinity, prefer_local, slow_start: None };
            let ring = ring(balance, &candidates);
            let named = ring.entries.iter().chain(&ring.others).copied().collect::<Vec<_>>();
            let named: Vec<u32> = count(&named).into_keys().collect();
            let active: Vec<u32> = candidates
                .iter()
                .filter(|candidate| candidate.weight > 0)
                .map(|candidate| candidate.index)
                .collect();
            prop_assert_eq!(named, active);
        }
    }
}
