//! What agents and their data paths use, against what they used before the first round. Depends on `fixture`.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    chaos::{
        fixture::{Fixture, REPLICAS},
        soak::{MOST_REPLICAS, explain},
    },
    lab::{Lab, agent::metric_sum, wait_until},
};

/// What an agent may have more than before the first round.
const MORE_FILES: u64 = 16;
const MORE_KIBIBYTES: u64 = 16 * 1024;

/// The maps that must hold what they held before: what the services need.
const EXACT: [&str; 4] = ["backends", "frontends", "peers", "services"];
/// How many ports the service publishes.
const PORTS: usize = 2;
/// Each port has a ring, and until the next change the one before, which may be of more replicas.
const RING: u64 = 2 * (PORTS * MOST_REPLICAS) as u64;
/// Until draining replicas are gone from the maps.
const SETTLED: Duration = Duration::from_secs(30);

/// Flows of replicas that are gone stay for 5 minutes, to be refused.
const FLOWS_OVER: Duration = Duration::from_secs(330);
/// What may be left then, of connections whose end no one saw.
const FLOWS_LEFT: u64 = 20;

/// What each node used before the first round.
pub(super) struct Baseline(BTreeMap<String, Use>);

impl Baseline {
    pub(super) fn read(fixture: &Fixture<'_>) -> Result<Self> {
        let baseline = fixture.each_node(Use::read)?;
        for (node, used) in &baseline {
            println!("{node} before: {used}");
            ensure!(
                used.maps["backends"] == (PORTS * REPLICAS) as u64,
                "{node} has {} backends, and needs one for each port of each replica",
                used.maps["backends"]
            );
        }
        Ok(Self(baseline))
    }

    /// What has grown on any node, as far as it should not.
    pub(super) fn compare(&self, fixture: &Fixture<'_>) -> Result<Vec<String>> {
        let mut problems = Vec::new();
        for (node, first) in &self.0 {
            let settled = wait_until("the maps to be as before", SETTLED, || {
                let used = Use::read(fixture.lab, node)?;
                used.has_the_maps_of(first)?;
                Ok(used)
            });
            match settled.and_then(|used| {
                println!("  {node}: {used}");
                used.is_bounded_by(first)
            }) {
                Ok(()) => {}
                Err(error) => problems.push(format!("{node}: {error:#}")),
            }
        }
        Ok(problems)
    }

    /// Waits, without load, until the flows are gone.
    pub(super) fn until_no_flows(&self, fixture: &Fixture<'_>) -> Result<()> {
        for node in self.0.keys() {
            let left = wait_until(&format!("the flows of {node} to be over"), FLOWS_OVER, || {
                let used = Use::read(fixture.lab, node)?;
                ensure!(used.flows <= FLOWS_LEFT, "{} are left", used.flows);
                Ok(used.flows)
            })
            .with_context(|| explain::kinds(fixture.lab, node).unwrap_or_default())?;
            println!("{node}: {left} flows are left");
        }
        Ok(())
    }
}

/// What an agent and its data path use.
#[derive(Clone, Debug, Default)]
struct Use {
    files: u64,
    /// Resident memory.
    kibibytes: u64,
    pins: u64,
    /// The entries of the maps in [`EXACT`].
    maps: BTreeMap<&'static str, u64>,
    ring: u64,
    flows: u64,
}

impl Use {
    fn read(lab: &Lab, node: &str) -> Result<Self> {
        let script = "pid=$(cat /run/mesh-agent.pid); ls /proc/$pid/fd | wc -l; \
                      sed -n 's/^VmRSS:[^0-9]*\\([0-9]*\\).*/\\1/p' /proc/$pid/status; \
                      find /sys/fs/bpf -type f | wc -l";
        let text = lab.run(node, ["sh", "-c", script])?;
        let numbers: Vec<u64> = text.lines().filter_map(|line| line.trim().parse().ok()).collect();
        let [files, kibibytes, pins] = numbers[..] else {
            bail!("the use of the agent on {node} cannot be read from `{text}`");
        };
        let metrics = lab.metrics(node)?;
        let entries = |map: &str| -> Result<u64> {
            let label = format!("map=\"{map}\"");
            let has = metrics
                .lines()
                .any(|line| line.starts_with("mesh_map_entries") && line.contains(&label));
            ensure!(has, "{node} does not count the entries of {map}");
            Ok(metric_sum(&metrics, "mesh_map_entries", &[&label]) as u64)
        };
        Ok(Self {
            files,
            kibibytes,
            pins,
            maps: EXACT
                .iter()
                .map(|map| Ok((*map, entries(map)?)))
                .collect::<Result<_>>()?,
            ring: entries("ring")?,
            flows: entries("flows")?,
        })
    }

    fn has_the_maps_of(&self, first: &Self) -> Result<()> {
        for (map, entries) in &self.maps {
            let before = first.maps.get(map).copied().unwrap_or_default();
            ensure!(*entries == before, "{entries} {map} in the map, {before} before");
        }
        ensure!(
            self.ring <= RING,
            "{} entries of rings, and {RING} at most",
            self.ring
        );
        Ok(())
    }

    fn is_bounded_by(&self, first: &Self) -> Result<()> {
        ensure!(
            self.files <= first.files + MORE_FILES,
            "{} open files, {} before",
            self.files,
            first.files
        );
        ensure!(
            self.kibibytes <= first.kibibytes + MORE_KIBIBYTES,
            "{} KiB of memory, {} before",
            self.kibibytes,
            first.kibibytes
        );
        // Each container's interface has two.
        let most = first.pins + 2 * REPLICAS as u64;
        ensure!(self.pins <= most, "{} pins, {} before", self.pins, first.pins);
        Ok(())
    }
}

impl std::fmt::Display for Use {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            formatter,
            "{} files, {} KiB, {} pins, {} flows, {} ring",
            self.files, self.kibibytes, self.pins, self.flows, self.ring
        )?;
        self.maps
            .iter()
            .try_for_each(|(map, entries)| write!(formatter, ", {entries} {map}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn before() -> Use {
        Use {
            files: 40,
            kibibytes: 20_000,
            pins: 60,
            maps: [("backends", 10)].into(),
            ring: 10,
            flows: 0,
        }
    }

    #[test]
    fn what_grows_is_named() {
        let first = before();
        assert!(first.is_bounded_by(&first).is_ok());
        let grown = Use {
            files: 100,
            ..before()
        };
        let error = grown.is_bounded_by(&first).unwrap_err().to_string();
        assert!(error.contains("100 open files"), "{error}");
    }

    #[test]
    fn a_ring_and_the_one_before_are_all_that_is_kept() {
        let first = before();
        for (ring, holds) in [(RING, true), (RING + 1, false)] {
            let used = Use { ring, ..before() };
            assert_eq!(used.has_the_maps_of(&first).is_ok(), holds, "{ring}");
        }
    }

    #[test]
    fn maps_must_hold_what_they_held() {
        let first = before();
        assert!(first.has_the_maps_of(&first).is_ok());
        for entries in [9, 11] {
            let other = Use {
                maps: [("backends", entries)].into(),
                ..before()
            };
            let error = other.has_the_maps_of(&first).unwrap_err().to_string();
            assert!(error.contains("backends"), "{error}");
        }
    }
}
