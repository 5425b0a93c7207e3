//! Tests of all loops together, by behaviour.

mod life;
mod nodes;
mod ports;
mod restarts;
mod updates;

use std::collections::BTreeMap;

use super::testing::Cluster;

/// How many tasks run on each node that runs any.
fn running_on(cluster: &Cluster) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for task in cluster.state().tasks().values().filter(|task| task.is_running()) {
        let node = task.node.as_ref().map(ToString::to_string).unwrap_or_default();
        *counts.entry(node).or_insert(0) += 1;
    }
    counts
}
