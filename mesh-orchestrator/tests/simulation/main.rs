//! Random histories of a simulated cluster; the seed of one that fails is printed.

mod agents;
mod history;
mod invariants;
mod random;
mod settled;
mod users;

use std::{collections::BTreeMap, time::Instant};

use self::history::run;

/// Steps of each history.
const STEPS: u32 = 120;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{name}: {text:?} is not a number"))
    })
}

/// `MESH_SIMULATION_SEED=` replays one history, `MESH_SIMULATION_HISTORIES=` sets their number.
#[test]
fn every_history_keeps_the_invariants_and_settles() {
    let seeds = match variable("MESH_SIMULATION_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            0..variable("MESH_SIMULATION_HISTORIES").unwrap_or(if cfg!(debug_assertions) {
                200
            } else {
                5_000
            })
        }
    };
    let start = Instant::now();
    let (mut changes, mut updates, mut milliseconds) = (BTreeMap::new(), BTreeMap::new(), 0);
    let count = seeds.end - seeds.start;
    for seed in seeds {
        let summary = run(seed, STEPS).unwrap_or_else(|violation| panic!("{violation}"));
        for (kind, number) in summary.changes {
            *changes.entry(kind).or_insert(0) += number;
        }
        for (end, number) in summary.updates {
            *updates.entry(end).or_insert(0) += number;
        }
        milliseconds += summary.milliseconds;
    }
    println!(
        "{count} histories in {:?}, {} simulated hours",
        start.elapsed(),
        milliseconds / 3_600_000
    );
    println!("changes: {changes:?}\nupdates: {updates:?}");
}
