//! The orchestrator as its users see it: plain engines without Swarm, one agent on each node, services
//! through the API on the agent's socket.

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

mod certificates;
mod etcd;
mod fixture;
mod https;
mod images;
mod ipvs;
mod managed;
mod partition;
mod peers;
mod recovery;
mod registry;
mod session;
mod several;
mod single;
mod systemd;
mod workers;

/// One story: its name and what it does.
pub(crate) type Story = (&'static str, fn() -> anyhow::Result<()>);

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Each has a lab of its own, one after the other.
    arguments.test_threads = Some(1);
    let groups: [(&str, &[Story]); 11] = [
        ("single", &single::STORIES),
        ("https", &https::STORIES),
        ("images", &images::STORIES),
        ("managed", &managed::STORIES),
        ("recovery", &recovery::STORIES),
        ("session", &session::STORIES),
        ("systemd", &systemd::STORIES),
        ("several", &several::STORIES),
        ("partition", &partition::STORIES),
        ("workers", &workers::STORIES),
        // Needs a kernel with IPVS: run by `cargo xtask vm test`, with `--ignored`.
        ("ipvs", &ipvs::STORIES),
    ];
    let mut trials = Vec::new();
    for (group, stories) in groups {
        for &(name, story) in stories {
            let trial = Trial::test(format!("{group}::{name}"), move || {
                story().map_err(|error| format!("{error:?}").into())
            });
            trials.push(trial.with_ignored_flag(group == "ipvs"));
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}
