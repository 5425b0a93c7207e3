//! Stories of the stores and of the cluster, each on the embedded store and on a real etcd. Needs root (a
//! full disk is a small tmpfs), `etcd` and `etcdctl`.
//!
//! Each story has a store of its own, so they run side by side. Those that do not stop etcd's members share
//! one etcd cluster.

mod child;
mod cluster;
mod store;

use std::{process::ExitCode, sync::PoisonError};

use anyhow::Result;
use libtest_mimic::{Arguments, Trial};
use mesh_orchestrator_testing::etcd;

/// How many stories run at a time: most of them wait for heartbeats and elections, not for a processor.
const SIDE_BY_SIDE: usize = 6;

/// A story that creates its own stores.
type OwnStory = (&'static str, fn() -> Result<()>);

fn main() -> ExitCode {
    if let Some(code) = child::work() {
        return code;
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(SIDE_BY_SIDE);
    // Started by the first story that needs it: not for `--list`, nor for a filter without etcd.
    let shared = etcd::Shared::default();
    let mut trials = store::trials(&shared);
    trials.extend(cluster::trials(&shared));
    let conclusion = libtest_mimic::run(&arguments, trials);
    // Stops the members.
    drop(shared.lock().unwrap_or_else(PoisonError::into_inner).take());
    conclusion.exit_code()
}

fn trial(name: String, story: impl FnOnce() -> Result<()> + Send + 'static) -> Trial {
    Trial::test(name, move || story().map_err(|error| format!("{error:?}").into()))
}
