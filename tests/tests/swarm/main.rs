//! The whole product with its defaults: native XDP, replies by tunnel.

use std::process::ExitCode;

use xtask::lab::{LabOptions, agent::DEFAULT_ARGUMENTS};

#[path = "support/mod.rs"]
mod support;

#[path = "support/basics.rs"]
mod basics;

#[path = "support/changes.rs"]
mod changes;

#[path = "support/hostile.rs"]
mod hostile;

fn main() -> ExitCode {
    let stories = [basics::STORIES, changes::STORIES, hostile::STORIES].concat();
    support::run(
        &LabOptions {
            name: "stories".into(),
            ..LabOptions::default()
        },
        DEFAULT_ARGUMENTS,
        &stories,
    )
}
