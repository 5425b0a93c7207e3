//! The cluster on the embedded store and on a real etcd: users, the leader and pretended agents on handles of
//! their own. Needs `etcd` and `etcdctl`.

mod changes;
mod lab;

use std::{process::ExitCode, sync::Arc};

use anyhow::Result;
use libtest_mimic::{Arguments, Trial};

use self::lab::{Lab, etcd};

/// A story and its name.
type Story = (&'static str, fn(&Lab) -> Result<()>);

fn main() -> ExitCode {
    let given = Arguments::from_args();
    // Running it costs a second, so it is not even started for `--list` or a filter without etcd.
    let shared = etcd::Shared::default();
    let mut trials = Vec::new();
    for (name, story) in changes::stories() {
        trials.push(trial(format!("redb::{name}"), move || story(&Lab::redb()?)));
        let shared = Arc::clone(&shared);
        trials.push(trial(format!("etcd::{name}"), move || {
            story(&Lab::etcd(etcd::Cluster::shared(&shared)?)?)
        }));
    }
    libtest_mimic::run(&given, trials).exit_code()
}

fn trial(name: String, story: impl FnOnce() -> Result<()> + Send + 'static) -> Trial {
    Trial::test(name, move || story().map_err(|error| format!("{error:?}").into()))
}
