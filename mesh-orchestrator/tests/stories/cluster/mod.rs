//! The cluster on the embedded store and on etcd: users, the leader and simulated agents, on handles of their
//! own.

mod backups;
mod changes;
pub(crate) mod crash;
mod leaders;
mod nodes;
mod outages;
mod revisions;
mod services;

use std::sync::Arc;

use anyhow::Result;
use libtest_mimic::Trial;
use mesh_orchestrator_testing::{
    etcd::{Cluster, Shared},
    lab::Lab,
};

use crate::trial;

/// A claim about the cluster on every store, and how it is shown.
type Story = (&'static str, fn(&Lab) -> Result<()>);

pub(crate) fn trials(shared: &Shared) -> Vec<Trial> {
    let mut trials = Vec::new();
    let stories = [
        changes::stories(),
        services::stories(),
        nodes::stories(),
        leaders::stories(),
        revisions::stories(),
        backups::stories(),
    ];
    for (name, story) in stories.concat() {
        trials.push(trial(format!("cluster::redb::{name}"), move || {
            story(&Lab::redb()?)
        }));
        let shared = Arc::clone(shared);
        trials.push(trial(format!("cluster::etcd::{name}"), move || {
            story(&Lab::etcd(Cluster::shared(&shared)?))
        }));
    }
    for (name, story) in outages::stories() {
        trials.push(trial(format!("cluster::{name}"), story));
    }
    for (name, story) in crash::stories() {
        trials.push(trial(format!("cluster::redb::{name}"), story));
    }
    trials
}
