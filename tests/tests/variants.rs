//! The basic stories in the other variants of the data path, one lab after the other: all that this kernel is the
//! place for, or those that `$MESH_VARIANTS` names, separated by commas.

use std::process::ExitCode;

use xtask::lab::{LabOptions, Offloads};

#[path = "support/mod.rs"]
mod support;

#[path = "support/basics.rs"]
mod basics;

/// A variant: its lab's name, the agents' arguments, and what the wire leaves to the receiver.
type Variant = (&'static str, &'static [&'static str], Offloads);

/// What the other test binary tells all stories of on this kernel: only where it is named.
const NATIVE: Variant = ("native", &["--xdp", "native"], Offloads::Off);

/// Needs a kernel with IPVS: only where it is named.
const IPVS: Variant = ("ipvs", &["--datapath", "ipvs"], Offloads::On);

const VARIANTS: &[Variant] = &[
    ("dsr", &["--xdp", "native", "--return-mode", "dsr"], Offloads::Off),
    ("tc", &["--xdp", "off"], Offloads::On),
    ("clsact", &["--xdp", "off", "--tc", "clsact"], Offloads::On),
    ("generic", &["--xdp", "generic"], Offloads::Off),
];

fn main() -> ExitCode {
    let named = std::env::var("MESH_VARIANTS").ok();
    let variants = match chosen(named.as_deref()) {
        Ok(variants) => variants,
        Err(unknown) => {
            eprintln!("MESH_VARIANTS names `{unknown}`, which is no variant");
            return ExitCode::FAILURE;
        }
    };
    let mut failed = false;
    for (name, arguments, offloads) in variants {
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

/// The variants of these names, or those that are the rule; the name that is none.
fn chosen(names: Option<&str>) -> Result<Vec<Variant>, &str> {
    let Some(names) = names else {
        return Ok(VARIANTS.to_vec());
    };
    names
        .split(',')
        .map(|name| {
            let all = VARIANTS.iter().chain([&NATIVE, &IPVS]);
            all.copied().find(|variant| variant.0 == name).ok_or(name)
        })
        .collect()
}
