//! The orchestrator as its users see it: plain engines without Swarm, one agent on each node, services
//! through the API on the agent's socket.

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

mod certificates;
mod etcd;
mod https;
mod images;
mod managed;
mod partition;
mod recovery;
mod registry;
mod session;
mod several;
mod single;
mod stage;
mod systemd;

/// One story: its name and what it does.
pub(crate) type Story = (&'static str, fn() -> anyhow::Result<()>);

fn main() -> ExitCode {
    let mut given = Arguments::from_args();
    // Each has a lab of its own, one after the other.
    given.test_threads = Some(1);
    let stories = single::STORIES
        .into_iter()
        .chain(https::STORIES)
        .chain(images::STORIES)
        .chain(managed::STORIES)
        .chain(recovery::STORIES)
        .chain(session::STORIES)
        .chain(systemd::STORIES)
        .chain(several::STORIES)
        .chain(partition::STORIES);
    let trials = stories
        .map(|(name, story)| Trial::test(name, move || story().map_err(|error| format!("{error:?}").into())));
    libtest_mimic::run(&given, trials.collect()).exit_code()
}
