//! The mesh beside Docker's own at work: it takes over and gives back while requests do not stop, on eBPF and on
//! IPVS. Needs a kernel with IPVS, which Docker's mesh is made of; run by `cargo xtask vm test`.

use std::process::ExitCode;

use xtask::lab::{LabOptions, agent::DEFAULT_ARGUMENTS};

#[path = "support/mod.rs"]
mod support;

#[path = "support/basics.rs"]
mod basics;

#[path = "support/beside.rs"]
mod beside;

#[path = "support/handover.rs"]
mod handover;

#[path = "support/rungs.rs"]
mod rungs;

fn main() -> ExitCode {
    let options = LabOptions {
        name: "beside".into(),
        ..LabOptions::default()
    };
    let stories = [beside::ON_EBPF, basics::STORIES, beside::ON_BOTH, beside::ON_IPVS].concat();
    support::run(&options, DEFAULT_ARGUMENTS, &stories)
}
