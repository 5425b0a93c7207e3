//! What every store promises, on the embedded store and on etcd, and what each of them promises besides.

mod backups;
mod conformance;
pub(crate) mod disk;
pub(crate) mod etcd;
mod members;
mod oracle;
pub(crate) mod redb;
mod subject;
mod vault;
mod watches;

use std::sync::Arc;

use anyhow::Result;
use libtest_mimic::Trial;
use mesh_orchestrator_testing::etcd::{Cluster, Shared};

use self::subject::Subject;
use crate::trial;

/// A claim about every store, and how it is shown.
type Story = (&'static str, fn(&Subject) -> Result<()>);

pub(crate) fn trials(shared: &Shared) -> Vec<Trial> {
    let mut trials = Vec::new();
    let stories = [
        conformance::stories(),
        watches::stories(),
        members::stories(),
        vault::stories(),
        backups::stories(),
    ];
    for (name, story) in stories.concat() {
        trials.push(trial(format!("store::redb::{name}"), move || {
            story(&Subject::Redb)
        }));
        let shared = Arc::clone(shared);
        trials.push(trial(format!("store::etcd::{name}"), move || {
            story(&Subject::Etcd(Cluster::shared(&shared)?))
        }));
    }
    for (name, story) in redb::stories().into_iter().chain(disk::stories()) {
        trials.push(trial(format!("store::redb::{name}"), story));
    }
    for (name, story) in etcd::harmless_stories() {
        let shared = Arc::clone(shared);
        trials.push(trial(format!("store::etcd::{name}"), move || {
            let cluster = Cluster::shared(&shared)?;
            story(&cluster)
        }));
    }
    for (name, story) in etcd::stories() {
        trials.push(trial(format!("store::etcd::{name}"), story));
    }
    trials
}
