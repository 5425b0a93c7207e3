//! The basic stories in the other variants of the data path, one lab after the other.

use std::process::ExitCode;

use xtask::lab::{LabOptions, Offloads};

#[path = "support/mod.rs"]
mod support;

#[path = "support/basics.rs"]
mod basics;

/// A variant: its lab's name, the agents' arguments, and what the wire leaves to the receiver.
type Variant = (&'static str, &'static [&'static str], Offloads);

const VARIANTS: &[Variant] = &[
    ("dsr", &["--xdp", "native", "--return-mode", "dsr"], Offloads::Off),
    ("tc", &["--xdp", "off"], Offloads::On),
    ("clsact", &["--xdp", "off", "--tc", "clsact"], Offloads::On),
    ("generic", &["--xdp", "generic"], Offloads::Off),
];

fn main() -> ExitCode {
    let mut failed = false;
    for &(name, arguments, offloads) in VARIANTS {
        println!("\nvariant {name}: mesh-agent run {}", arguments.join(" "));
        let options = LabOptions {
            name: name.into(),
            offloads,
            ..LabOptions::default()
        };
        failed |= support::run(&options, arguments, basics::STORIES) != ExitCode::SUCCESS;
    }
    if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}
