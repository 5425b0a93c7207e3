//! Agents that come, go and die while requests do not stop: two managers and a worker.

use std::process::ExitCode;

use xtask::lab::{LabOptions, agent::DEFAULT_ARGUMENTS};

#[path = "support/mod.rs"]
mod support;

#[path = "support/handover.rs"]
mod handover;

#[path = "support/rungs.rs"]
mod rungs;

fn main() -> ExitCode {
    let options = LabOptions {
        name: "handover".into(),
        managers: 2,
        ..LabOptions::default()
    };
    let stories = [handover::STORIES, rungs::STORIES].concat();
    support::run(&options, DEFAULT_ARGUMENTS, &stories)
}
