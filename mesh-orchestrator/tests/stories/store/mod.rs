//! The stores' conformance suite, on the embedded store and on a real etcd cluster, and what each of them
//! promises besides. Needs root (a full disk is made by mounting a small one), `etcd` and `etcdctl`.

mod conformance;
mod disk;
mod etcd;
mod members;
mod objects;
mod oracle;
mod redb;
mod subject;
mod throughput;

use std::{process::ExitCode, sync::Arc};

use anyhow::Result;
use libtest_mimic::{Arguments, Trial};

use self::{etcd::cluster::Cluster, subject::Subject};

fn main() -> ExitCode {
    // A child of one of the trials: writes until it is killed.
    if let Some(code) = subject::child() {
        return code;
    }
    let given = Arguments::from_args();
    // Running it costs a second, so it is not even started for `--list` or a filter without etcd.
    let cluster = etcd::cluster::Shared::default();
    let mut trials = Vec::new();
    let stories = [conformance::stories(), members::stories(), objects::stories()];
    for (name, story) in stories.concat() {
        trials.push(trial(format!("redb::{name}"), move || story(&Subject::Redb)));
        let cluster = Arc::clone(&cluster);
        trials.push(trial(format!("etcd::{name}"), move || {
            story(&Subject::Etcd(Cluster::shared(&cluster)?))
        }));
    }
    for (name, story) in redb::stories() {
        trials.push(trial(format!("redb::{name}"), story));
    }
    for (name, story) in etcd::stories() {
        trials.push(trial(format!("etcd::{name}"), story));
    }
    trials.push(
        Trial::test("throughput", move || {
            throughput::measure(&cluster).map_err(|error| format!("{error:?}").into())
        })
        .with_ignored_flag(true),
    );
    libtest_mimic::run(&given, trials).exit_code()
}

fn trial(name: String, story: impl FnOnce() -> Result<()> + Send + 'static) -> Trial {
    Trial::test(name, move || story().map_err(|error| format!("{error:?}").into()))
}
