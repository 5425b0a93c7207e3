//! The cluster on the embedded store and on a real etcd: users, the leader and pretended agents on handles of
//! their own. Needs root (a full disk is made by mounting a small one), `etcd` and `etcdctl`.

mod agent;
mod backups;
mod changes;
mod crash;
mod lab;
mod leaders;
mod nodes;
mod outages;
mod revisions;
mod services;

use std::{process::ExitCode, sync::Arc};

use anyhow::Result;
use libtest_mimic::{Arguments, Trial};

use self::lab::{Lab, etcd};

/// A story and its name.
type Story = (&'static str, fn(&Lab) -> Result<()>);

/// One that makes its own lab.
type OwnStory = (&'static str, fn() -> Result<()>);

fn main() -> ExitCode {
    // A child of one of the trials: works until it is killed.
    if let Some(code) = crash::child() {
        return code;
    }
    let given = Arguments::from_args();
    // Running it costs a second, so it is not even started for `--list` or a filter without etcd.
    let shared = etcd::Shared::default();
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
        trials.push(trial(format!("redb::{name}"), move || story(&Lab::redb()?)));
        let shared = Arc::clone(&shared);
        trials.push(trial(format!("etcd::{name}"), move || {
            story(&Lab::etcd(etcd::Cluster::shared(&shared)?)?)
        }));
    }
    for (name, story) in outages::stories() {
        trials.push(trial(name.to_owned(), story));
    }
    for (name, story) in crash::stories() {
        trials.push(trial(format!("redb::{name}"), story));
    }
    libtest_mimic::run(&given, trials).exit_code()
}

fn trial(name: String, story: impl FnOnce() -> Result<()> + Send + 'static) -> Trial {
    Trial::test(name, move || story().map_err(|error| format!("{error:?}").into()))
}
